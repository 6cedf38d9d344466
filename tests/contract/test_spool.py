"""The gateway's spool on a real disk."""

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest

from gateway.rows import DropIsland, DropSpooled, EmptySpool, KeepIsland, Spooled, SpoolUpdate
from gateway.spool import FILE_NAME, Spool
from hedgerow.core.codec import encode
from hedgerow.core.config import StorageConfig
from hedgerow.core.messages import Update
from hedgerow.runtime.ports import StoreError
from tests.protocol.scenarios import make_update

STORAGE = StorageConfig(gateway_bytes=1 << 20, ballast_bytes=1 << 16)


@asynccontextmanager
async def spool(folder: Path) -> AsyncIterator[Spool]:
    made = Spool(folder, STORAGE)
    try:
        yield made
    finally:
        await made.close()


async def found(folder: Path) -> Spooled:
    async with spool(folder) as opened:
        return await opened.load()


def row(update: Update) -> SpoolUpdate:
    return SpoolUpdate(update.id, encode(update))


async def test_what_is_saved_is_found_again_in_its_order(tmp_path: Path) -> None:
    updates = [make_update(seq, node=node) for seq, node in ((2, "b"), (1, "b"), (1, "a"))]
    async with spool(tmp_path) as opened:
        await opened.save(tuple(row(update) for update in updates))
        await opened.save((row(updates[0]), KeepIsland("base", b"1"), KeepIsland("base", b"2")))
    kept = await found(tmp_path)
    assert kept == Spooled(tuple(updates), {"base": b"2"}, 0)
    async with spool(tmp_path) as opened:
        await opened.save((DropSpooled((updates[1].id,)), DropIsland()))
    assert await found(tmp_path) == Spooled((updates[0], updates[2]))
    async with spool(tmp_path) as opened:
        await opened.save((EmptySpool(),))
    assert await found(tmp_path) == Spooled()


def flip(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


@pytest.mark.parametrize(
    ("column", "spoil"),
    [("body", flip), ("crc32", lambda crc32: crc32 ^ 1), ("seq", lambda seq: seq + 10)],
)
async def test_a_damaged_row_is_dropped_and_counted_and_the_others_stay(
    column: str, spoil: Callable[[object], object], tmp_path: Path
) -> None:
    updates = [make_update(seq) for seq in (1, 2, 3)]
    async with spool(tmp_path) as opened:
        await opened.save((*map(row, updates), KeepIsland("base", b"1"), KeepIsland("sum", b"2")))
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as file, file:
        (value,) = file.execute(f"SELECT {column} FROM held WHERE seq = 2").fetchone()  # noqa: S608
        file.execute(f"UPDATE held SET {column} = ? WHERE seq = 2", (spoil(value),))  # noqa: S608
        file.execute("UPDATE island SET body = x'00' WHERE name = 'sum'")
    kept = await found(tmp_path)
    assert kept == Spooled((updates[0], updates[2]), {"base": b"1"}, 2)
    assert (await found(tmp_path)).damaged == 0, "they are gone"


async def test_a_full_spool_takes_no_more_but_lets_go(tmp_path: Path) -> None:
    updates = [make_update(seq, payload=bytes(60_000)) for seq in range(40)]
    saved = []
    async with spool(tmp_path) as opened:
        with pytest.raises(StoreError):  # noqa: PT012 - how many fit is the file's affair
            for update in updates:
                await opened.save((row(update),))
                saved.append(update.id)
        assert 3 < len(saved) < 20
        assert opened.full
        await opened.save((DropSpooled(tuple(saved[1:])),))
        await opened.save((row(updates[-1]),))
    assert [update.id.seq for update in (await found(tmp_path)).updates] == [0, 39]
    assert (tmp_path / FILE_NAME).stat().st_size <= STORAGE.gateway_bytes


async def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"not a database" * 1000)
    async with spool(tmp_path) as opened:
        assert opened.quarantined is not None
        assert opened.quarantined.exists()
        assert await opened.load() == Spooled()
