"""The aggregator's memory: versions, the updates settled by each, and the partials to be merged.

Parameters are written as files first; what refers to them follows in one transaction. A file
without its row is what a crash in between leaves, and is removed at the next start.
"""

import asyncio
import json
import math
import sqlite3
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

from aggregator.model_files import ModelFiles
from aggregator.rows import (
    AcceptPartial,
    CommitVersion,
    DropPartials,
    LedgerRow,
    SaveMetrics,
    Snapshot,
)
from hedgerow.core.codec import decode, encode
from hedgerow.core.errors import ConfigError
from hedgerow.core.messages import Descriptor, Header, Partial, UpdateId
from hedgerow.core.units import Vector
from hedgerow.runtime.ports import StoreError
from hedgerow.runtime.store import Database, set_aside

FILE_NAME = "ledger.sqlite3"
KEPT_VERSIONS = 3
"""The current version and the two before it, whose units gateways may still ask for."""

_SCHEMA = """
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


class Ledger:
    """The aggregator's `Store`: everything that must outlive the process, in one folder.

    `quarantined` is where a damaged ledger was moved at the start, with its model files beside it;
    the caller must say so loudly, because updates settled in it are no longer known.
    """

    def __init__(
        self, folder: Path, database: Database, files: ModelFiles, checkpoint_versions: int
    ) -> None:
        self._folder = folder
        self.quarantined = database.quarantined
        self._database = database
        self._files = files
        self._checkpoint_versions = checkpoint_versions

    @classmethod
    async def open(
        cls,
        folder: Path,
        expected_model: str,
        *,
        checkpoint_versions: int = 50,
        max_bytes: int = 16 << 30,
    ) -> "Ledger":
        """Open or create the ledger in `folder`.

        Every version that is a multiple of `checkpoint_versions` is a checkpoint. Raises
        ConfigError where the folder holds another model, StoreError where it cannot be used.
        """
        open_files = partial(_open_files, folder, max_bytes)
        database, files = await asyncio.to_thread(open_files)
        ledger = cls(folder, database, files, checkpoint_versions)
        try:
            await ledger._check_model(expected_model, folder)
            await database.read(ledger._prune)
        except BaseException:
            await database.close()
            raise
        return ledger

    async def save(self, rows: tuple[Any, ...]) -> None:
        """Write the rows in one transaction, in order; see `Store.save`.

        Raises StoreError: nothing of `rows` is kept then, and no repeat is ever ignored.
        """
        await self._database.transact(partial(self._write, rows))
        if any(isinstance(row, CommitVersion) for row in rows):
            # Only what is committed may decide which files go: not part of the transaction.
            await self._database.read(self._prune)

    async def load(self) -> Snapshot | None:
        """Return everything durable under a term one above the last, the first being 1.

        None before the first version: save one and load again. Raises StoreError where the newest
        version's parameters are missing or damaged.
        """
        if not await self._database.transact(_next_term):
            return None
        return await self._database.read(self._snapshot)

    async def blob(self, digest: str) -> bytes | None:
        """Return a kept unit's bytes as published; None for one that is not kept.

        Kept are the units of the last three versions and of the checkpoint. Raises StoreError where
        the file is damaged.
        """
        return await asyncio.to_thread(self._files.unit, digest)

    async def merge_inputs(self, version: int) -> tuple[Partial, ...]:
        """Return the partials merged into `version`, in the order of their merge."""
        query = "SELECT body FROM partials WHERE merged_version = ? ORDER BY merge_order"
        return await self._database.read(lambda connection: _partials(connection, query, version))

    async def params(self, version: int) -> Vector | None:
        """Return the parameters of a version, shape (P,); None where its file is not kept.

        Raises StoreError where the file is damaged.
        """
        kept = await self._database.read(self._kept)
        for file, descriptor in kept:
            if descriptor.version == version:
                return await asyncio.to_thread(self._files.read, file, descriptor)
        return None

    async def counts(self) -> dict[str, int]:
        """Return how much is stored: rows by kind, model files and their bytes."""
        counts = await self._database.read(_count_rows)
        sizes = await asyncio.to_thread(self._files.sizes)
        return counts | {"model_files": len(sizes), "model_bytes": sum(sizes)}

    def damaged_files(self) -> list[Path]:
        """Return what was set aside as damaged, at this start or at an earlier one."""
        return sorted(self._folder.glob("*.corrupt-*"))

    async def close(self) -> None:
        """Commit what is waiting and close."""
        await self._database.close()

    def _write(self, rows: tuple[Any, ...], connection: sqlite3.Connection) -> None:
        for row in rows:
            if isinstance(row, CommitVersion):
                _commit(connection, row, self._files.write(row.descriptor, row.params))
            else:
                _WRITERS[type(row)](connection, row)

    def _snapshot(self, connection: sqlite3.Connection) -> Snapshot:
        versions = _versions(connection)
        file, newest = versions[-1]
        waiting = "SELECT body FROM partials WHERE merged_version IS NULL ORDER BY position"
        (term,) = connection.execute("SELECT value FROM term").fetchone()
        return Snapshot(
            term=term,
            descriptors=tuple(descriptor for _, descriptor in versions),
            params=self._files.read(file, newest),
            ledger=_ledger_rows(connection),
            waiting=_partials(connection, waiting),
            metrics=_metrics(connection),
        )

    def _kept(self, connection: sqlite3.Connection) -> list[tuple[str, Descriptor]]:
        """Return the versions whose parameters are kept, oldest first."""
        last = "SELECT version FROM versions ORDER BY version DESC LIMIT ?"
        checkpoint = "SELECT MAX(version) FROM versions WHERE version % ? = 0"
        where = f"WHERE version IN ({last}) OR version = ({checkpoint})"
        return _versions(connection, where, KEPT_VERSIONS, self._checkpoint_versions)

    def _prune(self, connection: sqlite3.Connection) -> None:
        self._files.keep(dict(self._kept(connection)))

    async def _check_model(self, expected: str, folder: Path) -> None:
        newest = await self._database.read(
            lambda connection: _versions(
                connection, "WHERE version = (SELECT MAX(version) FROM versions)"
            )
        )
        found = newest[0][1].model if newest else expected
        if found != expected:
            raise ConfigError(
                f"fleet.model: {expected!r}, but {folder} holds model {found!r}; name that one"
                " or give the aggregator another folder"
            )


def _open_files(folder: Path, max_bytes: int) -> tuple[Database, ModelFiles]:
    path, models = folder / FILE_NAME, folder / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        database = Database(path, _SCHEMA, synchronous="FULL", max_bytes=max_bytes)
        if database.quarantined is not None and models.exists():
            # Without their rows these would be taken for orphans; they may be all that is left.
            set_aside(models)
        models.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be used: {error}") from error
    return database, ModelFiles(models)


def _next_term(connection: sqlite3.Connection) -> bool:
    """Begin a term; return False, and begin none, before the first version."""
    (begun,) = connection.execute("SELECT EXISTS (SELECT 1 FROM versions)").fetchone()
    if begun:
        connection.execute(
            "INSERT INTO term VALUES (1, 1) ON CONFLICT DO UPDATE SET value = value + 1"
        )
    return bool(begun)


def _accept(connection: sqlite3.Connection, row: AcceptPartial) -> None:
    try:
        connection.execute(
            "INSERT INTO partials (id, body) VALUES (?, ?)", (row.partial.id, encode(row.partial))
        )
    except sqlite3.IntegrityError as error:
        raise StoreError(f"partial {row.partial.id!r} is waiting already") from error


def _commit(connection: sqlite3.Connection, row: CommitVersion, file: str) -> None:
    version = row.descriptor.version
    try:
        connection.execute(
            "INSERT INTO versions VALUES (?, ?, ?)", (version, encode(row.descriptor), file)
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


def _settle(connection: sqlite3.Connection, header: Header, version: int) -> None:
    kappa = None if math.isnan(header.kappa) else header.kappa
    key = (header.id.node, header.id.epoch, header.id.seq)
    values = (*key, header.base_version, header.examples, kappa, version)
    try:
        connection.execute("INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?, ?)", values)
    except sqlite3.IntegrityError as error:
        raise StoreError(
            f"update {key} is in the ledger already; it must not count twice"
        ) from error


def _save_metrics(connection: sqlite3.Connection, row: SaveMetrics) -> None:
    text = json.dumps(dict(row.metrics))
    connection.execute("INSERT OR REPLACE INTO metrics VALUES (?, ?)", (row.version, text))


def _drop(connection: sqlite3.Connection, row: DropPartials) -> None:
    """Forget merge inputs, and descriptors that no update to come or waiting refers to."""
    connection.execute("DELETE FROM partials WHERE merged_version <= ?", (row.through_version,))
    connection.execute("DELETE FROM versions WHERE version < ?", (row.needed_from,))


_WRITERS: dict[type, Callable[[sqlite3.Connection, Any], None]] = {
    AcceptPartial: _accept,
    SaveMetrics: _save_metrics,
    DropPartials: _drop,
}


def _versions(
    connection: sqlite3.Connection, where: str = "", *values: int
) -> list[tuple[str, Descriptor]]:
    query = f"SELECT file, descriptor FROM versions {where} ORDER BY version"  # noqa: S608
    rows = connection.execute(query, values)
    return [(file, cast("Descriptor", decode(body, len(body)))) for file, body in rows]


def _partials(connection: sqlite3.Connection, query: str, *values: int) -> tuple[Partial, ...]:
    return tuple(
        cast("Partial", decode(body, len(body))) for (body,) in connection.execute(query, values)
    )


def _ledger_rows(connection: sqlite3.Connection) -> tuple[LedgerRow, ...]:
    query = (
        "SELECT node, epoch, seq, base_version, examples, kappa, version FROM ledger ORDER BY rowid"
    )
    return tuple(
        LedgerRow(
            Header(UpdateId(*row[:3]), row[3], row[4], math.nan if row[5] is None else row[5]),
            row[6],
        )
        for row in connection.execute(query)
    )


def _metrics(connection: sqlite3.Connection) -> dict[int, dict[str, float]]:
    rows = connection.execute("SELECT version, metrics FROM metrics ORDER BY version")
    return {version: json.loads(text) for version, text in rows}


def _count_rows(connection: sqlite3.Connection) -> dict[str, int]:
    queries = {
        "versions": "SELECT COUNT(*) FROM versions",
        "settled_updates": "SELECT COUNT(*) FROM ledger",
        "waiting_partials": "SELECT COUNT(*) FROM partials WHERE merged_version IS NULL",
        "merged_partials": "SELECT COUNT(*) FROM partials WHERE merged_version IS NOT NULL",
        "term": "SELECT COALESCE(MAX(value), 0) FROM term",
    }
    return {name: connection.execute(query).fetchone()[0] for name, query in queries.items()}


def read_ledger(folder: Path) -> tuple[LedgerRow, ...]:
    """Return the ledger of an aggregator that is not running. Raises sqlite3.Error for no ledger."""
    connection = sqlite3.connect(f"file:{folder / FILE_NAME}?mode=ro", uri=True)
    try:
        return _ledger_rows(connection)
    finally:
        connection.close()
