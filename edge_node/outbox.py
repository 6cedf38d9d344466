"""The node's durable outbox: one SQLite file that holds its identity, its books and its unsettled updates."""

import secrets
import sqlite3
from collections import Counter
from pathlib import Path
from typing import Any

from edge_node.rows import Books, CloseUpdate, KeepPersonal, KeepResidual, KeepUnit, PutUpdate
from hedgerow.runtime.store import Database

FILE_NAME = "outbox.sqlite"
_EPOCH_BITS = 48
_MAX_BYTES = 1 << 30
_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (node TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS issued (
    seq INTEGER PRIMARY KEY, base_version INTEGER NOT NULL, body BLOB,
    outcome TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS unit (name TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS residual (name TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS personal (name TEXT PRIMARY KEY, body BLOB NOT NULL);
"""


class Outbox:
    """The node's `Store`.

    The epoch is drawn once, when the file is made: a node that lost its disk is a new incarnation and can
    never reuse an update's id.
    """

    def __init__(self, folder: Path, node: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._node = node
        path = folder / FILE_NAME
        self._database = Database(path, _SCHEMA, synchronous="FULL", max_bytes=_MAX_BYTES)
        self.quarantined = self._database.quarantined

    async def load(self) -> Books:
        """Return the books, drawing the epoch at the first start. Raises StoreError."""
        epoch = secrets.randbits(_EPOCH_BITS)
        await self._database.transact(lambda db: _identify(db, self._node, epoch))
        return await self._database.read(_read_books)

    async def save(self, rows: tuple[Any, ...]) -> None:
        """Write the rows in one transaction. Raises StoreError."""
        await self._database.transact(lambda db: _write(db, rows))

    async def close(self) -> None:
        """Close the file."""
        await self._database.close()


def _identify(connection: sqlite3.Connection, node: str, epoch: int) -> None:
    connection.execute(
        "INSERT INTO identity SELECT ?, ? WHERE NOT EXISTS (SELECT * FROM identity)", (node, epoch)
    )


def _write(connection: sqlite3.Connection, rows: tuple[Any, ...]) -> None:
    for row in rows:
        match row:
            case PutUpdate(seq, base_version, body):
                sql = "INSERT INTO issued (seq, base_version, body) VALUES (?, ?, ?)"
                connection.execute(sql, (seq, base_version, body))
            case CloseUpdate(seq, outcome, reason):
                sql = "UPDATE issued SET body = NULL, outcome = ?, reason = ? WHERE seq = ?"
                connection.execute(sql, (outcome, reason, seq))
            case KeepUnit(unit, body):
                sql = "INSERT OR REPLACE INTO unit (name, body) VALUES (?, ?)"
                connection.execute(sql, (unit, body))
            case KeepResidual(unit, None):
                connection.execute("DELETE FROM residual WHERE name = ?", (unit,))
            case KeepResidual(unit, body):
                sql = "INSERT OR REPLACE INTO residual (name, body) VALUES (?, ?)"
                connection.execute(sql, (unit, body))
            case KeepPersonal(unit, body):
                sql = "INSERT OR REPLACE INTO personal (name, body) VALUES (?, ?)"
                connection.execute(sql, (unit, body))
            case _:
                raise TypeError(f"an outbox has no row {row!r}")


def _read_books(connection: sqlite3.Connection) -> Books:
    node, epoch = connection.execute("SELECT node, epoch FROM identity").fetchone()
    outcomes = Counter(dict(connection.execute("SELECT outcome, count(*) FROM issued GROUP BY 1")))
    rejected = "SELECT reason, count(*) FROM issued WHERE outcome = 'rejected' GROUP BY 1"
    last = "SELECT coalesce(max(seq), 0), coalesce(max(base_version), -1) FROM issued"
    issued, last_base_version = connection.execute(last).fetchone()
    held = "SELECT seq, body FROM issued WHERE outcome = '' ORDER BY seq"
    return Books(
        node=node,
        epoch=epoch,
        issued=issued,
        applied=outcomes["applied"],
        rejected=dict(connection.execute(rejected)),
        expired=outcomes["expired"],
        last_base_version=last_base_version,
        outbox=dict(connection.execute(held)),
        units=dict(connection.execute("SELECT name, body FROM unit")),
        residuals=dict(connection.execute("SELECT name, body FROM residual")),
        personal=dict(connection.execute("SELECT name, body FROM personal")),
    )


def read_books(folder: Path) -> Books:
    """Return the books of a node that is not running. Raises sqlite3.Error for a file that is none."""
    path = folder / FILE_NAME
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        return _read_books(connection)
    finally:
        connection.close()
