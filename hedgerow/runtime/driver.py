"""The one driver: feeds a protocol its inputs and performs its effects, for every tier and every loop.

Each input is atomic: the protocol runs, then its effects are performed in order, before the next input.
Links are called at once and never block; jobs (train, evaluate, save) run as tasks whose results come
back as inputs.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from hedgerow.core.effects import (
    Announce,
    CancelTimer,
    Effect,
    Evaluate,
    Follow,
    JobFailed,
    JobResult,
    Record,
    Save,
    Saved,
    Send,
    SetTimer,
    TierProtocol,
    Train,
    Unfollow,
)
from hedgerow.core.errors import PeerError
from hedgerow.runtime.ports import Compute, ComputeError, Link, Recorder, Store, StoreError

_SAVE = "save"


class Driver:
    """Runs one protocol until `stop` is called or it raises."""

    def __init__(
        self,
        protocol: TierProtocol,
        *,
        link: Link,
        store: Store,
        compute: Compute | None,
        recorder: Recorder,
    ) -> None:
        self._protocol = protocol
        self._link = link
        self._store = store
        self._compute = compute
        self._recorder = recorder
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._jobs: set[asyncio.Task[None]] = set()
        self._inputs: deque[Callable[[], None]] = deque()
        self._busy = False
        self._stopped: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def now_us(self) -> int:
        """Monotonic microseconds of the running loop, virtual or real."""
        return int(asyncio.get_running_loop().time() * 1_000_000)

    def start(self) -> None:
        """Give the protocol its first input."""
        self._step(lambda: self._protocol.start(self.now_us()))

    def deliver(self, peer: str, message: Any) -> None:
        """Give the protocol a message or local input; a peer's fault is recorded and ends there."""

        def receive() -> None:
            try:
                self._protocol.receive(peer, message, self.now_us())
            except PeerError as error:
                self.fault(peer, error)

        self._step(receive)

    def fault(self, peer: str, error: PeerError) -> None:
        """Record a peer's fault."""
        fields = {"peer": peer, "reason": error.reason, "detail": error.detail}
        self._recorder.record("peer_fault", 1, fields)

    async def run(self) -> None:
        """Wait until `stop`; raises what the protocol or a port raised."""
        try:
            await self._stopped
        finally:
            for timer in self._timers.values():
                timer.cancel()
            for job in self._jobs:
                if job.get_name() != _SAVE:
                    job.cancel()

    async def finish_saves(self, bound_s: float) -> None:
        """Wait, within a bound, for saves under way, so that a clean stop loses no finished work."""
        saves = [job for job in self._jobs if job.get_name() == _SAVE]
        if saves:
            await asyncio.wait(saves, timeout=bound_s)

    def stop(self) -> None:
        """Let `run` return."""
        if not self._stopped.done():
            self._stopped.set_result(None)

    def _step(self, call: Callable[[], None]) -> None:
        # A link may answer from inside `send`; that input waits until this one's effects are done.
        self._inputs.append(call)
        if self._busy:
            return
        self._busy = True
        try:
            while self._inputs and not self._stopped.done():
                self._inputs.popleft()()
                for effect in self._protocol.effects():
                    self._perform(effect)
        except Exception as error:  # noqa: BLE001 - our own fault ends the process, not a callback
            self._fail(error)
        finally:
            self._busy = False

    def _fail(self, error: Exception) -> None:
        if not self._stopped.done():
            self._stopped.set_exception(error)

    def _perform(self, effect: Effect) -> None:  # noqa: C901 - one case per effect
        match effect:
            case Send(peer, message):
                self._link.send(peer, message)
            case Announce(channel, message):
                self._link.announce(channel, message)
            case Follow(channel):
                self._link.follow(channel)
            case Unfollow(channel):
                self._link.unfollow(channel)
            case SetTimer(name, after_us):
                self._set_timer(name, after_us)
            case CancelTimer(name):
                self._cancel_timer(name)
            case Record(event, amount, fields):
                self._recorder.record(event, amount, fields)
            case Save(job, rows):
                self._run_job(_SAVE, job, self._save(job, rows))
            case Train(job):
                self._run_job("train", job, self._need_compute().train(effect))
            case Evaluate(job):
                self._run_job("evaluate", job, self._need_compute().evaluate(effect))

    def _need_compute(self) -> Compute:
        if self._compute is None:
            raise RuntimeError("this tier was started without a compute port")
        return self._compute

    async def _save(self, job: int, rows: tuple[Any, ...]) -> JobResult:
        await self._store.save(rows)
        return Saved(job)

    def _set_timer(self, name: str, after_us: int) -> None:
        self._cancel_timer(name)
        loop = asyncio.get_running_loop()
        self._timers[name] = loop.call_later(after_us / 1_000_000, self._fire, name)

    def _cancel_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _fire(self, name: str) -> None:
        self._timers.pop(name, None)
        self._step(lambda: self._protocol.timer_fired(name, self.now_us()))

    def _run_job(self, kind: str, job: int, work: Awaitable[JobResult]) -> None:
        task = asyncio.get_running_loop().create_task(self._finish_job(job, work), name=kind)
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _finish_job(self, job: int, work: Awaitable[JobResult]) -> None:
        try:
            result = await work
        except (ComputeError, StoreError) as error:
            result = JobFailed(job, str(error))
        except Exception as error:  # noqa: BLE001 - as in _step
            self._fail(error)
            return
        self._step(lambda: self._protocol.job_done(result, self.now_us()))
