"""Keeps processes running: restarts what dies, stops all in order, leaves nothing behind.

Each child leads a process group of its own, so that Ctrl-C in the terminal reaches only `hedgerow up`,
and so that a child's own children end with it.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from hedgerow.core.errors import HedgerowError
from hedgerow.up import watchdog

_BAD_USAGE = 2
_LOG_TAIL_BYTES = 2000


@dataclass(frozen=True)
class Child:
    """A process to keep running. `start` starts it once more, as the leader of a process group."""

    name: str
    start: Callable[[], Awaitable[Process]]
    log: Path


@dataclass(frozen=True)
class Patience:
    """When to restart and when to give up.

    The first restart waits `first_delay_s`, each one after a life shorter than `settled_s` twice as long
    as the one before, up to `longest_delay_s`. After `short_lives` of these in a row the run is given up.
    """

    first_delay_s: float = 0.5
    longest_delay_s: float = 15.0
    settled_s: float = 10.0
    short_lives: int = 6

    def delay_s(self, short_lives: int) -> float:
        """Return how long to wait before the restart after so many short lives in a row."""
        doublings = max(short_lives - 1, 0)
        return min(self.first_delay_s * 2.0**doublings, self.longest_delay_s)


@dataclass
class _Kept:
    child: Child
    process: Process | None = None
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None


class Supervisor:
    """Restarts children that die unexpectedly; `restarts` counts them by name.

    `report` is told of every death in a sentence. `failed` becomes done, with the reason, when a child
    cannot be kept alive. End it with `close`. Should this process be killed, a watchdog stops the children.
    """

    def __init__(self, report: Callable[[str], None], patience: Patience | None = None) -> None:
        self.restarts: Counter[str] = Counter()
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._report = report
        self._patience = patience or Patience()
        self._kept: dict[str, _Kept] = {}
        self._watchdog = subprocess.Popen(  # noqa: S603 - our own script
            [sys.executable, "-S", "-E", watchdog.__file__],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def add(self, child: Child, running: Process | None = None) -> None:
        """Keep a child running, from its `running` process on if it has been started before."""
        kept = _Kept(child, running)
        if running is not None:
            self._tell_watchdog("+", running.pid)
        kept.task = asyncio.create_task(self._keep(kept), name=f"keep {child.name}")
        self._kept[child.name] = kept

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the children that run now, by name."""
        return {
            name: kept.process.pid
            for name, kept in self._kept.items()
            if kept.process is not None and kept.process.returncode is None
        }

    async def stop(self, names: Iterable[str], grace_s: float) -> None:
        """Stop children together: SIGTERM, and SIGKILL for those that are there after `grace_s`."""
        chosen = [self._kept[name] for name in names if name in self._kept]
        tasks = [kept.task for kept in chosen if kept.task is not None]
        for kept in chosen:
            kept.stopping.set()
            _signal_group(kept.process, signal.SIGTERM)
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=grace_s)
        for kept in chosen:
            if kept.task in late:
                self._report(f"{kept.child.name} did not stop within {grace_s:g} s and was killed")
                _signal_group(kept.process, signal.SIGKILL)
        if late:
            await asyncio.wait(late)

    def kill(self) -> None:
        """Kill every child at once; `stop` and `close` then end at once."""
        for kept in self._kept.values():
            kept.stopping.set()
            _signal_group(kept.process, signal.SIGKILL)

    async def close(self) -> None:
        """Kill whatever still runs, wait for its end, and end the watchdog."""
        self.kill()
        tasks = [kept.task for kept in self._kept.values() if kept.task is not None]
        await asyncio.gather(*tasks)
        # At the end of its input it ends by itself.
        await asyncio.to_thread(self._watchdog.communicate)

    async def _keep(self, kept: _Kept) -> None:
        """Run one child again and again until it is stopped or given up."""
        child, short_lives = kept.child, 0
        while not kept.stopping.is_set():
            began = time.monotonic()
            code, manner = await self._live(kept)
            if kept.stopping.is_set():
                return
            settled = time.monotonic() - began >= self._patience.settled_s
            short_lives = 1 if settled else short_lives + 1
            if code == _BAD_USAGE or short_lives >= self._patience.short_lives:
                self._give_up(child, manner)
                return
            delay_s = self._patience.delay_s(short_lives)
            self.restarts[child.name] += 1
            self._report(f"{child.name} {manner}; restart in {delay_s:g} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(kept.stopping.wait(), delay_s)

    async def _live(self, kept: _Kept) -> tuple[int | None, str]:
        """Start the child unless it runs and wait for its end; return its exit code and that in words."""
        if kept.process is None:
            try:
                kept.process = await kept.child.start()
            except (OSError, HedgerowError) as error:
                return None, f"could not be started: {error}"
            self._tell_watchdog("+", kept.process.pid)
            if kept.stopping.is_set():
                _signal_group(kept.process, signal.SIGTERM)
        process = kept.process
        code = await process.wait()
        # Its own children, if it left any.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        self._tell_watchdog("-", process.pid)
        kept.process = None
        return code, _manner(code)

    def _give_up(self, child: Child, manner: str) -> None:
        if not self.failed.done():
            self.failed.set_result(
                f"{child.name} {manner} and is given up; the end of {child.log}:\n"
                + log_tail(child.log)
            )

    def _tell_watchdog(self, sign: str, pid: int) -> None:
        pipe = self._watchdog.stdin
        if pipe is not None:
            with suppress(BrokenPipeError):
                pipe.write(f"{sign}{pid}\n".encode())
                pipe.flush()


async def spawn(command: list[str], log: Path, environment: dict[str, str]) -> Process:
    """Start a command as the leader of its own process group; its output is appended to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )


def log_tail(log: Path) -> str:
    """Return the end of a log, "" when there is none."""
    try:
        return log.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
    except OSError:
        return ""


def _signal_group(process: Process | None, number: signal.Signals) -> None:
    if process is not None and process.returncode is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def _manner(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    return f"was killed by {signal.Signals(-code).name}"
