"""Sites cut off from the aggregator: they go on learning, and nothing is lost or counts twice."""

import dataclasses
from typing import Any

import pytest
from msgspec.structs import replace

from gateway.protocol import GatewayProtocol
from hedgerow.core.config import GatewayConfig
from hedgerow.core.versions import is_provisional, next_life
from sims.checks import Watch
from sims.clock import SECOND_US
from sims.faults import Faults
from tests.simulation import oracle
from tests.simulation.fleets import SmallFleet, make_device
from tests.simulation.mutants import SOUND
from tests.simulation.storms import Storms
from tests.simulation.trials import settle

ISLAND = {
    "enabled": True,
    "after_s": 6.0,
    "buffer_size": 3,
    "deadline_s": 2.0,
    "least_weight": 0.5,
}
HELD, OUTBOX = 512, 128


class Roomy(GatewayProtocol):
    """A gateway that holds all that its nodes make in an outage."""

    def __init__(self, gateway: str, boot: int, config: GatewayConfig, **keys: Any) -> None:
        super().__init__(gateway, boot, replace(config, held_updates=HELD), **keys)


def make_fleet(seed: int, *, gateways: int = 2, brokers: int = 1) -> SmallFleet:
    """Return a fleet whose nodes have room for an outage; with more brokers, sites, nobody moves."""
    devices = [make_device(number) for number in range(6)]
    fleet = SmallFleet(
        seed,
        parts=dataclasses.replace(SOUND, gateway=Roomy),
        gateways=gateways,
        brokers=brokers,
        devices=devices,
        island=ISLAND,
        watch=Watch(),
    )
    for node in fleet.nodes:
        node.node_config = replace(node.node_config, outbox_updates=OUTBOX)
    return fleet


def cut(fleet: SmallFleet, *numbers: int) -> None:
    """Cut gateways' lines to the aggregator."""
    for number in numbers:
        line = fleet.gateways[number].line
        line.cut = True
        fleet.uplinks.break_line(line)


def heal(fleet: SmallFleet, *numbers: int) -> None:
    for number in numbers:
        fleet.gateways[number].line.cut = False


def provisional_bases(fleet: SmallFleet) -> int:
    """Return how many updates of provisional versions were issued."""
    return sum(is_provisional(base) for base in fleet.watch.issued.values())


def applied_provisional(fleet: SmallFleet) -> int:
    rows = fleet.ledger.ledger.values()
    return sum(is_provisional(row.header.base_version) for row in rows)


def contributions(fleet: SmallFleet) -> list[tuple[str, int]]:
    """Return which gateway made each merged contribution, and of how many updates."""
    inputs = oracle.ledger_of(fleet).inputs.values()
    return [
        (partial.island.gateway, len(partial.headers))
        for partials in inputs
        for partial in partials
        if partial.island is not None
    ]


def test_a_site_learns_while_it_is_cut_off_and_hands_it_all_in_as_one_contribution() -> None:
    fleet = make_fleet(1)
    fleet.start()
    fleet.run(15)
    before = len(fleet.ledger.ledger)
    cut(fleet, 0, 1)
    fleet.run(60)
    assert len(fleet.ledger.ledger) <= before + 6, "nothing reaches the aggregator"
    assert fleet.events("island_began") == 1
    assert provisional_bases(fleet) > 200, "nodes train from provisional versions"
    heal(fleet, 0, 1)
    fleet.run(60)
    whole, *late = contributions(fleet)
    assert whole[0] == "gw-1"
    assert whole[1] > 200
    assert sum(count for _, count in late) <= 12, "only what was under way comes later"
    assert applied_provisional(fleet) == provisional_bases(fleet)
    settle(fleet)
    assert not fleet.events("update_rejected")


def test_the_other_gateways_nodes_learn_from_the_same_island() -> None:
    fleet = make_fleet(2)
    homes = ["gw-1", "gw-2"] * 3
    for node, home in zip(fleet.nodes, homes, strict=True):
        node.node_config = replace(node.node_config, home=home)
    fleet.start()
    fleet.run(15)
    cut(fleet, 0, 1)
    fleet.run(60)
    second = {node.disk.node for node in fleet.nodes[1::2]}
    issued = fleet.watch.issued.items()
    theirs = [i for i, base in issued if is_provisional(base) and i.node in second]
    assert len(theirs) > 10
    assert fleet.events("island_began") == 1
    heal(fleet, 0, 1)
    fleet.run(60)
    assert set(theirs) <= fleet.watch.applied
    settle(fleet)


def test_the_acting_gateway_dies_and_the_other_takes_over() -> None:
    fleet = make_fleet(3)
    faults = Faults(fleet)
    fleet.start()
    fleet.run(15)
    cut(fleet, 0, 1)
    fleet.run(25)
    faults.wipe(fleet.gateways[0], 30 * SECOND_US)
    fleet.run(60)
    assert fleet.events("island_began") >= 2
    heal(fleet, 0, 1)
    fleet.run(60)
    assert {gateway for gateway, _ in contributions(fleet)} >= {"gw-2"}
    settle(fleet)


def test_the_acting_gateway_restarts_and_goes_on_from_its_disk() -> None:
    fleet = make_fleet(4, gateways=1)
    faults = Faults(fleet)
    fleet.start()
    fleet.run(15)
    cut(fleet, 0)
    fleet.run(50)
    faults.crash(fleet.gateways[0], 1 * SECOND_US)
    fleet.run(30)
    assert fleet.events("island_restored") > 0
    assert fleet.events("island_began") == 2
    heal(fleet, 0)
    fleet.run(60)
    settle(fleet)


def test_one_site_of_two_is_cut_off_and_the_other_goes_on() -> None:
    fleet = make_fleet(5, brokers=2)
    fleet.start()
    fleet.run(15)
    cut(fleet, 0)
    version = fleet.ledger.version
    fleet.run(60)
    assert fleet.ledger.version > version + 10
    heal(fleet, 0)
    fleet.run(60)
    assert {gateway for gateway, _ in contributions(fleet)} == {"gw-1"}
    settle(fleet)


def test_an_island_whose_aggregator_was_put_back_is_taken_in() -> None:
    assert next_life(40, 30) > 40
    fleet = make_fleet(6)
    fleet.start()
    fleet.run(15)
    cut(fleet, 0, 1)
    fleet.run(30)
    Faults(fleet).crash(None, 2 * SECOND_US)
    fleet.run(10)
    heal(fleet, 0, 1)
    fleet.run(60)
    assert applied_provisional(fleet) > 0
    settle(fleet)


@pytest.mark.parametrize("seed", range(100, 106))
def test_islands_in_storms(seed: int) -> None:
    fleet = make_fleet(seed)
    storms = Storms(fleet, oracle.check)
    fleet.start()
    fleet.run(5)
    for count in range(4):
        cut(fleet, 0, 1)
        storms.rage(20)
        if count % 2:
            heal(fleet, 0)
        else:
            heal(fleet, 0, 1)
        storms.rage(10)
    storms.calm()
    heal(fleet, 0, 1)
    fleet.run(30)
    assert fleet.events("island_began") >= 1
    settle(fleet)
