"""`hedgerow backup`: a consistent copy of one tier's folder, whether its process runs or not."""

import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

import hedgerow
from hedgerow.core.codec import decode
from hedgerow.core.errors import ConfigError
from hedgerow.core.messages import Descriptor
from hedgerow.core.units import digest
from hedgerow.custody.archive import BackupManifest, FileEntry, entry_of, write_archive
from hedgerow.custody.errors import CustodyError
from hedgerow.custody.folders import (
    LEDGER,
    MODEL_SUFFIX,
    MODELS,
    Progress,
    TierFolder,
    columns,
    copy_database,
    in_use,
    lost_commits,
    open_read_only,
    sync_folder,
    tier_of,
)

_TRIES = 5
_GZIP = (".gz", ".tgz")
_TAR = ".tar"


@dataclass(frozen=True)
class _Described:
    """What the manifest says of the tier beside its files."""

    model: str = ""
    version: int = 0
    term: int = 0
    node: str = ""
    epoch: int = 0
    left_out: tuple[str, ...] = ()


class _MovedOnError(Exception):
    """The aggregator removed a file that its copied ledger needs: the copy must be made anew."""


def make_backup(folder: Path, file: Path, progress: Progress) -> BackupManifest:
    """Write a backup of `folder` to `file` and return what is in it; an older `file` is replaced whole.

    Raises ConfigError for a folder of no tier or a file name that says no format, CustodyError where the
    folder is damaged, OSError where the disk refuses. Then `file` is as it was.
    """
    tier = tier_of(folder)
    if file.suffix not in (*_GZIP, _TAR):
        raise ConfigError(f"FILE: {file} must end in .tar, .tar.gz or .tgz")
    if file.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"FILE: {file} lies inside {folder}; keep backups elsewhere")
    for _ in range(_TRIES):
        try:
            return _attempt(tier, file, progress)
        except _MovedOnError:
            continue
    raise CustodyError(
        f"{folder}: model files went {_TRIES} times while they were read; stop the aggregator, or"
        " write the backup to a faster disk"
    )


def _attempt(tier: TierFolder, file: Path, progress: Progress) -> BackupManifest:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{file.name}.", dir=file.parent) as scratch:
        with ExitStack() as opened:
            files, described = _collect(tier, Path(scratch), opened, progress)
            fresh = Path(scratch) / "fresh"
            manifest = _manifest(tier, files, described)
            with fresh.open("wb") as output:
                write_archive(output, manifest, files, compress=file.suffix in _GZIP)
                output.flush()
                os.fsync(output.fileno())
        fresh.replace(file)
    sync_folder(file.parent)
    return manifest


def _collect(
    tier: TierFolder, scratch: Path, opened: ExitStack, progress: Progress
) -> tuple[dict[str, IO[bytes]], _Described]:
    """Return open files by name, and what the manifest says of them."""
    files: dict[str, IO[bytes]] = {}
    described = _Described()
    # While a process is at work its log changes under the eyes that check it.
    idle = not any(in_use(database) for database in tier.databases)
    lost = lost_commits(tier) if idle else []
    for database in tier.databases:
        with _snapshot(database) as connection:
            if tier.role == "aggregator" and database.name == LEDGER:
                # Opened before the long copy: an open file outlives its name.
                models, described = _open_models(connection, tier.path / MODELS, opened)
                files |= models
            elif tier.role == "node":
                described = _describe_node(connection)
            copy_database(connection, scratch / database.name, progress)
        files[database.name] = opened.enter_context((scratch / database.name).open("rb"))
    return files, replace(described, left_out=(*described.left_out, *lost))


@contextmanager
def _snapshot(database: Path) -> Iterator[sqlite3.Connection]:
    """Yield a connection that sees the database as it is now, whatever is written meanwhile."""
    with closing(open_read_only(database)) as connection:
        connection.isolation_level = None
        connection.execute("BEGIN")
        try:
            connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            yield connection
        except sqlite3.DatabaseError as error:
            raise CustodyError(f"{database}: cannot be copied: {error}") from error


def _open_models(
    connection: sqlite3.Connection, folder: Path, opened: ExitStack
) -> tuple[dict[str, IO[bytes]], _Described]:
    """Open the model files that the ledger refers to and that are still kept, the newest version's first."""
    rows = connection.execute("SELECT file, descriptor FROM versions ORDER BY version DESC")
    names, newest = [], None
    for name, body in rows:
        names.append(name)
        newest = newest or decode(body, len(body))
    if not isinstance(newest, Descriptor):
        raise CustodyError(f"{folder.parent}: no version has been published yet")
    files, damaged = _sound_files(folder, names, opened)
    (term,) = connection.execute("SELECT coalesce(max(value), 0) FROM term").fetchone()
    described = _Described(
        model=newest.model, version=newest.version, term=term, left_out=tuple(damaged)
    )
    return files, described


def _sound_files(
    folder: Path, names: list[str], opened: ExitStack
) -> tuple[dict[str, IO[bytes]], list[str]]:
    files: dict[str, IO[bytes]] = {}
    damaged = []
    for name in dict.fromkeys(names):
        path = folder / f"{name}{MODEL_SUFFIX}"
        inside = f"{MODELS}/{path.name}"
        try:
            file = opened.enter_context(path.open("rb"))
        except FileNotFoundError:
            if name == names[0]:
                raise _MovedOnError from None
            continue
        if digest(file.read()) == name:
            file.seek(0)
            files[inside] = file
        elif name == names[0]:
            raise CustodyError(
                f"{path} is damaged, and it is the newest version; put an earlier backup back"
            )
        else:
            damaged.append(inside)
    return files, damaged


def _describe_node(connection: sqlite3.Connection) -> _Described:
    row = connection.execute("SELECT node, epoch FROM identity").fetchone()
    if row is None:
        return _Described()
    # The first release had one epoch, its number in `identity` only.
    table, order = ("epoch", "number") if columns(connection, "epoch") else ("identity", "rowid")
    query = f"SELECT epoch FROM {table} ORDER BY {order} DESC"  # noqa: S608
    return _Described(node=row[0], epoch=connection.execute(query).fetchone()[0])


def _manifest(
    tier: TierFolder, files: dict[str, IO[bytes]], described: _Described
) -> BackupManifest:
    entries: list[FileEntry] = [entry_of(name, file) for name, file in sorted(files.items())]
    label = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return BackupManifest(
        role=tier.role,
        hedgerow=hedgerow.__version__,
        made_at=label,
        files=entries,
        **asdict(described),
    )
