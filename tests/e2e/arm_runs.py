"""Runs one fleet in both arms: as processes with Mosquitto, and in the simulator."""

import asyncio
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msgspec import to_builtins

from aggregator.intake import read_partial
from aggregator.ledger import Ledger
from aggregator.lineage import Lineage
from aggregator.merger import step
from aggregator.rows import LedgerRow
from hedgerow.core.config import Config
from hedgerow.core.messages import Descriptor
from hedgerow.core.plan import Plan
from hedgerow.core.search import first_plan
from hedgerow.core.strategy import FTTE
from hedgerow.core.units import Manifest, Vector
from hedgerow.runtime.configfile import load_config
from sims.broker import _SUBSCRIBE_BYTES, PACKET_BYTES, Session
from sims.clock import SECOND_US
from sims.fleet import Fleet
from sims.measure import Meter
from sims.run import build_fleet
from sims.scenario import Scenario
from sims.scenariofile import load_scenario, strategy_setup, with_overrides
from sims.traces import Traces
from sims.world import FleetWorld, real_world
from tests.e2e.fleet_process import UpRun
from tests.e2e.two_arms import Arm

DEMO = "configs/demo.toml"
TABLES = (
    "fleet",
    "data",
    "task",
    "plan",
    "training",
    "staleness",
    "aggregation",
    "gateway",
    "node",
)
_STRATEGY = "ftte"
_DRAIN_S = 5
_POLL_S = 0.25
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class RealRun:
    """A finished run of processes. `usual_s` is how long a training took there, the median of all nodes'."""

    arm: Arm
    usual_s: float


# The simulated arm.


class PayloadMeter:
    """Counts a simulated session's bytes as the real one does: without heads of packets, or subscriptions."""

    def __init__(self, session: Session) -> None:
        self.up_bytes = 0
        self.down_bytes = 0
        self._upward_us, self._downward_us = session.upward_us, session.downward_us
        session.upward_us = self._up  # type: ignore[method-assign]
        session.downward_us = self._down  # type: ignore[method-assign]

    def _up(self, now_us: int, size_bytes: int) -> int:
        if size_bytes != _SUBSCRIBE_BYTES:
            self.up_bytes += size_bytes - PACKET_BYTES
        return self._upward_us(now_us, size_bytes)

    def _down(self, now_us: int, size_bytes: int) -> int:
        self.down_bytes += size_bytes - PACKET_BYTES
        return self._downward_us(now_us, size_bytes)


def simulate(versions: int, changes: Mapping[str, Any], usual_s: float | None = None) -> Arm:
    """Run configs/sims/demo.toml with some `changes` until it has so many versions, and drain it.

    With `usual_s`, devices are as fast as those that needed so long for a training of the mean shard.
    """
    scenario = with_overrides(load_scenario("demo"), {"stop.max_versions": versions, **changes})
    strategy, config = strategy_setup(scenario, _STRATEGY)
    world = real_world(scenario, config, scenario.scenario.seed)
    if usual_s is not None:
        scenario = _as_fast(scenario, config, world, usual_s)
    meter = Meter(config.stop.metric, scenario.scenario.target)
    fleet = build_fleet(scenario, config, strategy, world, Traces(None), meter)
    payloads = [PayloadMeter(node.attachment.session) for node in fleet.nodes]
    first = fleet.ledger.descriptors[0]
    fleet.start()
    _run_to_version(fleet, versions, scenario.scenario.duration_s)
    assert fleet.replay is not None
    fleet.replay.verify()
    fleet.watch.balance(node.disk for node in fleet.nodes)
    return Arm(
        name="simulated",
        tables=_tables(config),
        digests=_digests(first),
        rows=list(fleet.ledger.ledger.values()),
        versions=fleet.ledger.version,
        curve=[(point.version, point.value) for point in meter.curve],
        issued=sum(node.disk.issued for node in fleet.nodes),
        up_bytes=sum(meter.up_bytes for meter in payloads),
        down_bytes=sum(meter.down_bytes for meter in payloads),
        frozen_bytes=_frozen_bytes(config, world.manifest),
        broken=fleet.watch.violations,
    )


def _as_fast(scenario: Scenario, config: Config, world: FleetWorld, usual_s: float) -> Scenario:
    """Return the scenario with devices whose median training takes `usual_s`."""
    examples = statistics.mean(world.examples(node) for node in range(config.fleet.nodes))
    cost = world.training_cost(_plan(config, world.manifest))
    mflop = cost.step_mflop * examples * config.training.passes
    busy_s = max(usual_s - scenario.devices[0].overhead_s, 0.001)
    return with_overrides(scenario, {"devices.process.mflop_per_s": mflop / busy_s})


def _run_to_version(fleet: Fleet, versions: int, bound_s: float) -> None:
    second = 0
    while fleet.ledger.version < versions:
        second += 1
        assert second <= bound_s, f"version {versions} was not reached in {bound_s:g} virtual s"
        fleet.run_until_us(second * SECOND_US)
    fleet.run_until_us((second + _DRAIN_S) * SECOND_US)


def _tables(config: Config) -> dict[str, Any]:
    tables = to_builtins(config)
    return {name: tables[name] for name in TABLES} | {"chunk_bytes": config.broker.chunk_bytes}


def _digests(descriptor: Descriptor) -> dict[str, str]:
    return {name: unit.digest for name, unit in sorted(descriptor.units.items())}


def _plan(config: Config, manifest: Manifest) -> Plan:
    return first_plan(manifest, config.plan)


def _frozen_bytes(config: Config, manifest: Manifest) -> int:
    frozen = manifest.size - _plan(config, manifest).size
    return _FLOAT_BYTES * frozen * config.fleet.nodes


# The real arm.


def run_processes(
    folder: Path, versions: int, bound_s: float, config_file: Path | str = DEMO
) -> RealRun:
    """Run `hedgerow up` with Mosquitto until it has so many versions; below 50, so that all can be replayed.

    Raises AssertionError, with what was printed, when it does not get there.
    """
    goal = ["--target", "1.0", "--max-versions", str(versions)]
    with UpRun(config_file, folder, "--broker", "mosquitto", "--fresh", *goal) as run:
        pictures = _watch(run, bound_s)
        run.wait(bound_s)
        report = run.report
    assert report["done"] == "max-versions", run.output[-3000:]
    # A busy machine answers seldom: the last picture with all nodes is the one closest to the end.
    last, config = pictures[-1], load_config(folder / "config.json")
    world = real_world(load_scenario("demo"), config, config.fleet.seed)
    ledger = folder / "aggregator"
    history = asyncio.run(read_history(ledger, config, world.manifest, world.initial_params()))
    arm = Arm(
        name="processes",
        tables=_tables(config),
        digests=_digests(history.first),
        rows=history.rows,
        versions=report["version"],
        curve=[(point["version"], point["value"]) for point in report["curve"]],
        issued=_counted(last, "issued"),
        up_bytes=_counted(last, "mqtt_bytes_up"),
        down_bytes=_counted(last, "mqtt_bytes_down"),
        frozen_bytes=_frozen_bytes(config, world.manifest),
        broken=[*report["account"]["problems"], *history.problems],
    )
    return RealRun(arm, _usual_s(pictures))


def _watch(run: UpRun, bound_s: float) -> list[list[dict[str, Any]]]:
    """Return the states of the nodes, all of them alive, as they were seen until the end of the run.

    The report's own bytes are older than its updates: nodes say theirs when a training begins. Those that one
    state holds belong together.
    """
    deadline = time.monotonic() + bound_s
    pictures = []
    while run.process.poll() is None and time.monotonic() < deadline:
        status = run.status() or {"nodes": []}
        states = [node["state"] for node in status["nodes"]]
        if states and all(state["counters"].get("issued") for state in states):
            pictures.append(states)
        time.sleep(_POLL_S)
    assert pictures, run.output[-3000:]
    most = max(len(states) for states in pictures)
    return [states for states in pictures if len(states) == most]


def _counted(states: Sequence[Mapping[str, Any]], counter: str) -> int:
    return sum(state["counters"][counter] for state in states)


def _usual_s(pictures: Sequence[Sequence[Mapping[str, Any]]]) -> float:
    """Return the median of what nodes called usual, in the later half: the first training loads its code."""
    later = pictures[len(pictures) // 2 :]
    usual_us = [float(state["usual_us"]) for states in later for state in states]
    return statistics.median(usual_us) / SECOND_US


@dataclass(frozen=True)
class History:
    """An aggregator's ledger, and what is wrong with its versions; `descriptors` from version 0 on."""

    descriptors: Sequence[Descriptor]
    rows: Sequence[LedgerRow]
    problems: Sequence[str]

    @property
    def first(self) -> Descriptor:
        """Version 0."""
        return self.descriptors[0]


async def read_history(folder: Path, config: Config, manifest: Manifest, params: Vector) -> History:
    """Read the ledger of a finished run and compute every version again from its inputs: C4.

    `params`, shape (P,), are what version 0's should be.
    """
    ledger = await Ledger.open(folder, config.fleet.model)
    try:
        snapshot = await ledger.load()
        assert snapshot is not None
        first, *others = snapshot.descriptors
        assert first.version == 0, "the ledger has dropped its first versions"
        problems = [] if _digests(first) == manifest.digests(params) else ["version 0 is another"]
        lineage = Lineage(config, Plan.of(manifest, first.plan), individual=FTTE.individual)
        lineage.add(first)
        state = FTTE.init(params)
        for descriptor in others:
            partials = await ledger.merge_inputs(descriptor.version)
            entries = [read_partial(partial, lineage) for partial in partials]
            params, state = step(FTTE, state, params, entries, lineage)
            if _digests(descriptor) != manifest.digests(params):
                problems.append(f"C4: version {descriptor.version} is not the replay of its inputs")
            lineage.add(descriptor)
            lineage.tally.add(descriptor.version, sum(len(p.headers) for p in partials))
    finally:
        await ledger.close()
    return History(snapshot.descriptors, snapshot.ledger, problems)
