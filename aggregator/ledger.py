"""The aggregator's memory: versions, the updates settled by each, and the partials to be merged.

Parameters are written as files first; what refers to them follows in one transaction. A file
without its row is what a crash in between leaves, and is removed at the next start.
"""

import asyncio
import sqlite3
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from aggregator import ledger_rows
from aggregator.ledger_check import Findings, check
from aggregator.model_files import ModelFiles
from aggregator.rows import CommitVersion, DropPartials, LedgerRow, Snapshot
from hedgerow.core.errors import ConfigError
from hedgerow.core.messages import Descriptor, Partial
from hedgerow.core.units import Vector
from hedgerow.runtime.files import set_aside
from hedgerow.runtime.ports import StoreError
from hedgerow.runtime.store import Database

FILE_NAME = "ledger.sqlite3"
KEPT_VERSIONS = 3
"""The current version and the two before it, whose units gateways may still ask for."""


class Ledger:
    """The aggregator's `Store`: everything that must outlive the process, in one folder.

    `quarantined` is where a damaged ledger was moved at the start, with its model files beside it;
    the caller must say so loudly, because updates settled in it are no longer known. `findings` are what
    was damaged and could be left out.
    """

    def __init__(
        self, folder: Path, database: Database, files: ModelFiles, checkpoint_versions: int
    ) -> None:
        self._folder = folder
        self.quarantined = database.quarantined
        self.findings = Findings()
        self._database = database
        self._files = files
        self._checkpoint_versions = checkpoint_versions

    @property
    def full(self) -> bool:
        """Whether the disk is full."""
        return self._database.full

    @classmethod
    async def open(
        cls,
        folder: Path,
        expected_model: str,
        *,
        checkpoint_versions: int = 50,
        max_bytes: int = 16 << 30,
        ballast_bytes: int = 0,
    ) -> "Ledger":
        """Open or create the ledger in `folder`; it checks what it finds, and sets aside what is damaged.

        Every version that is a multiple of `checkpoint_versions` is a checkpoint. Raises
        ConfigError where the folder holds another model, StoreError where it cannot be used.
        """
        open_files = partial(_open_files, folder, max_bytes, ballast_bytes)
        database, files = await asyncio.to_thread(open_files)
        ledger = cls(folder, database, files, checkpoint_versions)
        try:
            looked = partial(check, lost_frames=database.lost_frames)
            ledger.findings = await database.transact(looked, grows=False)
            await ledger._check_model(expected_model, folder)
            if not ledger.findings.restored:
                await database.read(ledger._prune)
        except BaseException:
            await database.close()
            raise
        return ledger

    async def save(self, rows: tuple[Any, ...]) -> None:
        """Write the rows in one transaction, in order; see `Store.save`.

        Raises StoreError: nothing of `rows` is kept then, and no repeat is ever ignored.
        """
        ends_only = all(isinstance(row, DropPartials) for row in rows)
        await self._database.transact(partial(self._write, rows), grows=not ends_only)
        if any(isinstance(row, CommitVersion) for row in rows):
            # Only what is committed may decide which files go: not part of the transaction.
            await self._database.read(self._prune)

    async def load(self) -> Snapshot | None:
        """Return everything durable under a term one above the last, the first being 1.

        None before the first version: save one and load again. Raises StoreError where the newest
        version's parameters are missing or damaged.
        """
        if not await self._database.transact(ledger_rows.next_term, grows=False):
            return None
        return await self._database.read(self._snapshot)

    async def blob(self, digest: str) -> bytes | None:
        """Return a kept unit's bytes as published; None for one that is not kept.

        Kept are the units of the last three versions and of the checkpoint. Raises StoreError where
        the file is damaged.
        """
        return await asyncio.to_thread(self._files.unit, digest)

    async def merge_inputs(self, version: int) -> tuple[Partial, ...]:
        """Return the partials merged into `version`, in their order. Raises StoreError for a damaged one."""
        where = "WHERE merged_version = ? ORDER BY merge_order"
        return await self._database.read(
            lambda connection: ledger_rows.partials(connection, where, version)
        )

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
        counts = await self._database.read(ledger_rows.count_rows)
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
                file = self._files.write(row.descriptor, row.params)
                ledger_rows.commit(connection, row, file)
            else:
                ledger_rows.WRITERS[type(row)](connection, row)

    def _snapshot(self, connection: sqlite3.Connection) -> Snapshot:
        versions = ledger_rows.versions(connection)
        (term,) = connection.execute("SELECT value FROM term").fetchone()
        found = self.findings
        return Snapshot(
            term=term,
            descriptors=tuple(descriptor for _, descriptor in versions),
            params=self._newest_params(*versions[-1]),
            ledger=ledger_rows.ledger_rows(connection),
            waiting=ledger_rows.partials(
                connection, "WHERE merged_version IS NULL ORDER BY position"
            ),
            metrics=ledger_rows.metrics(connection),
            restored=found.restored,
            newest_seen=found.newest_seen,
            damage=found.damage,
        )

    def _newest_params(self, file: str, newest: Descriptor) -> Vector:
        """Return the newest version's parameters, if they can be read although its descriptor is damaged."""
        if self.findings.newest_file not in ("", file):
            with suppress(StoreError):
                return self._files.read(self.findings.newest_file, newest)
        return self._files.read(file, newest)

    def _kept(self, connection: sqlite3.Connection) -> list[tuple[str, Descriptor]]:
        """Return the versions whose parameters are kept, oldest first."""
        last = "SELECT version FROM versions ORDER BY version DESC LIMIT ?"
        checkpoint = "SELECT MAX(version) FROM versions WHERE version % ? = 0"
        where = f"WHERE version IN ({last}) OR version = ({checkpoint})"
        return ledger_rows.versions(connection, where, KEPT_VERSIONS, self._checkpoint_versions)

    def _prune(self, connection: sqlite3.Connection) -> None:
        self._files.keep(dict(self._kept(connection)))

    async def _check_model(self, expected: str, folder: Path) -> None:
        newest = await self._database.read(
            lambda connection: ledger_rows.versions(
                connection, "WHERE version = (SELECT MAX(version) FROM versions)"
            )
        )
        found = newest[0][1].model if newest else expected
        if found != expected:
            raise ConfigError(
                f"fleet.model: {expected!r}, but {folder} holds model {found!r}; name that one"
                " or give the aggregator another folder"
            )


def _open_files(folder: Path, max_bytes: int, ballast_bytes: int) -> tuple[Database, ModelFiles]:
    path, models = folder / FILE_NAME, folder / "models"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        database = Database(
            path,
            ledger_rows.SCHEMA,
            synchronous="FULL",
            max_bytes=max_bytes,
            ballast_bytes=ballast_bytes,
            upgrades=ledger_rows.UPGRADES,
        )
        if database.quarantined is not None and models.exists():
            # Without their rows these would be taken for orphans; they may be all that is left.
            set_aside(models)
        models.mkdir(exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder}: cannot be used: {error}") from error
    return database, ModelFiles(models)


def read_ledger(folder: Path) -> tuple[LedgerRow, ...]:
    """Return the ledger of an aggregator that is not running. Raises sqlite3.Error for no ledger."""
    connection = sqlite3.connect(f"file:{folder / FILE_NAME}?mode=ro", uri=True)
    try:
        return ledger_rows.ledger_rows(connection)
    finally:
        connection.close()
