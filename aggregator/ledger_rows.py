"""The ledger's tables, and how rows get into them and out again.

Bodies carry a checksum, because SQLite does not see a bit that flips inside a row; rows of an older release
have none, and are believed.

A commit that was reported as failed may be on the disk all the same: so a row that is there already, to the
last bit, is no fault, and one that differs is.
"""

import json
import math
import sqlite3
from collections.abc import Callable
from typing import Any

from aggregator.rows import (
    AcceptPartial,
    CommitVersion,
    DropPartials,
    LedgerRow,
    SaveMetrics,
    SetAside,
)
from hedgerow.core.codec import decode, encode
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Descriptor, Header, Partial, UpdateId
from hedgerow.runtime.crc import checksum
from hedgerow.runtime.ports import StoreError

SCHEMA = """
CREATE TABLE IF NOT EXISTS term (only INTEGER PRIMARY KEY CHECK (only = 1), value INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS versions (
    version INTEGER PRIMARY KEY, descriptor BLOB NOT NULL, file TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS ledger (
    node TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    base_version INTEGER NOT NULL, examples INTEGER NOT NULL, kappa REAL,
    version INTEGER NOT NULL, PRIMARY KEY (node, epoch, seq));
CREATE TABLE IF NOT EXISTS partials (
    position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, body BLOB NOT NULL,
    merged_version INTEGER, merge_order INTEGER);
CREATE UNIQUE INDEX IF NOT EXISTS waiting ON partials (id) WHERE merged_version IS NULL;
CREATE INDEX IF NOT EXISTS merged ON partials (merged_version) WHERE merged_version IS NOT NULL;
CREATE TABLE IF NOT EXISTS metrics (version INTEGER PRIMARY KEY, metrics TEXT NOT NULL);
"""

UPGRADES = (
    """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE damaged (kind TEXT NOT NULL, name TEXT NOT NULL, position INTEGER,
    body BLOB NOT NULL, reason TEXT NOT NULL);
ALTER TABLE versions ADD COLUMN crc INTEGER;
ALTER TABLE partials ADD COLUMN crc INTEGER;
ALTER TABLE ledger ADD COLUMN hash INTEGER NOT NULL DEFAULT 0;
INSERT OR IGNORE INTO meta SELECT 'dropped_position', COALESCE(MAX(seq), 0) FROM sqlite_sequence
    WHERE name = 'partials'
""",
)

DROPPED_POSITION = "dropped_position"
"""Key of `meta`: up to there, positions of partials may be missing, for they were dropped on purpose."""

RESTORED = "restored"
"""Key of `meta`: "1" after a restore, or why else versions may be lost; until the next commit."""

NEWEST_SEEN, NEWEST_FILE = "newest_seen", "newest_file"
"""Keys of `meta` beside it: the newest version there was, and its parameters' file."""


class DamagedError(Exception):
    """A body is not what was written."""


def checked(body: bytes, crc: int | None) -> Any:
    """Return the message in a row's body. Raises DamagedError where it is not what was written."""
    if crc is not None and checksum(body) != crc:
        raise DamagedError("its checksum does not match")
    try:
        return decode(body, len(body))
    except PeerError as error:
        raise DamagedError(str(error)) from error


def meta(connection: sqlite3.Connection, key: str) -> str:
    """Return a value of the table `meta`, "" for none."""
    found = connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return found[0] if found else ""


def next_term(connection: sqlite3.Connection) -> bool:
    """Begin a term; return False, and begin none, before the first version."""
    (begun,) = connection.execute("SELECT EXISTS (SELECT 1 FROM versions)").fetchone()
    if begun:
        connection.execute(
            "INSERT INTO term VALUES (1, 1) ON CONFLICT DO UPDATE SET value = value + 1"
        )
    return bool(begun)


# In.


def commit(connection: sqlite3.Connection, row: CommitVersion, file: str) -> None:
    """Write a version whose parameters are in `file`. Raises StoreError for what would count twice."""
    version, body = row.descriptor.version, encode(row.descriptor)
    if _is_committed(connection, row, body):
        return
    try:
        connection.execute(
            "INSERT INTO versions (version, descriptor, file, crc) VALUES (?, ?, ?, ?)",
            (version, body, file, checksum(body)),
        )
    except sqlite3.IntegrityError as error:
        raise StoreError(f"version {version} exists already; a number is never reused") from error
    for header in row.headers:
        _settle(connection, header, version)
    for order, partial_id in enumerate(row.partial_ids):
        changed = connection.execute(
            "UPDATE partials SET merged_version = ?, merge_order = ?"
            " WHERE id = ? AND merged_version IS NULL",
            (version, order, partial_id),
        ).rowcount
        if changed != 1:
            raise StoreError(
                f"version {version} merges partial {partial_id!r}, which is not waiting"
            )
    # The first commit after a restore begins a new life of version numbers.
    keys = (RESTORED, NEWEST_SEEN, NEWEST_FILE)
    connection.execute("DELETE FROM meta WHERE key IN (?, ?, ?)", keys)


def _is_committed(connection: sqlite3.Connection, row: CommitVersion, body: bytes) -> bool:
    """Whether this very commit is here: a start, known by its term, makes a version once."""
    version = row.descriptor.version
    query = (
        "SELECT descriptor, (SELECT COUNT(*) FROM ledger WHERE version = ?)"
        " FROM versions WHERE version = ?"
    )
    found = connection.execute(query, (version, version)).fetchone()
    return found is not None and found == (body, len(row.headers))


def _settle(connection: sqlite3.Connection, header: Header, version: int) -> None:
    kappa = None if math.isnan(header.kappa) else header.kappa
    key = (header.id.node, header.id.epoch, header.id.seq)
    values = (*key, header.base_version, header.examples, kappa, version, header.hash)
    try:
        connection.execute(
            "INSERT INTO ledger (node, epoch, seq, base_version, examples, kappa, version, hash)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
    except sqlite3.IntegrityError as error:
        raise StoreError(
            f"update {key} is in the ledger already; it must not count twice"
        ) from error


def _accept(connection: sqlite3.Connection, row: AcceptPartial) -> None:
    body = encode(row.partial)
    query = "SELECT 1 FROM partials WHERE id = ? AND merged_version IS NULL AND body = ?"
    if connection.execute(query, (row.partial.id, body)).fetchone():
        return
    try:
        connection.execute(
            "INSERT INTO partials (id, body, crc) VALUES (?, ?, ?)",
            (row.partial.id, body, checksum(body)),
        )
    except sqlite3.IntegrityError as error:
        raise StoreError(f"partial {row.partial.id!r} is waiting already") from error


def _save_metrics(connection: sqlite3.Connection, row: SaveMetrics) -> None:
    text = json.dumps(dict(row.metrics))
    connection.execute("INSERT OR REPLACE INTO metrics VALUES (?, ?)", (row.version, text))


def _drop(connection: sqlite3.Connection, row: DropPartials) -> None:
    """Forget merge inputs, and descriptors that no update to come or waiting refers to."""
    query = "SELECT COALESCE(MAX(position), 0) FROM partials WHERE merged_version <= ?"
    (position,) = connection.execute(query, (row.through_version,)).fetchone()
    if position > int(meta(connection, DROPPED_POSITION) or 0):
        connection.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", (DROPPED_POSITION, str(position))
        )
    connection.execute("DELETE FROM partials WHERE merged_version <= ?", (row.through_version,))
    connection.execute("DELETE FROM versions WHERE version < ?", (row.needed_from,))


def set_aside(connection: sqlite3.Connection, row: SetAside) -> None:
    """Move a waiting partial to the table `damaged`."""
    connection.execute(
        "INSERT INTO damaged SELECT 'partial', id, position, body, ? FROM partials"
        " WHERE id = ? AND merged_version IS NULL",
        (row.reason, row.partial_id),
    )
    connection.execute(
        "DELETE FROM partials WHERE id = ? AND merged_version IS NULL", (row.partial_id,)
    )


WRITERS: dict[type, Callable[[sqlite3.Connection, Any], None]] = {
    AcceptPartial: _accept,
    SaveMetrics: _save_metrics,
    DropPartials: _drop,
    SetAside: set_aside,
}

# Out.


def versions(
    connection: sqlite3.Connection, where: str = "", *values: int
) -> list[tuple[str, Descriptor]]:
    """Return the file and the descriptor of each version. Raises StoreError where one is damaged."""
    query = f"SELECT version, file, descriptor, crc FROM versions {where} ORDER BY version"  # noqa: S608
    out = []
    for version, file, body, crc in connection.execute(query, values):
        try:
            out.append((file, checked(body, crc)))
        except DamagedError as error:
            raise StoreError(f"version {version} is damaged: {error}") from error
    return out


def partials(connection: sqlite3.Connection, where: str, *values: int) -> tuple[Partial, ...]:
    """Return partials. Raises StoreError where one is damaged."""
    query = f"SELECT id, body, crc FROM partials {where}"  # noqa: S608
    out = []
    for name, body, crc in connection.execute(query, values):
        try:
            out.append(checked(body, crc))
        except DamagedError as error:
            raise StoreError(f"partial {name} is damaged: {error}") from error
    return tuple(out)


def ledger_rows(connection: sqlite3.Connection) -> tuple[LedgerRow, ...]:
    """Return the whole ledger, oldest row first; a file of an older release knows no hashes."""
    columns = {row[1] for row in connection.execute("PRAGMA table_info(ledger)")}
    content = "hash" if "hash" in columns else "0"
    fields = f"node, epoch, seq, base_version, examples, kappa, version, {content}"
    query = f"SELECT {fields} FROM ledger ORDER BY rowid"  # noqa: S608
    return tuple(_ledger_row(row) for row in connection.execute(query))


def _ledger_row(row: tuple[Any, ...]) -> LedgerRow:
    *key, base_version, examples, kappa, version, content = row
    known = math.nan if kappa is None else kappa
    header = Header(UpdateId(*key), base_version, examples, known, hash=content)
    return LedgerRow(header, version)


def metrics(connection: sqlite3.Connection) -> dict[int, dict[str, float]]:
    """Return each version's evaluation."""
    rows = connection.execute("SELECT version, metrics FROM metrics ORDER BY version")
    return {version: json.loads(text) for version, text in rows}


def count_rows(connection: sqlite3.Connection) -> dict[str, int]:
    """Return how many rows there are by kind, and the last term."""
    queries = {
        "versions": "SELECT COUNT(*) FROM versions",
        "settled_updates": "SELECT COUNT(*) FROM ledger",
        "waiting_partials": "SELECT COUNT(*) FROM partials WHERE merged_version IS NULL",
        "merged_partials": "SELECT COUNT(*) FROM partials WHERE merged_version IS NOT NULL",
        "damaged_rows": "SELECT COUNT(*) FROM damaged",
        "term": "SELECT COALESCE(MAX(value), 0) FROM term",
    }
    return {name: connection.execute(query).fetchone()[0] for name, query in queries.items()}
