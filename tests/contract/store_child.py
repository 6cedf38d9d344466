"""A process that writes rows into a store and says which were acknowledged; run by test_store_disk.py.

usage: store_child.py PATH MODE [BALLAST_BYTES], MODE one of
  write    write rows one by one and in bursts, and end without closing, as a crash would
  fill     write until the disk is full, drain, and report
  restart  open the store on a disk that others have filled
  starve   write until a commit finds no memory
"""

import asyncio
import os
import sqlite3
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from hedgerow.runtime.ports import StoreError
from hedgerow.runtime.store import Database

SCHEMA = "CREATE TABLE IF NOT EXISTS t (x INTEGER PRIMARY KEY, body BLOB)"
BURSTS = [[0], [1], [2, 3, 4, 5], [6], [7], *([x] for x in range(8, 30)), [30, 31, 32], [33]]
_BODY_BYTES = 20_000
_MOST_ROWS = 2000


def _say(*words: object) -> None:
    """Print at once: what was said before a kill counts."""
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


def _put(x: int, db: sqlite3.Connection) -> int:
    return db.execute("INSERT INTO t VALUES (?, randomblob(?))", (x, _BODY_BYTES)).rowcount


def _end(x: int, db: sqlite3.Connection) -> int:
    return db.execute("UPDATE t SET body = NULL WHERE x = ?", (x,)).rowcount


def _open(path: Path, ballast_bytes: int) -> Database:
    return Database(
        path, SCHEMA, synchronous="FULL", max_bytes=1 << 26, ballast_bytes=ballast_bytes
    )


async def _try(database: Database, x: int) -> bool:
    try:
        await database.transact(partial(_put, x))
    except StoreError:
        _say("failed", x)
        return False
    _say("saved", x)
    return True


async def _try_end(database: Database, x: int) -> bool:
    try:
        await database.transact(partial(_end, x), grows=False)
    except StoreError as error:
        _say("stuck", x, error)
        return False
    return True


async def _write(path: Path, ballast_bytes: int) -> None:
    database = _open(path, ballast_bytes)
    for burst in BURSTS:
        await asyncio.gather(*(_try(database, x) for x in burst))
    _say("done", database.lost_frames)
    os._exit(0)


async def _fill(path: Path, ballast_bytes: int) -> None:
    database = _open(path, ballast_bytes)
    rows = 0
    while rows < _MOST_ROWS:
        # One that ends something shares its commit with one that grows.
        both = (_try(database, rows), _try_end(database, -1))
        if not all(await asyncio.gather(*both)):
            break
        rows += 1
    _say("full", database.full)
    await _try(database, _MOST_ROWS)
    for x in range(rows):
        if not await _try_end(database, x):
            break
        _say("ended", x)
    _say("room", await database.has_room())
    await _try(database, _MOST_ROWS + 1)
    await database.close()


def _take_all(path: Path) -> None:
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


async def _restart(path: Path, ballast_bytes: int) -> None:
    database = _open(path, ballast_bytes)
    for x in range(10):
        await _try(database, x)
    await database.close()
    other = path.with_name("other")
    _take_all(other)
    database = _open(path, ballast_bytes)
    _say("full", database.full)
    await _try(database, 10)
    for x in range(10):
        if await _try_end(database, x):
            _say("ended", x)
    other.unlink()
    await _try(database, 11)
    _say("full", database.full)
    await database.close()


async def _starve(path: Path) -> None:
    database = _open(path, 0)
    await _try(database, 0)

    def starve(db: sqlite3.Connection) -> None:
        _put(1, db)
        # It holds for the process, and cannot be raised again.
        db.execute("PRAGMA hard_heap_limit = 1")

    calls = (database.transact(starve), database.transact(partial(_put, 2)))
    for end in await asyncio.gather(*calls, return_exceptions=True):
        _say("ended", type(end).__name__)
    os._exit(0)


if __name__ == "__main__":
    file, mode, *rest = Path(sys.argv[1]), sys.argv[2], *map(int, sys.argv[3:])
    modes: dict[str, Any] = {"write": _write, "fill": _fill, "restart": _restart, "starve": _starve}
    asyncio.run(modes[mode](file, *rest))
