"""Training in virtual time: done when its result is due, together with all others that wait.

A result is needed at its virtual completion only. So a training that begins just waits, and when the first
one comes due, every training that has begun by then is computed in one go: stacked, and many times faster.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hedgerow.core.effects import Evaluate, Evaluated, Probe, Probed, Train, Trained
from hedgerow.runtime.ports import ComputeError
from sims.clock import SECOND_US, VirtualLoop
from sims.costs import content, probed_examples, trained_examples
from sims.devices import Device
from sims.world import FleetWorld

_LOOK_AHEAD = 2048
_OUT_OF_MEMORY_US = 1_000_000
_TEST_US = 1_000_000


class Stopwatch:
    """CPU seconds of this process by phase."""

    def __init__(self) -> None:
        self.cpu_s: Counter[str] = Counter()

    def measure(self, phase: str, call: Callable[[], Any]) -> Any:
        """Call, and count its CPU time."""
        began = time.process_time()
        try:
            return call()
        finally:
            self.cpu_s[phase] += time.process_time() - began  # type: ignore[assignment]


@dataclass(eq=False, slots=True)
class _Pending:
    node: int
    job: Train
    future: "asyncio.Future[Trained]"
    result: Trained | ComputeError | None = None


class TrainingPool:
    """Collects trainings and computes them together when the first result is due.

    `peak_bytes` has the training memory of each plan, batch size and bound seen so far, as one node needs
    it, and `recomputing` those of them that compute activations again to fit.
    """

    def __init__(self, loop: VirtualLoop, compute: FleetWorld, watch: Stopwatch) -> None:
        self.peak_bytes: dict[tuple[str, int, int], int] = {}
        self.recomputing: set[tuple[str, int, int]] = set()
        self.trained = 0
        self._loop = loop
        self._compute = compute
        self._watch = watch
        self._waiting: dict[int, _Pending] = {}
        self._number = 0

    def train(self, node: int, job: Train, took_us: int) -> "asyncio.Future[Trained]":
        """Return a future of a training that takes `took_us` of virtual time; it may end in ComputeError."""
        self._number += 1
        number = self._number
        pending = _Pending(node, job, self._loop.create_future())
        self._waiting[number] = pending
        self._loop.after_us(took_us, lambda: self._due(number, pending))
        return pending.future

    def probe(self, node: int, job: Probe, took_us: int) -> "asyncio.Future[Probed]":
        """Return a future of a probe that takes `took_us` of virtual time; it may end in ComputeError."""
        future: asyncio.Future[Probed] = self._loop.create_future()

        def answer() -> None:
            if future.done():
                return
            result = self._watch.measure("probing", lambda: self._compute.probe(node, job))
            if isinstance(result, ComputeError):
                future.set_exception(result)
            else:
                future.set_result(result)

        self._loop.after_us(took_us, answer)
        return future

    def _due(self, number: int, pending: _Pending) -> None:
        if pending.future.done():
            self._waiting.pop(number, None)
            return
        if pending.result is None:
            self._compute_waiting(number)
        result = pending.result
        assert result is not None
        if isinstance(result, ComputeError):
            pending.future.set_exception(result)
            return
        key = step_kind(pending.job)
        self.peak_bytes[key] = result.peak_bytes
        if result.execution is not None and result.execution.segment:
            self.recomputing.add(key)
        pending.future.set_result(result)

    def _compute_waiting(self, first: int) -> None:
        """Compute what waits, oldest first and `first` among them."""
        due = self._waiting.pop(first)
        others = [p for p in list(self._waiting.values())[:_LOOK_AHEAD] if not p.future.done()]
        batch = [due, *others]
        self._waiting = dict(list(self._waiting.items())[_LOOK_AHEAD:])
        jobs = [(p.node, p.job) for p in batch]
        results = self._watch.measure("training", lambda: self._compute.train(jobs))
        self.trained += len(batch)
        for entry, result in zip(batch, results, strict=True):
            entry.result = result


def step_kind(job: Train) -> tuple[str, int, int]:
    """Return what decides how a step is computed: plan, batch size and bound."""
    return job.plan.plan_id, job.batch_size, job.memory_bytes


class NodeCompute:
    """The `Compute` port of one node: its device says how long a training takes, and whether it fits.

    `dies` is called with the virtual time at which the battery will be empty during a training.
    """

    def __init__(
        self,
        device: Device,
        pool: TrainingPool,
        compute: FleetWorld,
        loop: VirtualLoop,
        *,
        seed: int,
        began: Callable[[int, int], None],
        dies: Callable[[int], None],
    ) -> None:
        self._device = device
        self._pool = pool
        self._compute = compute
        self._loop = loop
        self._random = random.Random(f"{seed}:train:{device.name}")
        self._began = began
        self._dies = dies

    def train(self, job: Train) -> "asyncio.Future[Trained]":
        """Train for as long as this device takes; the future fails soon where its memory is too small."""
        device, now_us = self._device, self._loop.now_us
        error = self._compute.too_large(job)
        if error is not None:
            return self._refuse(error)
        mflop = self._mflop(job)
        took_us = max(1, device.training_us(mflop, self._random))
        joule = device.power.training_j(mflop)
        empty_us = device.power.empty_at_us(now_us, joule * SECOND_US / took_us)
        future: asyncio.Future[Trained]
        if empty_us is not None and empty_us < now_us + took_us:
            future = self._loop.create_future()
            # Ended first, so that its share is paid for when the device dies.
            self._loop.at_us(empty_us, future.cancel)
            self._dies(empty_us)
        else:
            self._began(now_us, now_us + took_us)
            future = self._pool.train(device.index, job, took_us)
        future.add_done_callback(lambda _: self._ended(now_us, took_us, joule))
        return future

    def probe(self, job: Probe) -> "asyncio.Future[Probed]":
        """Take gradients for as long as this device takes for so many examples."""
        device, now_us = self._device, self._loop.now_us
        cost = self._compute.training_cost(job.plan)
        mflop = cost.step_mflop * probed_examples(job, self._compute.examples(device.index))
        mflop += self._frozen_mflop(job)
        took_us = max(1, device.training_us(mflop, self._random))
        joule = device.power.training_j(mflop)
        future = self._pool.probe(device.index, job, took_us)
        future.add_done_callback(lambda _: self._ended(now_us, took_us, joule))
        return future

    def evaluate(self, job: Evaluate) -> "asyncio.Future[Evaluated]":
        """Test on the node's own examples; it takes next to nothing beside a training."""
        found = self._compute.evaluate_node(self._device.index, job.params)
        future: asyncio.Future[Evaluated] = self._loop.create_future()

        def answer() -> None:
            if not future.done():
                future.set_result(Evaluated(job.job, job.version, found))

        self._loop.after_us(_TEST_US, answer)
        return future

    def _mflop(self, job: Train) -> float:
        """Return what a training computes: the steps, and the frozen stages where they are not known."""
        cost = self._compute.training_cost(job.plan)
        again = cost.recomputed_mflop if step_kind(job) in self._pool.recomputing else 0.0
        examples = trained_examples(job, self._compute.examples(self._device.index))
        return (cost.step_mflop + again) * examples + self._frozen_mflop(job)

    def _frozen_mflop(self, job: Train | Probe) -> float:
        """Return the forward pass of the frozen stages, 0 while the device has its results."""
        cost = self._compute.training_cost(job.plan)
        found = content(cost.frozen, job.plan, job.params)
        if not found or found == self._device.features_of:
            return 0.0
        self._device.features_of = found
        return cost.frozen_mflop * self._compute.examples(self._device.index)

    def _ended(self, began_us: int, took_us: int, joule: float) -> None:
        """Pay for a training, or for the part of it that was done when it was cut off."""
        share = min(1.0, (self._loop.now_us - began_us) / took_us)
        self._device.power.spend(self._loop.now_us, joule * share)

    def _refuse(self, error: ComputeError) -> "asyncio.Future[Trained]":
        future: asyncio.Future[Trained] = self._loop.create_future()

        def fail() -> None:
            if not future.done():
                future.set_exception(error)

        self._loop.after_us(_OUT_OF_MEMORY_US, fail)
        return future


class AggregatorCompute:
    """The aggregator's `Compute` port: evaluates at the points of a grid in virtual time.

    `seen` is told of each evaluation with the time at which the version was there.
    """

    def __init__(
        self,
        loop: VirtualLoop,
        compute: FleetWorld,
        watch: Stopwatch,
        *,
        every_us: int,
        seen: Callable[[int, int, Mapping[str, float]], None],
    ) -> None:
        self._loop = loop
        self._compute = compute
        self._watch = watch
        self._every_us = every_us
        self._seen = seen

    def train(self, job: Train) -> "asyncio.Future[Trained]":
        """Raise RuntimeError: the aggregator does not train."""
        raise RuntimeError(f"an aggregator trains nothing, got {job}")

    def probe(self, job: Probe) -> "asyncio.Future[Probed]":
        """Raise RuntimeError: the aggregator does not probe."""
        raise RuntimeError(f"an aggregator probes nothing, got {job}")

    def evaluate(self, job: Evaluate) -> "asyncio.Future[Evaluated]":
        """Evaluate at once; the answer comes at the next point of the grid."""
        metrics = self._watch.measure("evaluation", lambda: self._compute.evaluate(job.params))
        self._seen(self._loop.now_us, job.version, metrics)
        future = self._loop.create_future()

        def answer() -> None:
            if not future.done():
                future.set_result(Evaluated(job.job, job.version, metrics))

        next_us = (self._loop.now_us // self._every_us + 1) * self._every_us
        self._loop.at_us(next_us, answer)
        return future
