"""A small fleet for fault tests: a few parameters, trainings that fail now and then and can be held back."""

import asyncio
import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from aggregator.planner import first_plans
from hedgerow.core.config import Config
from hedgerow.core.costs import ModelCosts
from hedgerow.core.effects import Probe, Probed, Train, Trained
from hedgerow.core.plan import Plan
from hedgerow.core.planbook import PlanSet
from hedgerow.core.strategy import FTTE
from hedgerow.core.units import Manifest, Vector
from hedgerow.runtime.ports import ComputeError
from sims.availability import Availability
from sims.checks import Watch
from sims.clock import SECOND_US, VirtualLoop
from sims.compute import Stopwatch, TrainingPool
from sims.costs import TrainingCost
from sims.devices import Device
from sims.fleet import Blueprint, Fleet, Parts
from sims.links import LinkModel
from sims.power import Power
from sims.scenario import AvailabilityTable, PowerTable
from sims.traces import Traces
from tests.protocol.planning import COSTS
from tests.protocol.scenarios import CHUNK_BYTES, MANIFEST, MODEL, PLAN, first_params, make_config

NO_TRACES = Traces(None)
FAILED_TRAININGS = 0.02
PROBES_OF_A_TURN = 6


def fair_link(latency_us: int = 10_000) -> LinkModel:
    """Return a link on which nothing goes wrong."""
    return LinkModel(latency_us, up_bps=0, down_bps=0, loss=0, repeat=0, reorder_us=0, trace=None)


def fleet_config(
    law: str,
    *,
    nodes: int = 6,
    gateways: int = 2,
    plan: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    island: Mapping[str, Any] | None = None,
) -> Config:
    return make_config(
        island=island or {},
        plan=plan or {},
        fleet={"model": MODEL, "nodes": nodes, "gateways": gateways},
        broker={"chunk_bytes": CHUNK_BYTES},
        node={"resend_s": 4.0, "outbox_updates": 5, "offline_updates": 3, "sleep_s": 0.2},
        staleness={"law": law, "tau_max": 8},
        aggregation={
            "buffer_size": 3,
            "deadline_s": 5.0,
            "checkpoint_versions": 10,
            "count_max": 4,
        },
        gateway={"flush_count": 3, "held_updates": 24},
        training={"clip_norm": 2.0, **(training or {})},
        stop={"max_versions": 1_000_000},
    )


def make_device(
    index: int,
    *,
    link: LinkModel | None = None,
    power: PowerTable | None = None,
    availability: AvailabilityTable | None = None,
    training_s: float = 0.4,
    jitter: float = 0.8,
    roam_every_s: float = 0.0,
) -> Device:
    """Return a device whose trainings take `training_s` as a median, plus a tenth of a second."""
    name = f"node-{index + 1}"
    rng = random.Random(f"device:{name}")
    return Device(
        name=name,
        kind="small",
        index=index,
        mflop_per_s=1.0 / training_s,
        jitter=jitter,
        overhead_us=SECOND_US // 10,
        memory_bytes=0,
        memory_class="default",
        link=link or fair_link(),
        power=Power(power, rng, NO_TRACES),
        availability=Availability(availability or AvailabilityTable(), rng, NO_TRACES, index),
        roam_every_s=roam_every_s,
    )


class TinyWorld:
    """Every node pulls towards a target of its own; some trainings fail, as their seed has it.

    `deltas` has what each training came to, by the seed of its job.
    """

    def __init__(self, seed: int, failures: float = FAILED_TRAININGS) -> None:
        self.failures = failures
        self.deltas: dict[int, Vector] = {}
        self._random = random.Random(f"{seed}:failures")
        self._probes = 0

    @property
    def manifest(self) -> Manifest:
        return MANIFEST

    def initial_params(self) -> Vector:
        return first_params()

    def train(self, jobs: Sequence[tuple[int, Train]]) -> list[Trained | ComputeError]:
        return [self._train(node, job) for node, job in jobs]

    def _train(self, node: int, job: Train) -> Trained | ComputeError:
        if self._random.random() < self.failures:
            return ComputeError("out of memory")
        result = trained(node, job)
        self.deltas[job.seed] = result.delta
        return result

    def evaluate(self, params: Vector) -> Mapping[str, float]:
        return {"accuracy": 0.0}

    def evaluate_nodes(self, params: Vector) -> Sequence[Mapping[str, float]]:
        return []

    def evaluate_node(self, node: int, params: Vector) -> Mapping[str, float]:
        return {"accuracy": 0.0}

    def probe(self, node: int, job: Probe) -> Probed | ComputeError:
        if self._random.random() < self.failures:
            return ComputeError("out of memory")
        self._probes += 1
        return probed(node, job, (self._probes - 1) // PROBES_OF_A_TURN)

    def costs(self) -> ModelCosts:
        return COSTS

    def training_cost(self, plan: Plan) -> TrainingCost:
        return TrainingCost(step_mflop=1.0)

    def too_large(self, job: Train) -> ComputeError | None:
        return None

    def examples(self, node: int) -> int:
        return 1


def trained(node: int, job: Train) -> Trained:
    """Return a step towards the node's own target, with noise."""
    word = zlib.crc32(b"node-%d" % node)
    noise = np.random.default_rng([job.seed, word])
    start: Vector = MANIFEST.take(job.params, job.plan.names)
    start = start if job.offset is None else start + job.offset
    target = np.full(job.plan.size, word % 7 - 3, np.float32)
    pull = 0.1 * (target - start) + 0.01 * noise.standard_normal(job.plan.size)
    return Trained(
        job=job.job,
        delta=pull.astype(np.float32),
        examples=int(noise.integers(1, 64)),
        steps=4,
        step_square_sum=1.0,
        loss_first=1.0,
        loss_last=0.5,
        peak_bytes=1000,
    )


def probed(node: int, job: Probe, turn: int) -> Probed:
    """Return values of which one weight's is by far the largest: another one's every turn, and larger."""
    weights = [unit.name for unit in MANIFEST.units if not unit.is_bias]
    star, most = weights[turn % len(weights)], 1000.0 * 5.0 ** (turn % 30)
    squares = {unit: most if unit == star else 1 + node / 100 for unit in job.plan.names}
    return Probed(job.job, squares, job.batches)


class HoldingPool(TrainingPool):
    """A training pool that can be told to hold trainings back: their results never come."""

    paused = False
    released: int | None = None

    def __init__(self, loop: VirtualLoop, world: TinyWorld, stopwatch: Stopwatch) -> None:
        super().__init__(loop, world, stopwatch)
        self.held: list[tuple[int, asyncio.Future[Trained]]] = []

    def train(self, node: int, job: Train, took_us: int) -> "asyncio.Future[Trained]":
        if not self.paused or node == self.released:
            return super().train(node, job, took_us)
        future: asyncio.Future[Trained] = asyncio.get_running_loop().create_future()
        self.held.append((node, future))
        return future

    def release(self) -> None:
        """Let one node train although training is paused; what it held may be stale by now, so it fails."""
        waiting = [(node, future) for node, future in self.held if not future.done()]
        self.released, future = waiting[-1]
        future.set_exception(ComputeError("too late"))


class SmallFleet(Fleet):
    """Six nodes and two gateways at one broker, or at one broker each with nodes that move between them."""

    def __init__(
        self,
        seed: int,
        law: str = "exponential",
        *,
        parts: Parts | None = None,
        watch: Watch | None = None,
        devices: Sequence[Device] | None = None,
        gateways: int = 2,
        brokers: int = 1,
        replay: bool = True,
        plan: Mapping[str, Any] | None = None,
        training: Mapping[str, Any] | None = None,
        island: Mapping[str, Any] | None = None,
    ) -> None:
        roam_every_s = 30.0 if brokers > 1 else 0.0
        devices = devices or [make_device(n, roam_every_s=roam_every_s) for n in range(6)]
        self.world = world = TinyWorld(seed)
        nodes = len(devices)
        config = fleet_config(
            law, nodes=nodes, gateways=gateways, plan=plan, training=training, island=island
        )
        blueprint = Blueprint(
            config=config,
            strategy=FTTE,
            plans=first_plans(config, MANIFEST, COSTS) if plan else PlanSet(PLAN),
            costs=COSTS if plan else None,
            params=world.initial_params(),
            devices=devices,
            gateway_links=[fair_link() for _ in range(gateways)],
            brokers=brokers,
            evaluate_every_us=3 * SECOND_US,
            seed=seed,
            replay=replay,
            keep_bodies=True,
            parts=parts or Parts(),
        )
        super().__init__(blueprint, world, watch=watch or Watch())
        self.trainings = HoldingPool(self.loop, world, self.stopwatch)
        self.pool = self.trainings

    def run(self, seconds: float) -> None:
        """Let virtual seconds pass."""
        self.run_until_us(self.loop.now_us + round(seconds * SECOND_US))

    def events(self, event: str) -> int:
        """Return how often processes recorded an event, with its reason, over all their lives."""
        return sum(process.recorder.events[event] for process in self.processes)
