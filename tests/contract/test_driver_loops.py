"""One driver for every loop: asyncio's own, uvloop, and the simulator's virtual one.

A tiny protocol logs each input; ports log each effect. What must come in an order is a few hundredths of a
second apart, so that real loops, too, have no choice.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any

import numpy as np
import pytest
import uvloop

from hedgerow.core.effects import (
    Announce,
    CancelTimer,
    Effect,
    Evaluate,
    Evaluated,
    Follow,
    JobFailed,
    JobResult,
    Probe,
    Probed,
    Record,
    Save,
    Saved,
    Send,
    SetTimer,
    Train,
    Trained,
    Unfollow,
)
from hedgerow.core.errors import PeerError
from hedgerow.runtime.driver import Driver
from hedgerow.runtime.ports import ComputeError, StoreError
from sims.clock import virtual_loop
from tests.protocol.scenarios import PLAN, first_params

STEP_US = 30_000
STEP_S = STEP_US / 1_000_000

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["asyncio", "uvloop", "virtual"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Return a function that runs a coroutine on the loop under test."""
    makers: Mapping[str, Callable[[], asyncio.AbstractEventLoop]] = {
        "asyncio": asyncio.SelectorEventLoop,
        "uvloop": uvloop.new_event_loop,
        "virtual": virtual_loop,
    }
    loop = makers[request.param]()
    yield loop.run_until_complete
    loop.close()


class World:
    """All ports in one: logs every effect; answers what is sent at once, from inside `send`."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.driver: Driver | None = None
        self.cancelled = 0

    # Link.

    def send(self, peer: str, message: Any) -> None:
        assert self.driver is not None
        self.log.append(f"send {message}")
        if message == "stop":
            self.driver.stop()
        else:
            self.driver.deliver(peer, f"echo of {message}")

    def announce(self, channel: str, message: Any | None) -> None:
        self.log.append(f"announce {channel} {message}")

    def follow(self, channel: str) -> None:
        self.log.append(f"follow {channel}")

    def unfollow(self, channel: str) -> None:
        self.log.append(f"unfollow {channel}")

    # Store.

    async def save(self, rows: tuple[Any, ...]) -> None:
        await asyncio.sleep(STEP_S)
        if rows == ("bad",):
            raise StoreError("disk full")
        self.log.append(f"durable {rows[0]}")

    # Compute.

    async def train(self, job: Train) -> Trained:
        try:
            await asyncio.sleep(STEP_S if job.job < 100 else 1000)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if job.passes == 0:
            raise ComputeError("out of memory")
        delta = np.zeros(PLAN.size, np.float32)
        return Trained(job.job, delta, 1, 1, 1.0, 1.0, 0.5, 1)

    async def probe(self, job: Probe) -> Probed:
        await asyncio.sleep(STEP_S)
        if job.batches == 0:
            raise ComputeError("no batch")
        return Probed(job.job, {"w": 0.5}, job.batches)

    async def evaluate(self, job: Evaluate) -> Evaluated:
        await asyncio.sleep(STEP_S)
        return Evaluated(job.job, job.version, {"accuracy": 0.5})

    # Recorder.

    def record(self, event: str, amount: int, fields: Mapping[str, Any]) -> None:
        self.log.append(f"record {event} {amount} {fields.get('reason', '')}".strip())


class Scripted:
    """A protocol that answers each input as its script says; an input is a short text."""

    def __init__(self, world: World, script: Mapping[str, list[Effect]]) -> None:
        self._log = world.log
        self._script = script
        self._out: list[Effect] = []
        self.times_us: list[int] = []

    def _take(self, text: str, now_us: int) -> None:
        self._log.append(f"> {text}")
        self.times_us.append(now_us)
        self._out += self._script.get(text, [])

    def start(self, now_us: int) -> None:
        self._take("start", now_us)

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        self._take(f"{message}", now_us)
        if message == "echo of nonsense":
            raise PeerError("malformed", "nonsense")
        if message == "echo of our fault":
            raise ValueError("our own fault")

    def timer_fired(self, name: str, now_us: int) -> None:
        self._take(f"timer {name}", now_us)

    def job_done(self, result: JobResult, now_us: int) -> None:
        match result:
            case Saved(job):
                self._take(f"saved {job}", now_us)
            case JobFailed(job, detail):
                self._take(f"failed {job} {detail}", now_us)
            case Trained(job=job) | Probed(job=job) | Evaluated(job=job):
                self._take(f"done {job}", now_us)

    def effects(self) -> list[Effect]:
        out, self._out = self._out, []
        return out


def training(job: int, passes: int = 1) -> Train:
    return Train(job, PLAN, first_params(), passes, 8, 0.1, seed=1)


def probing(job: int, batches: int = 1) -> Probe:
    return Probe(job, PLAN, first_params(), 8, batches, seed=1)


def live(run: Run, script: Mapping[str, list[Effect]]) -> tuple[World, Scripted]:
    """Run a script until it stops itself."""
    world = World()
    protocol = Scripted(world, script)

    async def main() -> None:
        driver = Driver(protocol, link=world, store=world, compute=world, recorder=world)
        world.driver = driver
        task = asyncio.ensure_future(driver.run())
        driver.start()
        await asyncio.wait_for(task, timeout=20)
        await driver.finish_saves(5)

    run(main())
    return world, protocol


def test_inputs_and_effects_come_in_one_order_on_every_loop(run: Run) -> None:
    script: dict[str, list[Effect]] = {
        "start": [
            Record("began"),
            Follow("news"),
            SetTimer("late", 30 * STEP_US),
            SetTimer("never", 10_000_000),
            Save(1, ("a",)),
            Send("peer", "hello"),
            Announce("state", "ready"),
        ],
        "echo of hello": [Unfollow("news"), Send("peer", "nonsense")],
        "saved 1": [Save(2, ("bad",)), CancelTimer("never")],
        "failed 2 disk full": [Announce("state", None)],
        "timer late": [training(3), Record("waits", 2)],
        "done 3": [training(4, passes=0)],
        "failed 4 out of memory": [probing(6, batches=0)],
        "failed 6 no batch": [probing(7)],
        "done 7": [Evaluate(5, 7, first_params())],
        "done 5": [Send("peer", "bye"), Send("peer", "stop")],
    }
    world, protocol = live(run, script)
    assert world.log == [
        "> start",
        "record began 1",
        "follow news",
        "send hello",
        "announce state ready",
        "> echo of hello",
        "unfollow news",
        "send nonsense",
        "> echo of nonsense",
        "record peer_fault 1 malformed",
        "durable a",
        "> saved 1",
        "> failed 2 disk full",
        "announce state None",
        "> timer late",
        "record waits 2",
        "> done 3",
        "> failed 4 out of memory",
        "> failed 6 no batch",
        "> done 7",
        "> done 5",
        "send bye",
        "send stop",
    ]
    assert protocol.times_us == sorted(protocol.times_us)
    assert protocol.times_us[-1] - protocol.times_us[0] >= 6 * STEP_US * 0.99


def test_a_timer_that_is_set_again_fires_once_and_a_cancelled_one_never(run: Run) -> None:
    script: dict[str, list[Effect]] = {
        "start": [
            SetTimer("one", STEP_US),
            SetTimer("one", 2 * STEP_US),
            SetTimer("two", STEP_US),
            CancelTimer("two"),
            CancelTimer("unknown"),
            SetTimer("end", 4 * STEP_US),
        ],
        "timer end": [Send("peer", "stop")],
    }
    world, protocol = live(run, script)
    assert world.log == ["> start", "> timer one", "> timer end", "send stop"]
    assert protocol.times_us[1] - protocol.times_us[0] >= 2 * STEP_US * 0.99


def test_timers_fire_in_the_order_of_their_times(run: Run) -> None:
    script: dict[str, list[Effect]] = {
        "start": [SetTimer(f"{n}", n * STEP_US) for n in (3, 1, 4, 2)],
        "timer 4": [Send("peer", "stop")],
    }
    world, _ = live(run, script)
    assert world.log == ["> start", "> timer 1", "> timer 2", "> timer 3", "> timer 4", "send stop"]


def test_a_stop_cancels_work_keeps_saves_and_takes_no_more_inputs(run: Run) -> None:
    script: dict[str, list[Effect]] = {
        # On a busy machine a first timer may be due before the training has begun.
        "start": [training(100), SetTimer("begin", STEP_US // 3)],
        "timer begin": [Save(1, ("a",)), SetTimer("end", STEP_US // 3)],
        "timer end": [Send("peer", "stop"), Send("peer", "too late")],
    }
    world, _ = live(run, script)
    inputs = ["> start", "> timer begin", "> timer end"]
    assert world.log == [*inputs, "send stop", "send too late", "durable a"]
    assert world.cancelled == 1


def test_our_own_fault_ends_the_run_with_its_exception(run: Run) -> None:
    script: dict[str, list[Effect]] = {
        "start": [SetTimer("soon", STEP_US)],
        "timer soon": [Send("peer", "our fault")],
    }
    with pytest.raises(ValueError, match="our own fault"):
        live(run, script)
