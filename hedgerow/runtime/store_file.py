"""One open database file: transactions in groups, a disk that is full, a disk that fails.

Everything here blocks and belongs to one thread; `store.Database` owns it.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from hedgerow.runtime.ballast import MARGIN_BYTES, Ballast, means_no_room
from hedgerow.runtime.ports import StoreError
from hedgerow.runtime.store_open import (
    PAGE_BYTES,
    Layout,
    Opened,
    connect,
    open_checked,
    read_number,
)

T = TypeVar("T")
Function = Callable[[sqlite3.Connection], T]

_FAILED = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""After these nothing is known of what the disk holds of the last transaction."""


@dataclass(frozen=True, slots=True)
class Step:
    """A function of a group, and whether what it writes makes the file grow."""

    function: Function[Any]
    grows: bool


class StoreFile:
    """The file, its ballast, and what is known of the disk's state.

    Raises StoreError, sqlite3.Error or OSError where the file cannot be opened.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        path = layout.path
        self._ballast = Ballast(path.with_name(f"{path.name}.ballast"), layout.ballast_bytes)
        self.disk_full = not self._ballast.lay()
        self.limit_reached = False
        """Whether the last transaction that grows did not fit, though the disk has room."""
        self._failed = False
        opened = self._open()
        self._connection: sqlite3.Connection | None = opened.connection
        self.quarantined = opened.quarantined
        self.lost_frames = opened.lost_frames

    @property
    def connection(self) -> sqlite3.Connection:
        """The connection; raises StoreError while the file could not be opened again."""
        if self._connection is None:
            raise StoreError(f"{self._layout.path}: could not be opened again")
        return self._connection

    def commit(self, steps: list[Step]) -> list[Any]:
        """Run a group in one transaction: each function's result or the exception it ends with.

        Where there is no room, what grows is refused and the rest run, possibly a second time.
        """
        try:
            if self._failed:
                self._reopen()
            if self.disk_full and any(step.grows for step in steps):
                self._look_for_room()
            return self._attempt(steps, self._refusal())
        except (sqlite3.Error, StoreError, OSError) as error:
            refusal = self._note(error)
        if self._failed:
            with suppress(sqlite3.Error, StoreError, OSError):
                self._reopen()
        if not (self.disk_full or self.limit_reached) or self._failed:
            return [refusal] * len(steps)
        return self._commit_endings(steps, refusal)

    def read(self, function: Function[T]) -> T:
        """Run `function` outside any transaction. Raises StoreError."""
        try:
            return function(self.connection)
        except sqlite3.Error as error:
            raise self._error(error) from error

    def has_room(self) -> bool:
        """Look again whether there is room, on the disk and below `max_bytes`."""
        if self.disk_full:
            self._look_for_room()
        if self.limit_reached:
            with suppress(sqlite3.Error, StoreError):
                self.limit_reached = not self._has_pages()
        return not (self.disk_full or self.limit_reached)

    def close(self) -> None:
        """Close the file."""
        if self._failed:
            with suppress(sqlite3.Error, StoreError, OSError):
                self._reopen()
        if self._connection is not None:
            self._connection.close()

    def _open(self) -> Opened:
        try:
            return open_checked(self._layout)
        except (sqlite3.OperationalError, OSError):
            # To open a file takes room for its index: perhaps the disk is full.
            self._ballast.release()
            self.disk_full = True
        return open_checked(self._layout)

    def _commit_endings(self, steps: list[Step], refusal: StoreError) -> list[Any]:
        try:
            return self._attempt(steps, refusal)
        except (sqlite3.Error, StoreError) as error:
            failure = self._note(error)
        return [refusal if step.grows else failure for step in steps]

    def _attempt(self, steps: list[Step], refusal: StoreError | None) -> list[Any]:
        """Commit the group, without what grows if there is a `refusal`."""
        refused = [refusal is not None and step.grows for step in steps]
        if all(refused):
            return [refusal] * len(steps)
        self.connection.execute("BEGIN IMMEDIATE")
        outcomes = [
            refusal if no else self._step(step.function)
            for step, no in zip(steps, refused, strict=True)
        ]
        self.connection.execute("COMMIT")
        if refusal is None and any(step.grows for step in steps):
            self.limit_reached = False
        return outcomes

    def _step(self, function: Function[Any]) -> Any:
        connection = self.connection
        connection.execute("SAVEPOINT step")
        try:
            result = function(connection)
        except Exception as error:
            if _finds_no_room(error) or not connection.in_transaction:
                raise sqlite3.OperationalError(f"the transaction was given up: {error}") from error
            connection.execute("ROLLBACK TO step")
            connection.execute("RELEASE step")
            return self._error(error) if isinstance(error, sqlite3.Error) else error
        connection.execute("RELEASE step")
        return result

    def _note(self, error: Exception) -> StoreError:
        """Undo what is left of the transaction and learn from its failure."""
        if isinstance(error, StoreError):
            return error
        # SQLite may have rolled back already, and a dying disk may refuse that as well.
        with suppress(sqlite3.Error, StoreError):
            self.connection.execute("ROLLBACK")
        self._failed |= any(_code(cause) in _FAILED for cause in _causes(error))
        no_room = _finds_no_room(error)
        if no_room or self._failed:
            self._make_room(counts_pages=no_room)
        return self._refusal() or self._error(error)

    def _make_room(self, *, counts_pages: bool) -> None:
        """Find out whether it is the disk that is full, and release the ballast if so."""
        with suppress(OSError):
            self._ballast.release()
        self._look_for_room()
        self.limit_reached = counts_pages and not self.disk_full
        # The log is then written from its start again: its room is of use, and frames that a failed commit
        # left at its end would look like damage.
        with suppress(sqlite3.Error, StoreError):
            self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def _look_for_room(self) -> None:
        try:
            while self._is_full() and self._give_back():
                pass
        except (OSError, sqlite3.Error, StoreError) as error:
            self._failed |= _code(error) in _FAILED

    def _is_full(self) -> bool:
        self.disk_full = not self._ballast.lay()
        return self.disk_full

    def _give_back(self) -> bool:
        """Give free pages at the end of the file back to the disk; False when there are none."""
        free = read_number(self.connection, "freelist_count")
        if self.connection.in_transaction or not free:
            return False
        self.connection.execute(f"PRAGMA incremental_vacuum({self._layout.log_pages})").fetchall()
        # The file is cut when the log is written back.
        self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
        return read_number(self.connection, "freelist_count") < free

    def _has_pages(self) -> bool:
        used = read_number(self.connection, "page_count")
        used -= read_number(self.connection, "freelist_count")
        wanted = min(MARGIN_BYTES // PAGE_BYTES, self._layout.max_pages // 8)
        return self._layout.max_pages - used >= wanted

    def _reopen(self) -> None:
        """Open the file anew after a failure: until that works, nothing is written.

        The log is written back first, by the connection that knows what of it was acknowledged. A new one
        would take what a failed sync left in the log for committed.
        """
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            busy, *_ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:
                raise sqlite3.OperationalError("the log is in use, and cannot be written back")
            self._connection.close()
            self._connection = None
        self._connection = connect(self._layout, check=False)
        self._failed = False

    def _refusal(self) -> StoreError | None:
        return StoreError(f"{self._layout.path}: the disk is full") if self.disk_full else None

    def _error(self, error: Exception) -> StoreError:
        failure = StoreError(f"{self._layout.path}: {error}")
        failure.__cause__ = error
        return failure


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _code(error: BaseException) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code & 0xFF


def _finds_no_room(error: BaseException) -> bool:
    return any(
        _code(cause) == sqlite3.SQLITE_FULL or (isinstance(cause, OSError) and means_no_room(cause))
        for cause in _causes(error)
    )
