"""The node's durable outbox: one SQLite file that holds its identity, its books and its unsettled updates."""

import secrets
import sqlite3
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from edge_node.rows import (
    Books,
    CloseUpdate,
    EpochBooks,
    KeepPersonal,
    KeepResidual,
    KeepUnit,
    NewEpoch,
    PutUpdate,
)
from hedgerow.core.versions import FIRST_PROVISIONAL
from hedgerow.runtime.crc import checksum
from hedgerow.runtime.store import Database

FILE_NAME = "outbox.sqlite"
_EPOCH_BITS = 48
_MAX_BYTES = 1 << 30
_MOST_MISSING = 1000
_SCHEMA = """
CREATE TABLE IF NOT EXISTS identity (node TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS issued (
    seq INTEGER PRIMARY KEY, base_version INTEGER NOT NULL, body BLOB,
    outcome TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS unit (name TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS residual (name TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS personal (name TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_MORE_EPOCHS = """
ALTER TABLE issued RENAME TO of_one_epoch;
CREATE TABLE issued (
    epoch INTEGER NOT NULL, seq INTEGER NOT NULL, base_version INTEGER NOT NULL,
    body BLOB, checksum INTEGER,
    outcome TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (epoch, seq)
);
INSERT INTO issued (epoch, seq, base_version, body, outcome, reason)
    SELECT identity.epoch, seq, base_version, body, outcome, reason FROM of_one_epoch, identity;
DROP TABLE of_one_epoch;
CREATE TABLE epoch (
    number INTEGER PRIMARY KEY, epoch INTEGER NOT NULL UNIQUE, ended TEXT NOT NULL DEFAULT ''
);
INSERT INTO epoch (epoch) SELECT epoch FROM identity
"""
"""A body has a checksum, and an update the epoch it was issued in; `identity` has the first of them."""


class Outbox:
    """The node's `Store`.

    The epoch is drawn when the file is made: a node that lost its disk is a new incarnation and can never
    reuse an update's id. It is drawn again where the disk has lost updates, and after a backup was
    put back.
    """

    def __init__(
        self, folder: Path, node: str, *, max_bytes: int = _MAX_BYTES, ballast_bytes: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._node = node
        self._database = Database(
            folder / FILE_NAME,
            _SCHEMA,
            synchronous="FULL",
            max_bytes=max_bytes,
            ballast_bytes=ballast_bytes,
            upgrades=[_MORE_EPOCHS],
        )
        self.quarantined = self._database.quarantined

    async def load(self) -> Books:
        """Return the books, drawing the epoch at the first start. Raises StoreError."""
        drawn, fresh = secrets.randbits(_EPOCH_BITS), secrets.randbits(_EPOCH_BITS)
        lost = "lost-frames" if self._database.lost_frames else ""

        def begin(connection: sqlite3.Connection) -> tuple[bool, str]:
            found = _identify(connection, self._node, drawn)
            gaps = _fill_gaps(connection)
            ended = _was_restored(connection) or ("gap" if gaps else lost)
            if found and ended:
                _write(connection, (NewEpoch(drawn, ended),))
            return found and not ended, ended if found else ""

        # A node must start on a full disk, too: how else would it ever be emptied.
        found, ended = await self._database.transact(begin, grows=False)
        books = await self._database.read(_read_books)
        return replace(books, found=found, ended=ended, fresh_epoch=fresh)

    async def save(self, rows: tuple[Any, ...]) -> None:
        """Write the rows in one transaction. Raises StoreError."""
        await self._database.transact(lambda db: _write(db, rows), grows=_grow(rows))

    async def close(self) -> None:
        """Close the file."""
        await self._database.close()


def _identify(connection: sqlite3.Connection, node: str, epoch: int) -> bool:
    """Name node and epoch where the file has none; return whether it had."""
    if connection.execute("SELECT * FROM identity").fetchone():
        return True
    connection.execute("INSERT INTO identity VALUES (?, ?)", (node, epoch))
    connection.execute("INSERT INTO epoch (epoch) VALUES (?)", (epoch,))
    return False


def _was_restored(connection: sqlite3.Connection) -> str:
    """Return "restored" where `hedgerow restore` has put this file back, and end its mark."""
    marks = connection.execute("DELETE FROM meta WHERE key = 'restored'").rowcount
    return "restored" if marks else ""


def _fill_gaps(connection: sqlite3.Connection) -> bool:
    """Hold every update whose row is gone as one without a body; return whether there was any.

    So each of them ends as all do: it is offered, and settled if it was applied.
    """
    gaps = False
    for (epoch,) in connection.execute("SELECT epoch FROM epoch").fetchall():
        rows = connection.execute("SELECT seq FROM issued WHERE epoch = ?", (epoch,))
        seqs = {seq for (seq,) in rows}
        missing = (seq for seq in range(1, max(seqs, default=0)) if seq not in seqs)
        filled = [(epoch, seq) for seq in islice(missing, _MOST_MISSING)]
        sql = "INSERT INTO issued (epoch, seq, base_version, body) VALUES (?, ?, -1, x'')"
        connection.executemany(sql, filled)
        gaps = gaps or bool(filled)
    return gaps


def _grow(rows: tuple[Any, ...]) -> bool:
    """Whether rows need more room than they make: on a full disk others are still written."""
    puts = sum(isinstance(row, PutUpdate) for row in rows)
    closes = sum(isinstance(row, CloseUpdate) for row in rows)
    return puts > closes or any(isinstance(row, KeepUnit | KeepPersonal) for row in rows)


def _write(connection: sqlite3.Connection, rows: tuple[Any, ...]) -> None:
    for row in rows:
        match row:
            case PutUpdate(update_id, base_version, body):
                sql = (
                    "INSERT INTO issued (epoch, seq, base_version, body, checksum)"
                    " VALUES (?, ?, ?, ?, ?)"
                )
                values = (update_id.epoch, update_id.seq, base_version, body, checksum(body))
                connection.execute(sql, values)
            case CloseUpdate(update_id, outcome, reason):
                sql = (
                    "UPDATE issued SET body = NULL, outcome = ?, reason = ?"
                    " WHERE epoch = ? AND seq = ?"
                )
                connection.execute(sql, (outcome, reason, update_id.epoch, update_id.seq))
            case NewEpoch(epoch, reason):
                connection.execute("UPDATE epoch SET ended = ? WHERE ended = ''", (reason,))
                connection.execute("INSERT INTO epoch (epoch) VALUES (?)", (epoch,))
            case _:
                _keep(connection, row)


def _keep(connection: sqlite3.Connection, row: Any) -> None:
    match row:
        case KeepUnit(unit, body):
            table = "unit"
        case KeepResidual(unit, body):
            table = "residual"
        case KeepPersonal(unit, body):
            table = "personal"
        case _:
            raise TypeError(f"an outbox has no row {row!r}")
    if body is None:
        connection.execute(f"DELETE FROM {table} WHERE name = ?", (unit,))  # noqa: S608
    else:
        sql = f"INSERT OR REPLACE INTO {table} (name, body) VALUES (?, ?)"  # noqa: S608
        connection.execute(sql, (unit, body))


def _read_books(connection: sqlite3.Connection) -> Books:
    (node,) = connection.execute("SELECT node FROM identity").fetchone()
    epochs = connection.execute("SELECT epoch, ended FROM epoch ORDER BY number").fetchall()
    *former, current = [_read_epoch(connection, node, epoch, ended) for epoch, ended in epochs]
    lane = "SELECT coalesce(max(base_version), -1) FROM issued WHERE base_version"
    (last,) = connection.execute(f"{lane} < ?", (FIRST_PROVISIONAL,)).fetchone()
    (provisional,) = connection.execute(f"{lane} >= ?", (FIRST_PROVISIONAL,)).fetchone()
    return Books(
        node=node,
        epoch=current.epoch,
        issued=current.issued,
        applied=current.applied,
        rejected=current.rejected,
        expired=current.expired,
        coalesced=current.coalesced,
        last_base_version=last,
        last_provisional=provisional,
        outbox=current.outbox,
        units=dict(connection.execute("SELECT name, body FROM unit")),
        residuals=dict(connection.execute("SELECT name, body FROM residual")),
        personal=dict(connection.execute("SELECT name, body FROM personal")),
        former=tuple(former),
    )


def _read_epoch(connection: sqlite3.Connection, node: str, epoch: int, ended: str) -> EpochBooks:
    where = "FROM issued WHERE epoch = ?"
    rows = connection.execute(f"SELECT outcome, count(*) {where} GROUP BY 1", (epoch,))
    outcomes = Counter(dict(rows))
    rejected = f"SELECT reason, count(*) {where} AND outcome = 'rejected' GROUP BY 1"
    return EpochBooks(
        node=node,
        epoch=epoch,
        issued=outcomes.total(),
        applied=outcomes["applied"],
        rejected=dict(connection.execute(rejected, (epoch,))),
        expired=outcomes["expired"],
        coalesced=outcomes["coalesced"],
        outbox=dict(_held(connection, epoch)),
        ended=ended,
    )


def _held(connection: sqlite3.Connection, epoch: int) -> Iterator[tuple[int, bytes]]:
    sql = "SELECT seq, body, checksum FROM issued WHERE epoch = ? AND outcome = '' ORDER BY seq"
    for seq, body, stated in connection.execute(sql, (epoch,)):
        # An update of the first release has no checksum.
        sound = stated is None or checksum(body) == stated
        yield seq, body if sound else b""
