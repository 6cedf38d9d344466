"""Durable storage on one SQLite file per tier, and files that are replaced whole or not at all.

One connection, owned by one thread. Transactions that are asked for while another one is being
written share the next commit, so a burst costs few syncs and a single write costs no extra wait.
"""

import asyncio
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from hedgerow.runtime.ports import StoreError

GROUP_RECORDS = 10
"""Most functions in one commit: beyond it, latency grows faster than throughput."""

MAX_WAITING = 4096
_PAGE_BYTES = 4096
_SIDE_FILES = ("", "-wal", "-shm")

T = TypeVar("T")
Function = Callable[[sqlite3.Connection], T]


@dataclass(frozen=True, slots=True)
class _Waiting:
    function: Function[Any]
    future: asyncio.Future[Any]


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace the file by `data`, durably: after a crash it is the old content or the new, whole.

    Raises OSError; then the old content stands.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to the first free `NAME.corrupt-N` and return that name."""
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    path.rename(aside)
    return aside


class Database:
    """One SQLite file in WAL mode with group commit.

    `synchronous` "FULL" survives a power cut, "NORMAL" may then lose the last commits but not more.
    The file never grows beyond `max_bytes`; the write-ahead log adds a few megabytes. Opening
    blocks while the file is checked: it belongs to a process's start. A damaged file is set aside,
    see `quarantined`. Raises StoreError where the file cannot be opened at all.
    """

    def __init__(
        self, path: Path, schema: str, *, synchronous: Literal["FULL", "NORMAL"], max_bytes: int
    ) -> None:
        self.path = path
        self.quarantined: Path | None = None
        """Where a damaged file was moved at the start; None when the file was sound or new."""
        self._schema = schema
        self._synchronous = synchronous
        self._max_pages = max(1, max_bytes // _PAGE_BYTES)
        self._waiting: deque[_Waiting] = deque()
        self._committer: asyncio.Task[None] | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"store-{path.stem}")
        try:
            self._connection = self._thread.submit(self._open).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise StoreError(f"{path}: cannot be opened: {error}") from error

    async def transact(self, function: Function[T]) -> T:
        """Run `function` on the connection and return its result once it is on disk.

        Functions run in the order of the calls. One that raises is undone alone and its exception
        is raised here; a failing commit, a full disk or an SQLite error raises StoreError and
        nothing of `function` is kept.
        """
        if self._closed:
            raise StoreError(f"{self.path}: the store is closed")
        if len(self._waiting) >= MAX_WAITING:
            raise StoreError(f"{self.path}: {MAX_WAITING} transactions are waiting already")
        loop = asyncio.get_running_loop()
        entry = _Waiting(function, loop.create_future())
        self._waiting.append(entry)
        if self._committer is None:
            self._committer = loop.create_task(self._commit_all())
        result: T = await entry.future
        return result

    async def read(self, function: Function[T]) -> T:
        """Run `function` outside any transaction: it sees what is committed. Raises StoreError."""
        if self._closed:
            raise StoreError(f"{self.path}: the store is closed")
        try:
            return await self._on_thread(lambda: function(self._connection))
        except sqlite3.Error as error:
            raise self._error(error) from error

    async def close(self) -> None:
        """Commit what is waiting, then close the file; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._committer is not None:
            await self._committer
        await self._on_thread(self._connection.close)
        self._thread.shutdown()

    async def _on_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                count = min(GROUP_RECORDS, len(self._waiting))
                group = [self._waiting.popleft() for _ in range(count)]
                functions = [entry.function for entry in group]
                outcomes = await self._on_thread(partial(self._commit, functions))
                for entry, outcome in zip(group, outcomes, strict=True):
                    _settle(entry.future, outcome)
        finally:
            self._committer = None

    def _commit(self, functions: list[Function[Any]]) -> list[Any]:
        """Run a group in one transaction: each function's result or the exception it ends with."""
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            outcomes = [self._step(function) for function in functions]
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            # The connection goes on: its next commit overwrites the frames of this one in the log.
            # After a crash before that they may count, as after a crash inside any commit.
            # SQLite may have rolled back already, and a dying disk may refuse that as well.
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            return [self._error(error) for _ in functions]
        return outcomes

    def _step(self, function: Function[Any]) -> Any:
        connection = self._connection
        connection.execute("SAVEPOINT step")
        try:
            result = function(connection)
        except Exception as error:
            if not connection.in_transaction:
                raise sqlite3.OperationalError(f"the transaction was given up: {error}") from error
            connection.execute("ROLLBACK TO step")
            connection.execute("RELEASE step")
            return self._error(error) if isinstance(error, sqlite3.Error) else error
        connection.execute("RELEASE step")
        return result

    def _error(self, error: sqlite3.Error) -> StoreError:
        failure = StoreError(f"{self.path}: {error}")
        failure.__cause__ = error
        return failure

    def _open(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except (sqlite3.DatabaseError, _DamageError) as error:
            if not _is_damage(error):
                raise
        self.quarantined = set_aside(self.path)
        for suffix in _SIDE_FILES[1:]:
            side = self.path.with_name(self.path.name + suffix)
            if side.exists():
                side.rename(self.quarantined.with_name(self.quarantined.name + suffix))
        return self._connect()

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None)
        try:
            connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {self._synchronous}")
            connection.execute(f"PRAGMA max_page_count = {self._max_pages}")
            _check(connection)
            connection.executescript(self._schema)
        except BaseException:
            connection.close()
            raise
        return connection


class _DamageError(Exception):
    """The file is readable but inconsistent."""


def _check(connection: sqlite3.Connection) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise _DamageError(verdict)


def _is_damage(error: Exception) -> bool:
    if isinstance(error, _DamageError):
        return True
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
