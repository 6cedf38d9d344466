"""Plans that change under way, in whole fleets: on a calm day, under random faults, and after restarts.

The world's values change every few probes, so that nearly every search finds another plan.
"""

import dataclasses
from itertools import pairwise
from typing import Any

import pytest

from hedgerow.core.messages import Descriptor
from hedgerow.runtime.ports import ComputeError
from sims.checks import ViolationError
from sims.clock import SECOND_US
from sims.faults import Faults
from sims.host import NodeHost
from tests.protocol.planning import least_bytes
from tests.simulation import oracle
from tests.simulation.fleets import SmallFleet, make_device
from tests.simulation.mutants import SOUND
from tests.simulation.trials import (
    ask_oracle,
    ask_watch,
    live_through,
    weather_the_storm,
)

TIGHT = least_bytes("body.weight", "body.bias", "head.bias")
SMALL = least_bytes("head.bias")
PLAN: dict[str, Any] = {
    "budget_bytes": TIGHT,
    "class_budgets": {"small": SMALL},
    "replan_versions": 4,
    "warmup_versions": 0,
    "stall_versions": 0,
    "probe_share": 0.5,
    "hysteresis": 0.0,
    "probe_batches": 1,
}
SEEDS = 8


def planned_fleet(seed: int, law: str = "exponential", **plan: Any) -> SmallFleet:
    """Return a fleet of which every third node is of the small class."""
    roam_every_s = 30.0 if seed % 4 == 3 else 0.0
    devices = [
        dataclasses.replace(
            make_device(n, roam_every_s=roam_every_s),
            memory_class="small" if n % 3 == 2 else "default",
        )
        for n in range(6)
    ]
    brokers = 2 if roam_every_s else 1
    plan = {**PLAN, **plan}
    return SmallFleet(seed, law, parts=SOUND, devices=devices, brokers=brokers, plan=plan)


def descriptors(fleet: SmallFleet) -> list[Descriptor]:
    return [descriptor for descriptor, _ in oracle.ledger_of(fleet).history.values()]


def changes(fleet: SmallFleet) -> int:
    """Return how often a version had another plan than the one before it."""
    ids = [(d.plan_id, *d.nested) for d in descriptors(fleet)]
    return sum(former != later for former, later in pairwise(ids))


def late_updates(fleet: SmallFleet) -> int:
    """Return how many updates were merged into a version of another plan than their own."""
    ledger, plans = oracle.ledger_of(fleet), {d.version: d.plan_id for d in descriptors(fleet)}
    return sum(
        plans[row.version - 1] != plans[row.header.base_version] for row in ledger.ledger.values()
    )


def nested_updates(fleet: SmallFleet) -> int:
    """Return how many updates were trained under a plan of a memory class."""
    return sum(
        bool(header.plan_id)
        for partials in oracle.ledger_of(fleet).inputs.values()
        for partial in partials
        for header in partial.headers
    )


def class_of(fleet: SmallFleet, node: str) -> str:
    host: NodeHost = next(host for host in fleet.nodes if host.disk.node == node)
    return host.node_config.memory_class


def test_plans_change_every_few_versions_and_no_update_is_lost() -> None:
    fleet = planned_fleet(1)
    fleet.start()
    fleet.run(120)
    oracle.check(fleet)
    ask_oracle(fleet)
    ask_watch(fleet)
    assert fleet.ledger.version > 30
    assert changes(fleet) >= 3
    assert late_updates(fleet) >= 5
    assert nested_updates(fleet) >= 20
    reasons = {reason for node in fleet.nodes for _, _, reason in node.disk.ends}
    assert not reasons & {"unknown-plan", "inconsistent"}
    assert fleet.events("probe_taken") > 10


def test_every_plan_fits_and_small_devices_train_a_part_of_it() -> None:
    fleet = planned_fleet(2)
    fleet.start()
    fleet.run(60)
    for descriptor in descriptors(fleet):
        small = descriptor.nested[descriptor.training["small"].plan_id]
        assert set(small) < set(descriptor.plan)
        assert small == ["head.bias"]
    for partials in oracle.ledger_of(fleet).inputs.values():
        for header in (header for partial in partials for header in partial.headers):
            assert bool(header.plan_id) == (class_of(fleet, header.id.node) == "small")


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("law", ["exponential", "polynomial"])
def test_conservation_under_faults_while_plans_change(law: str, seed: int) -> None:
    fleet = planned_fleet(seed, law)
    try:
        live_through(fleet)
        ask_oracle(fleet)
        ask_watch(fleet)
    except ViolationError as violation:
        pytest.fail(f"law {law}, seed {seed}, at {fleet.loop.now_us} us: {violation}")
    assert changes(fleet) >= 2
    assert late_updates(fleet) >= 1
    assert nested_updates(fleet) >= 1


def test_a_seed_replays_to_the_same_plans() -> None:
    found = []
    for _ in range(2):
        fleet = planned_fleet(3)
        weather_the_storm(fleet)
        found.append((fleet.trace_hash, [d.plan_id for d in descriptors(fleet)]))
    assert found[0] == found[1]


def test_the_plan_outlives_its_aggregator() -> None:
    fleet = planned_fleet(1, replan_versions=0)
    fleet.start()
    fleet.run(30)
    before = descriptors(fleet)
    assert fleet.aggregator.recorder.events["replanned first-values"] == 1
    assert changes(fleet) == 1
    Faults(fleet).crash(None, SECOND_US)
    fleet.run(30)
    assert fleet.aggregator.life == 2
    after = descriptors(fleet)
    assert len(after) > len(before) + 3
    assert {d.plan_id for d in after[len(before) :]} == {before[-1].plan_id}
    ask_oracle(fleet)


def test_without_answers_the_first_plan_stays() -> None:
    fleet = planned_fleet(1)
    fleet.world.failures = 0.0
    fleet.world.probe = lambda *_: ComputeError("no")  # type: ignore[method-assign]
    fleet.start()
    fleet.run(40)
    assert changes(fleet) == 0
    assert fleet.events("probe_failed compute") > 3
    assert len(fleet.ledger.ledger) > 20
