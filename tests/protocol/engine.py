"""Virtual time and processes: protocols driven as the real driver does it, on a seeded heap of events."""

import heapq
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Protocol

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


class Clock:
    """Calls functions at virtual microseconds, one after the other; ties go to the earlier request."""

    def __init__(self, seed: int) -> None:
        self.now_us = 0
        self.random = random.Random(seed)
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = itertools.count()

    def after(self, delay_us: int, call: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now_us + delay_us, next(self._count), call))

    def between(self, least_us: int, most_us: int) -> int:
        """Return a random number of microseconds."""
        return self.random.randint(least_us, most_us)

    def run_until(self, end_us: int) -> None:
        while self._heap and self._heap[0][0] <= end_us:
            self.now_us, _, call = heapq.heappop(self._heap)
            call()
        self.now_us = end_us


class Disk(Protocol):
    """What a process leaves behind when it dies."""

    def write(self, rows: Sequence[Any]) -> None:
        """Take rows in one transaction."""


class Network(Protocol):
    """What a process sends through."""

    def send(self, process: "Process", peer: str, message: Any) -> None: ...
    def announce(self, process: "Process", channel: str, message: Any | None) -> None: ...
    def follow(self, process: "Process", channel: str) -> None: ...
    def unfollow(self, process: "Process", channel: str) -> None: ...
    def started(self, process: "Process") -> None: ...
    def died(self, process: "Process") -> None: ...


Work = Callable[["Process", Train | Evaluate], None]


class Process:
    """One tier's process: it may crash between any two inputs and starts again from its disk alone."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        network: Network,
        make: Callable[[], TierProtocol],
        *,
        disk: Disk | None = None,
        work: Work | None = None,
    ) -> None:
        self.name = name
        self.clock = clock
        self.life = 0
        self.protocol: TierProtocol | None = None
        self.events: Counter[str] = Counter()
        self.save_failure_rate = 0.0
        self._network = network
        self._make = make
        self._disk = disk
        self._work = work
        self._timers: dict[str, object] = {}
        self._disk_free_us = 0

    @property
    def alive(self) -> bool:
        return self.protocol is not None

    def start(self) -> None:
        if self.alive:
            return
        self.life += 1
        protocol = self.protocol = self._make()
        self._step(lambda: protocol.start(self.clock.now_us))
        self._network.started(self)

    def crash(self) -> None:
        """Lose everything but the disk; saves under way are lost, too."""
        if not self.alive:
            return
        self.protocol = None
        self._timers = {}
        self._network.died(self)

    def receive(self, peer: str, message: Any) -> None:
        protocol = self.protocol
        if protocol is None:
            return

        def take() -> None:
            try:
                protocol.receive(peer, message, self.clock.now_us)
            except PeerError as error:
                self.events[f"peer_fault {error.reason}"] += 1

        self._step(take)

    def later(self, delay_us: int, call: Callable[[TierProtocol], None]) -> None:
        """Give the protocol an input after a while, unless the process dies before."""
        life = self.life

        def run() -> None:
            protocol = self.protocol
            if protocol is not None and self.life == life:
                self._step(lambda: call(protocol))

        self.clock.after(delay_us, run)

    def finish(self, result: JobResult, delay_us: int) -> None:
        """Give the protocol a job's result after a while."""
        self.later(delay_us, lambda protocol: protocol.job_done(result, self.clock.now_us))

    def _step(self, call: Callable[[], None]) -> None:
        call()
        if self.protocol is not None:
            for effect in self.protocol.effects():
                self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Send(peer, message):
                self._network.send(self, peer, message)
            case Announce(channel, message):
                self._network.announce(self, channel, message)
            case Follow(channel):
                self._network.follow(self, channel)
            case Unfollow(channel):
                self._network.unfollow(self, channel)
            case SetTimer(name, after_us):
                self._set_timer(name, after_us)
            case CancelTimer(name):
                self._timers.pop(name, None)
            case Record(event, amount):
                self.events[event] += amount
            case Save():
                self._save(effect)
            case Train() | Evaluate():
                assert self._work is not None
                self._work(self, effect)

    def _set_timer(self, name: str, after_us: int) -> None:
        token = self._timers[name] = object()

        def fire(protocol: TierProtocol) -> None:
            if self._timers.get(name) is token:
                del self._timers[name]
                protocol.timer_fired(name, self.clock.now_us)

        self.later(after_us, fire)

    def _save(self, save: Save) -> None:
        """One disk, one queue: saves end in order, some fail, and each may be cut off by a crash.

        The rows may be on the disk before the process hears of it.
        """
        assert self._disk is not None
        disk, now_us, life = self._disk, self.clock.now_us, self.life
        if self.clock.random.random() < self.save_failure_rate:
            self.finish(JobFailed(save.job, "no space left"), self.clock.between(100, 50_000))
            return
        self._disk_free_us = max(self._disk_free_us, now_us) + self.clock.between(1_000, 80_000)

        def write() -> None:
            if self.alive and self.life == life:
                disk.write(save.rows)
                self.finish(Saved(save.job), self.clock.between(0, 20_000))

        self.clock.after(self._disk_free_us - now_us, write)
