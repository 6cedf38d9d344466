"""How a database file is opened: checked first, set aside where it is damaged, then brought up to date."""

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hedgerow.runtime.crc import checksum
from hedgerow.runtime.files import copy_aside, set_aside
from hedgerow.runtime.ports import StoreError
from hedgerow.runtime.walcheck import lost_frames

PAGE_BYTES = 4096
_LOG, _INDEX = "-wal", "-shm"
_LOG_PAGES = 1000
"""SQLite's own bound on the log before it is written back."""
_LEAST_LOG_PAGES = 64


@dataclass(frozen=True, slots=True)
class Layout:
    """What a file shall be; see `Database`."""

    path: Path
    schema: str
    upgrades: Sequence[str]
    synchronous: Literal["FULL", "NORMAL"]
    max_bytes: int
    ballast_bytes: int

    @property
    def max_pages(self) -> int:
        """The most pages of the file."""
        return max(1, self.max_bytes // PAGE_BYTES)

    @property
    def log_pages(self) -> int:
        """After how many pages the log is written back.

        On a full disk that must fit into the ballast, for the file may have to grow by all of them.
        """
        fitting = self.ballast_bytes // 2 // PAGE_BYTES
        return max(_LEAST_LOG_PAGES, min(_LOG_PAGES, fitting)) if fitting else _LOG_PAGES


@dataclass(frozen=True, slots=True)
class Opened:
    """An open file, and what was found wrong on the way."""

    connection: sqlite3.Connection
    quarantined: Path | None
    lost_frames: int


class _DamageError(Exception):
    """The file is readable but inconsistent."""


def open_checked(layout: Layout) -> Opened:
    """Open the file; a damaged one is moved away and a new one made.

    A damaged log is copied first: SQLite goes on without what follows the damage. Raises StoreError for a
    file of a newer release, otherwise sqlite3.Error and OSError.
    """
    lost = lost_frames(layout.path)
    if lost:
        copy_aside(_beside(layout.path, _LOG))
    try:
        # SQLite would remove the log of an empty file.
        if not _size_bytes(layout.path) and _size_bytes(_beside(layout.path, _LOG)):
            raise _DamageError("the file is empty but has a log")
        return Opened(connect(layout), None, lost)
    except (sqlite3.DatabaseError, _DamageError) as error:
        if not _is_damage(error):
            raise
    aside = _quarantine(layout.path)
    return Opened(connect(layout), aside, lost)


def connect(layout: Layout, *, check: bool = True) -> sqlite3.Connection:
    """Open the file; without `check` it is taken to be as this release left it.

    Raises as `open_checked` does.
    """
    connection = sqlite3.connect(layout.path, isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        if not _size_bytes(layout.path):
            # So that free pages can be given back to a full disk; only a new file takes it.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {layout.synchronous}")
        connection.execute(f"PRAGMA max_page_count = {layout.max_pages}")
        connection.execute(f"PRAGMA wal_autocheckpoint = {layout.log_pages}")
        # Without it a transaction that is undone may leave frames in the log, which look like damage.
        connection.execute("PRAGMA cache_spill = OFF")
        if check:
            _check(connection)
            _bring_up_to_date(connection, layout)
    except BaseException:
        connection.close()
        raise
    return connection


def read_number(connection: sqlite3.Connection, pragma: str) -> int:
    """Return a PRAGMA's value that is a number."""
    return int(connection.execute(f"PRAGMA {pragma}").fetchone()[0])


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _quarantine(path: Path) -> Path:
    path.touch()
    aside = set_aside(path)
    for suffix in (_LOG, _INDEX):
        if (side := _beside(path, suffix)).exists():
            side.rename(_beside(aside, suffix))
    return aside


def _check(connection: sqlite3.Connection) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise _DamageError(verdict)


def _bring_up_to_date(connection: sqlite3.Connection, layout: Layout) -> None:
    """Run the schema and the upgrades that the file lacks.

    The stamp in its application_id says with which scripts, and to what tables they led. SQLite does not
    see a flipped bit in these: a renamed table would be made again, empty.
    """
    script = checksum("\0".join([layout.schema, *layout.upgrades]).encode()) >> 17
    stamp = read_number(connection, "application_id")
    if stamp >> 16 == script and stamp & 0xFFFF != _tables_sum(connection):
        raise _DamageError("the tables are not those that were made")
    connection.executescript(layout.schema)
    _upgrade(connection, layout)
    if stamp != (current := script << 16 | _tables_sum(connection)):
        connection.execute(f"PRAGMA application_id = {current}")


def _tables_sum(connection: sqlite3.Connection) -> int:
    columns = "CAST(type AS BLOB), CAST(name AS BLOB), CAST(tbl_name AS BLOB), CAST(sql AS BLOB)"
    rows = connection.execute(f"SELECT {columns} FROM sqlite_master ORDER BY 1, 2")  # noqa: S608
    return checksum(repr(rows.fetchall()).encode()) & 0xFFFF


def _upgrade(connection: sqlite3.Connection, layout: Layout) -> None:
    done, known = read_number(connection, "user_version"), len(layout.upgrades)
    if not 0 <= done <= known:
        raise StoreError(
            f"{layout.path}: of a newer release (user_version {done}, this one knows {known})"
        )
    for number in range(done, known):
        connection.executescript(
            f"BEGIN IMMEDIATE; {layout.upgrades[number]};"
            f" PRAGMA user_version = {number + 1}; COMMIT"
        )


def _is_damage(error: Exception) -> bool:
    if isinstance(error, _DamageError):
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
