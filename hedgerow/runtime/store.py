"""Durable storage on one SQLite file per tier.

One connection, owned by one thread. Transactions that are asked for while another one is being
written share the next commit, so a burst costs few syncs and a single write costs no extra wait.
"""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from hedgerow.runtime.ports import StoreError
from hedgerow.runtime.store_file import Function, Step, StoreFile
from hedgerow.runtime.store_open import Layout

GROUP_RECORDS = 10
"""Most functions in one commit: beyond it, latency grows faster than throughput."""

MAX_WAITING = 4096

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Waiting:
    step: Step
    future: asyncio.Future[Any]


class Database:
    """One SQLite file in WAL mode with group commit.

    `synchronous` "FULL" survives a power cut, "NORMAL" may then lose the last commits but not more.
    The file never grows beyond `max_bytes`; the write-ahead log adds a few megabytes. Opening
    blocks while the file is checked: it belongs to a process's start. A damaged file is set aside,
    see `quarantined`; a damaged log is copied, see `lost_frames`. Raises StoreError where the file
    cannot be opened at all.

    `ballast_bytes` are held back in a file beside it. When the disk is full they are released, so that
    transactions which only end things go through, while those that grow are refused.

    `schema` is what the first release made, in statements that may be repeated (IF NOT EXISTS). Each of
    `upgrades` is a script that runs once on every file, a new one too, in order and each in a transaction
    of its own; the file's user_version counts them. A file with more than these is refused.
    """

    def __init__(
        self,
        path: Path,
        schema: str,
        *,
        synchronous: Literal["FULL", "NORMAL"],
        max_bytes: int,
        ballast_bytes: int = 0,
        upgrades: Sequence[str] = (),
    ) -> None:
        self.path = path
        layout = Layout(path, schema, tuple(upgrades), synchronous, max_bytes, ballast_bytes)
        self._waiting: deque[_Waiting] = deque()
        self._committer: asyncio.Task[None] | None = None
        self._closed = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"store-{path.stem}")
        try:
            self._file = self._thread.submit(StoreFile, layout).result()
        except (sqlite3.Error, OSError) as error:
            self._thread.shutdown()
            raise StoreError(f"{path}: cannot be opened: {error}") from error
        except BaseException:
            self._thread.shutdown()
            raise

    @property
    def quarantined(self) -> Path | None:
        """Where a damaged file was moved at the start; None when the file was sound or new."""
        return self._file.quarantined

    @property
    def lost_frames(self) -> int:
        """Frames of committed transactions found damaged in the log at the start, 0 normally.

        Transactions were lost with them; the log as it was is kept as `NAME-wal.corrupt-N`.
        """
        return self._file.lost_frames

    @property
    def full(self) -> bool:
        """Whether there is no room: the disk is full, or the file has reached `max_bytes`.

        It is looked at again by each transaction that grows and by `has_room`.
        """
        return self._file.disk_full or self._file.limit_reached

    async def transact(self, function: Function[T], *, grows: bool = True) -> T:
        """Run `function` on the connection and return its result once it is on disk.

        Functions run in the order of the calls. One that raises is undone alone and its exception
        is raised here; a failing commit, a full disk or an SQLite error raises StoreError and
        nothing of `function` is kept. One that only ends things (deletes, or sets to NULL) is called
        with `grows` False: it goes through on a full disk, and may run twice for that.
        """
        if self._closed:
            raise StoreError(f"{self.path}: the store is closed")
        if len(self._waiting) >= MAX_WAITING:
            raise StoreError(f"{self.path}: {MAX_WAITING} transactions are waiting already")
        loop = asyncio.get_running_loop()
        entry = _Waiting(Step(function, grows), loop.create_future())
        self._waiting.append(entry)
        if self._committer is None:
            self._committer = loop.create_task(self._commit_all())
        result: T = await entry.future
        return result

    async def read(self, function: Function[T]) -> T:
        """Run `function` outside any transaction: it sees what is committed. Raises StoreError."""
        if self._closed:
            raise StoreError(f"{self.path}: the store is closed")
        return await self._on_thread(partial(self._file.read, function))

    async def has_room(self) -> bool:
        """Look again whether there is room after `full`, without writing a row."""
        if self._closed:
            raise StoreError(f"{self.path}: the store is closed")
        return await self._on_thread(self._file.has_room)

    async def close(self) -> None:
        """Commit what is waiting, then close the file; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        if self._committer is not None:
            await self._committer
        await self._on_thread(self._file.close)
        self._thread.shutdown()

    async def _on_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def _commit_all(self) -> None:
        try:
            while self._waiting:
                count = min(GROUP_RECORDS, len(self._waiting))
                group = [self._waiting.popleft() for _ in range(count)]
                steps = [entry.step for entry in group]
                outcomes = await self._outcomes(steps)
                for entry, outcome in zip(group, outcomes, strict=True):
                    _settle(entry.future, outcome)
        finally:
            self._committer = None

    async def _outcomes(self, steps: list[Step]) -> list[Any]:
        try:
            return await self._on_thread(partial(self._file.commit, steps))
        except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
            return [error] * len(steps)


def _settle(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
