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
    Evaluate,
    Follow,
    JobFailed,
    JobResult,
    Probe,
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
        self._compute = compute
        self._recorder = recorder
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._jobs: dict[asyncio.Future[Any], str] = {}
        self._inputs: deque[Callable[[], None]] = deque()
        self._busy = False
        self._loop = asyncio.get_running_loop()
        self._stopped: asyncio.Future[None] = self._loop.create_future()
        self._perform: dict[type[Any], Callable[[Any], None]] = {
            Send: lambda e: link.send(e.peer, e.message),
            Announce: lambda e: link.announce(e.channel, e.message),
            Follow: lambda e: link.follow(e.channel),
            Unfollow: lambda e: link.unfollow(e.channel),
            SetTimer: lambda e: self._set_timer(e.name, e.after_us),
            CancelTimer: lambda e: self._cancel_timer(e.name),
            Record: lambda e: recorder.record(e.event, e.amount, e.fields),
            Save: lambda e: self._run_job(_SAVE, e.job, store.save(e.rows)),
            Train: lambda e: self._run_job("train", e.job, self._need_compute().train(e)),
            Probe: lambda e: self._run_job("probe", e.job, self._need_compute().probe(e)),
            Evaluate: lambda e: self._run_job("evaluate", e.job, self._need_compute().evaluate(e)),
        }

    def now_us(self) -> int:
        """Monotonic microseconds of the running loop, virtual or real."""
        return round(self._loop.time() * 1_000_000)

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
            for job, kind in list(self._jobs.items()):
                if kind != _SAVE:
                    job.cancel()

    async def finish_saves(self, bound_s: float) -> None:
        """Wait, within a bound, for saves under way, so that a clean stop loses no finished work."""
        saves = [job for job, kind in self._jobs.items() if kind == _SAVE]
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
            perform, effects = self._perform, self._protocol.effects
            while self._inputs and not self._stopped.done():
                self._inputs.popleft()()
                for effect in effects():
                    perform[type(effect)](effect)
        except Exception as error:  # noqa: BLE001 - our own fault ends the process, not a callback
            self._fail(error)
        finally:
            self._busy = False

    def _fail(self, error: BaseException) -> None:
        if not self._stopped.done():
            self._stopped.set_exception(error)

    def _need_compute(self) -> Compute:
        if self._compute is None:
            raise RuntimeError("this tier was started without a compute port")
        return self._compute

    def _set_timer(self, name: str, after_us: int) -> None:
        self._cancel_timer(name)
        self._timers[name] = self._loop.call_later(after_us / 1_000_000, self._fire, name)

    def _cancel_timer(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()

    def _fire(self, name: str) -> None:
        self._timers.pop(name, None)
        self._step(lambda: self._protocol.timer_fired(name, self.now_us()))

    def _run_job(self, kind: str, job: int, work: Awaitable[Any]) -> None:
        future = asyncio.ensure_future(work)
        self._jobs[future] = kind
        future.add_done_callback(lambda done: self._finish_job(job, done))

    def _finish_job(self, job: int, future: "asyncio.Future[Any]") -> None:
        kind = self._jobs.pop(future)
        if future.cancelled():
            return
        error = future.exception()
        result: JobResult
        if error is None:
            result = Saved(job) if kind == _SAVE else future.result()
        elif isinstance(error, ComputeError | StoreError):
            result = JobFailed(job, str(error))
        else:
            self._fail(error)
            return
        self._step(lambda: self._protocol.job_done(result, self.now_us()))
