"""A gateway's durable store: one SQLite file that holds updates only while nobody above can be reached.

synchronous is NORMAL: a power cut may lose the last transactions, and the nodes have those updates still.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gateway.rows import DropIsland, DropSpooled, EmptySpool, KeepIsland, Row, Spooled, SpoolUpdate
from hedgerow.core.codec import decode
from hedgerow.core.config import StorageConfig
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Update
from hedgerow.runtime.crc import checksum
from hedgerow.runtime.store import Database

FILE_NAME = "spool.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS held (
    number INTEGER PRIMARY KEY, node TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    crc32 INTEGER NOT NULL, body BLOB NOT NULL, UNIQUE (node, epoch, seq)
);
CREATE TABLE IF NOT EXISTS island (
    name TEXT PRIMARY KEY, crc32 INTEGER NOT NULL, body BLOB NOT NULL
);
"""


class Spool:
    """The gateway's `Store`. Raises StoreError where its file cannot be opened."""

    def __init__(self, folder: Path, storage: StorageConfig) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._database = Database(
            folder / FILE_NAME,
            _SCHEMA,
            synchronous="NORMAL",
            max_bytes=storage.gateway_bytes,
            ballast_bytes=storage.ballast_bytes,
        )
        self.quarantined = self._database.quarantined

    @property
    def lost_frames(self) -> int:
        """Frames of committed transactions found damaged at the start; the nodes have what was in them."""
        return self._database.lost_frames

    @property
    def full(self) -> bool:
        """Whether there is no room for more."""
        return self._database.full

    async def load(self) -> Spooled:
        """Return what is kept, and delete the rows that cannot be read. Raises StoreError."""
        found, damaged = await self._database.read(_read)
        if damaged:
            await self._database.transact(lambda db: _delete(db, damaged), grows=False)
        return found

    async def save(self, rows: tuple[Row, ...]) -> None:
        """Write the rows in one transaction. Raises StoreError."""
        grows = any(isinstance(row, SpoolUpdate | KeepIsland) for row in rows)
        await self._database.transact(lambda db: _write(db, rows), grows=grows)

    async def close(self) -> None:
        """Close the file."""
        await self._database.close()


def _write(connection: sqlite3.Connection, rows: Iterable[Row]) -> None:
    for row in rows:
        match row:
            case SpoolUpdate(update_id, body):
                connection.execute(
                    "INSERT OR IGNORE INTO held (node, epoch, seq, crc32, body)"
                    " VALUES (?, ?, ?, ?, ?)",
                    (update_id.node, update_id.epoch, update_id.seq, checksum(body), body),
                )
            case DropSpooled(ids):
                connection.executemany(
                    "DELETE FROM held WHERE node = ? AND epoch = ? AND seq = ?",
                    [(i.node, i.epoch, i.seq) for i in ids],
                )
            case EmptySpool():
                connection.execute("DELETE FROM held")
            case KeepIsland(name, body):
                connection.execute(
                    "INSERT OR REPLACE INTO island VALUES (?, ?, ?)", (name, checksum(body), body)
                )
            case DropIsland():
                connection.execute("DELETE FROM island")


_Damaged = list[tuple[str, Any]]
"""SQL that deletes a row, and its key."""


def _read(connection: sqlite3.Connection) -> tuple[Spooled, _Damaged]:
    damaged: _Damaged = []
    updates = tuple(_updates(connection, damaged))
    island = dict(_island(connection, damaged))
    return Spooled(updates, island, len(damaged)), damaged


def _updates(connection: sqlite3.Connection, damaged: _Damaged) -> Iterator[Update]:
    for number, node, epoch, seq, crc32, body in connection.execute(
        "SELECT number, node, epoch, seq, crc32, body FROM held ORDER BY number"
    ):
        update = _update(crc32, body)
        if update is None or (update.id.node, update.id.epoch, update.id.seq) != (node, epoch, seq):
            damaged.append(("DELETE FROM held WHERE number = ?", number))
        else:
            yield update


def _update(crc32: Any, body: Any) -> Update | None:
    if not isinstance(body, bytes) or checksum(body) != crc32:
        return None
    try:
        found = decode(body)
    except PeerError:
        return None
    return found if isinstance(found, Update) else None


def _island(connection: sqlite3.Connection, damaged: _Damaged) -> Iterator[tuple[str, bytes]]:
    for name, crc32, body in connection.execute("SELECT name, crc32, body FROM island"):
        if isinstance(body, bytes) and checksum(body) == crc32:
            yield name, body
        else:
            damaged.append(("DELETE FROM island WHERE name = ?", name))


def _delete(connection: sqlite3.Connection, damaged: _Damaged) -> None:
    for sql, key in damaged:
        connection.execute(sql, (key,))
