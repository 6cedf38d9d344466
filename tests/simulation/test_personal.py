"""Personal units in a whole fleet: they serve nodes that see different things, and no message has them."""

import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from hedgerow.core import codec
from hedgerow.core.encodings import encoded_bytes
from hedgerow.core.messages import Chunk, FleetReport, Message, Partial, Update, UpdateId
from hedgerow.core.plan import Plan
from sims.clock import SECOND_US
from sims.fleet import Fleet
from sims.measure import Meter
from sims.personal import node_values, personal_values
from sims.report.table import has_personal, learnt, tabulate
from sims.report.text import metric_text
from sims.result import Report, StrategyResult
from sims.run import build_fleet, make_world, run_strategy
from sims.scenario import Scenario
from sims.scenariofile import load_scenario, strategy_setup, with_overrides
from sims.world import FleetWorld
from tests.protocol.scenarios import MANIFEST, first_params
from tests.simulation import oracle
from tests.simulation.fleets import NO_TRACES, SmallFleet
from tests.simulation.mutants import SOUND
from tests.simulation.trials import drain, weather_the_storm

NODES = 10
SCENARIO = f"""
[scenario]
name = "own"
duration_s = 60
evaluate_every_s = 30
target = 1.0
strategies = ["ftte"]
[fleet]
nodes = {NODES}
gateways = 2
[data]
source = "digits"
split = "shards"
shards_per_node = 2
local_test_fraction = 0.25
[task]
outputs = 10
options = {{ hidden = [32] }}
[plan]
preset = "all"
personal = %s
[training]
passes = 2
[aggregation]
buffer_size = 5
[node]
sleep_s = 2.0
test_versions = 4
[[devices]]
name = "pi"
mflop_per_s = 100.0
"""


def scenario(folder: Path, personal: str) -> Scenario:
    path = folder / "own.toml"
    path.write_text(SCENARIO % personal)
    return load_scenario(path)


@dataclass(frozen=True)
class Run:
    """A fleet that has run, what learnt in it, and every message that was put on a wire."""

    fleet: Fleet
    world: FleetWorld
    wire: list[tuple[Message, bytes]]


@contextmanager
def tapped() -> Iterator[list[tuple[Message, bytes]]]:
    """Yield a list that gets everything the simulated broker and uplinks are asked to carry meanwhile."""
    seen: list[tuple[Message, bytes]] = []

    def encode(message: Message) -> bytes:
        body = codec.encode(message)
        seen.append((message, body))
        return body

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sims.broker.encode", encode)
        patch.setattr("sims.uplink.encode", encode)
        yield seen


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Run ten nodes of two classes each for a minute, the head being personal."""
    own = scenario(tmp_path_factory.mktemp("own"), '["output"]')
    strategy, config = strategy_setup(own, "ftte")
    world = make_world(own, config, 1)
    fleet = build_fleet(own, config, strategy, world, NO_TRACES, Meter("accuracy", 1.0))
    with tapped() as wire:
        fleet.start()
        fleet.run_until_us(60 * SECOND_US)
    return Run(fleet, world, wire)


def test_own_heads_serve_nodes_of_few_classes_better_than_one_for_all(
    tmp_path: Path, run: Run
) -> None:
    own = personal_values(run.fleet, run.world, "accuracy")
    shared = run_strategy(scenario(tmp_path, "[]"), "ftte", traces=NO_TRACES)
    assert shared.mean_personal_value is None
    assert shared.mean_node_value is not None
    assert shared.worst_decile is not None
    assert sum(own) / NODES > shared.mean_node_value + 0.03
    assert min(own) > shared.worst_decile + 0.03


def test_the_published_head_is_that_of_version_0(run: Run) -> None:
    fleet, manifest = run.fleet, run.world.manifest
    base = fleet.ledger.descriptors[fleet.ledger.version]
    first = run.world.initial_params()
    assert base.personal == ["output.weight", "output.bias"]
    assert base.version > 10
    for name in manifest.by_name:
        where = manifest.slices[name]
        unchanged = (fleet.ledger.params[base.version][where] == first[where]).all()
        assert unchanged == (name in base.personal)


def test_no_message_carries_a_personal_unit(run: Run) -> None:
    bodies = [node.disk.personal for node in run.fleet.nodes]
    assert all(set(body) == {"output.weight", "output.bias"} for body in bodies)
    check_wire(run.wire, Plan.of(run.world.manifest, ["hidden.0"]), bodies)


def test_no_message_carries_one_in_sums_and_offline_either() -> None:
    """A small fleet sends partial sums; personal is a unit in the midst of the model."""
    fleet = SmallFleet(1, plan={"preset": "all", "personal": ["body.bias"]})
    with tapped() as wire:
        fleet.start()
        fleet.run(20)
        fleet.nodes[0].attachment.cut()
        fleet.run(10)
        fleet.nodes[0].attachment.heal()
        fleet.run(10)
    bodies = [node.disk.personal for node in fleet.nodes]
    assert all(bodies)
    shared = ["body.weight", "head.weight", "head.bias"]
    check_wire(wire, Plan.of(fleet.compute.manifest, shared), bodies)
    assert any(isinstance(message, Partial) and message.sums for message, _ in wire)


@pytest.mark.parametrize("seed", [1, 2])
def test_own_values_and_updates_survive_a_storm_together(seed: int) -> None:
    """A node's own values are the sum of what its durable updates' trainings did to them, no more or less."""
    own, first = "body.weight", first_params()
    fleet = SmallFleet(seed, parts=SOUND, plan={"preset": "all", "personal": [own]})
    weather_the_storm(fleet, spared=["put back"])
    drain(fleet)
    oracle.check(fleet)
    lost = fleet.events("save_failed disk")
    assert lost > 0, "no save failed, so nothing is shown"
    for disk in oracle.node_disks(fleet):
        found = np.frombuffer(disk.personal[own], "<f4") - first[MANIFEST.slices[own]]
        done = np.zeros(found.size)
        sums = 0
        for update_id, body in disk.kept.items():
            update = codec.decode(body)
            assert isinstance(update, Update)
            text = f"{seed}:{disk.node}:{update.base_version}:{update_id.seq}"
            trained = fleet.world.deltas.get(zlib.crc32(text.encode()))
            sums += trained is None
            if trained is not None:
                done += trained[MANIFEST.slices[own]]
        assert 2 * sums == disk.outcomes["coalesced"], "only a sum comes from no training"
        assert np.abs(done).max() > 0.1
        np.testing.assert_allclose(found, done, rtol=1e-3, atol=1e-3)


def check_wire(wire: list[tuple[Message, bytes]], plan: Plan, own: list[dict[str, bytes]]) -> None:
    """Check that updates and sums are of the shared plan and just as long, and that no bytes are a node's."""
    secrets = [body for bodies in own for body in bodies.values()]
    chunks: dict[UpdateId, dict[int, bytes]] = defaultdict(dict)
    updates: list[Update] = []
    for message, body in wire:
        assert not any(secret in body for secret in secrets)
        match message:
            case Chunk():
                chunks[message.id][message.index] = message.body
            case Partial():
                updates += message.updates
                for sums in message.sums:
                    assert (sums.plan_id, len(sums.total)) == (plan.plan_id, 4 * plan.size)
                    assert len(sums.norms) == len(plan.names)
    updates += [whole(pieces) for pieces in chunks.values()]
    assert len(updates) > NODES
    for update in updates:
        assert update.plan_id == plan.plan_id
        sent_bytes = len(update.payload) + len(update.scales)
        assert sent_bytes == encoded_bytes(update.encoding, plan)


def whole(pieces: dict[int, bytes]) -> Update:
    update = codec.decode(b"".join(pieces[index] for index in sorted(pieces)))
    assert isinstance(update, Update)
    return update


def test_figures_of_tests_on_own_examples_reach_the_aggregator(run: Run) -> None:
    reports = [message for message, _ in run.wire if isinstance(message, FleetReport)]
    states: dict[str, dict[str, float]] = {}
    for report in reports:
        states.update({state.node: state.metrics for state in report.nodes if state.metrics})
    assert len(states) == NODES
    kinds = {"global accuracy", "global loss", "personal accuracy", "personal loss"}
    assert all(set(metrics) == kinds for metrics in states.values())
    own = sum(metrics["personal accuracy"] for metrics in states.values()) / NODES
    assert own > sum(metrics["global accuracy"] for metrics in states.values()) / NODES


def test_a_result_has_both_figures(tmp_path: Path) -> None:
    brief = with_overrides(scenario(tmp_path, '["output"]'), {"scenario.duration_s": 31})
    result = run_strategy(brief, "ftte", traces=NO_TRACES)
    assert result.mean_personal_value is not None
    assert result.mean_node_value is not None
    assert result.mean_personal_value > result.mean_node_value
    assert result.violations == []
    tracks: list[Any] = [(track.value, track.personal) for track in result.nodes]
    assert sum(own for _, own in tracks) / NODES == pytest.approx(result.mean_personal_value)
    assert sum(value for value, _ in tracks) / NODES == pytest.approx(result.mean_node_value)
    plain = replace(result, mean_personal_value=None)
    for shown, titles in ((result, ["worst decile", "own units"]), (plain, ["worst decile"])):
        report = report_of(shown)
        columns = learnt("accuracy", personal=has_personal([report]))
        assert [c.title for c in columns if c.title in ("worst decile", "own units")] == titles
    (row,) = tabulate([report_of(result)], learnt("accuracy", personal=True))
    assert metric_text("accuracy", result.mean_personal_value) in [c.text for c in row.cells]


def report_of(result: StrategyResult) -> Report:
    return Report(
        scenario="own",
        about="",
        seed=1,
        nodes=NODES,
        gateways=2,
        metric="accuracy",
        target=1.0,
        duration_s=31,
        command="",
        strategies={"ftte": result},
    )


def test_figures_are_on_the_examples_kept_for_tests(run: Run) -> None:
    params = run.fleet.ledger.params[run.fleet.ledger.version]
    found = node_values(run.fleet, run.world, "accuracy")
    assert found == [run.world.evaluate_node(n, params)["accuracy"] for n in range(NODES)]
    sizes = [run.world.examples(node) for node in range(NODES)]
    assert sum(sizes) == pytest.approx(0.75 * 0.8 * 1797, abs=NODES)
