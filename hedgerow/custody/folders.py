"""A tier's folder as files: whose it is, its databases, and whether a process is at work in it.

Audit and backup read the files' format by themselves: what checks a tier must not be that tier's own code.
"""

import fcntl
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hedgerow.core.errors import ConfigError
from hedgerow.custody.errors import CustodyError
from hedgerow.runtime.walcheck import lost_frames

Role = Literal["aggregator", "gateway", "node"]
LEDGER, OUTBOX, MODELS = "ledger.sqlite3", "outbox.sqlite", "models"
MODEL_SUFFIX = ".safetensors"
Progress = Callable[[str, int, int], None]
"""Told what is being copied, how many bytes of it are done, and of how many."""

_DATABASES = ("*.sqlite", "*.sqlite3")
_COPY_PAGES = 1024
# Where SQLite's lock bytes lie in every database file: a WAL connection holds the shared ones while open.
_SHARED_FIRST, _SHARED_BYTES = 0x40000002, 510


@dataclass(frozen=True)
class TierFolder:
    """One tier's folder and its databases, in the order of their names."""

    path: Path
    role: Role
    databases: tuple[Path, ...]


def find_tier(folder: Path) -> TierFolder | None:
    """Return what a folder is, None where it holds no database of ours."""
    if not folder.is_dir():
        return None
    found = tuple(sorted(path for pattern in _DATABASES for path in folder.glob(pattern)))
    names = {path.name for path in found}
    if LEDGER in names:
        return TierFolder(folder, "aggregator", found)
    if OUTBOX in names:
        return TierFolder(folder, "node", found)
    return TierFolder(folder, "gateway", found) if found else None


def tier_of(folder: Path) -> TierFolder:
    """Return what a folder is; raises ConfigError for one that is no tier's."""
    tier = find_tier(folder)
    if tier is None:
        raise ConfigError(
            f"DIR: {folder} holds no {LEDGER}, {OUTBOX} or gateway's spool; name the folder given to"
            " `hedgerow aggregator`, `node` or `gateway` as --dir"
        )
    return tier


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open a database without changing it. Raises CustodyError where there is none."""
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)
        connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except sqlite3.Error as error:
        raise CustodyError(f"{path}: cannot be read: {error}") from error
    return connection


def copy_database(connection: sqlite3.Connection, target: Path, progress: Progress) -> None:
    """Copy what an open transaction sees into a new, self-contained file.

    Raises CustodyError where the copy is not sound: then the original is damaged.
    """

    def told(_status: int, remaining: int, total: int) -> None:
        progress(target.name, total - remaining, total)

    with closing(sqlite3.connect(target, isolation_level=None)) as copy:
        connection.backup(copy, pages=_COPY_PAGES, progress=told)
        # One file, without a log beside it.
        copy.execute("PRAGMA journal_mode = DELETE").fetchone()
        check_sound(copy, target.name)


def check_sound(connection: sqlite3.Connection, name: str) -> None:
    """Raise CustodyError unless every page and index of a database is sound."""
    try:
        verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        verdict = str(error)
    if verdict != "ok":
        raise CustodyError(f"{name} is damaged: {verdict}; put an earlier backup back")


def columns(connection: sqlite3.Connection, table: str) -> set[str]:
    """Return the names of a table's columns, none where there is no such table."""
    return {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}


def is_restored(connection: sqlite3.Connection) -> bool:
    """Whether a database was put back from a backup and its process has not started since."""
    query = "SELECT count(*) FROM meta WHERE key = 'restored' AND value = '1'"
    return bool(columns(connection, "meta")) and connection.execute(query).fetchone()[0] > 0


def in_use(database: Path) -> bool:
    """Whether another process has a database open."""
    with database.open("r+b") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, _SHARED_BYTES, _SHARED_FIRST)
        except OSError:
            return True
        fcntl.lockf(file, fcntl.LOCK_UN, _SHARED_BYTES, _SHARED_FIRST)
    return False


def lost_commits(tier: TierFolder) -> list[str]:
    """Return what a folder's databases have lost to damage in their logs; ask while no process is in it."""
    counts = {database: lost_frames(database) for database in tier.databases}
    return [
        f"{database}: {pages} pages of its last commits are damaged"
        for database, pages in counts.items()
        if pages
    ]


def refuse_in_use(tier: TierFolder, why: str) -> None:
    """Raise ConfigError while a process is at work in a folder."""
    for database in tier.databases:
        if in_use(database):
            raise ConfigError(f"{database} is open in a running process; {why}")


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
