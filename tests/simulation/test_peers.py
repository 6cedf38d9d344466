"""Gateways without an uplink: a chain of three of which only the last has one, under the fleet's oracle."""

import dataclasses
from typing import Any

from msgspec.structs import replace

from gateway.protocol import GatewayProtocol
from hedgerow.core.config import GatewayConfig
from sims.checks import Watch
from sims.faults import Faults
from tests.simulation import oracle
from tests.simulation.fleets import SmallFleet
from tests.simulation.mutants import SOUND
from tests.simulation.storms import Storms
from tests.simulation.trials import settle

NEIGHBOURS = {"gw-1": ["gw-2"], "gw-2": ["gw-3"], "gw-3": []}
HOMES = ["gw-1", "gw-1", "gw-1", "gw-1", "gw-2", "gw-3"]


class Chained(GatewayProtocol):
    """A gateway that knows the next one in the chain only, and spools early."""

    def __init__(self, gateway: str, boot: int, config: GatewayConfig, **keys: Any) -> None:
        own = replace(config, peers=NEIGHBOURS[gateway], spool_after_s=5.0)
        super().__init__(gateway, boot, own, **keys)


def make_chain(seed: int) -> SmallFleet:
    """Return a fleet whose first two gateways have no line to the aggregator."""
    parts = dataclasses.replace(SOUND, gateway=Chained)
    fleet = SmallFleet(seed, parts=parts, gateways=3, watch=Watch())
    for gateway in fleet.gateways[:2]:
        Faults(fleet).partition(gateway, 0)
    for node, home in zip(fleet.nodes, HOMES, strict=True):
        node.node_config = replace(node.node_config, home=home)
    return fleet


def applied_at(fleet: SmallFleet, home: str) -> int:
    """Return how many updates of a gateway's nodes are believed applied."""
    pairs = zip(fleet.nodes, HOMES, strict=True)
    return sum(node.disk.outcomes["applied"] for node, own in pairs if own == home)


def test_updates_land_over_two_peers_and_receipts_and_versions_come_back() -> None:
    fleet = make_chain(1)
    fleet.start()
    fleet.run(60)
    assert applied_at(fleet, "gw-1") > 100
    assert fleet.ledger.version > 20
    assert fleet.events("partial_taken_over") > 20
    assert fleet.uplinks.lines["gw/gw-1"].bytes_up > 0, "it goes on trying"
    assert not fleet.uplinks.lines["gw/gw-1"].open
    settle(fleet)


def test_a_relay_that_is_killed_and_wiped_loses_and_doubles_nothing() -> None:
    fleet = make_chain(2)
    faults = Faults(fleet)
    fleet.start()
    for _ in range(6):
        fleet.run(7)
        faults.wipe(fleet.gateways[1], 4_000_000)
        fleet.run(3)
        faults.crash(fleet.gateways[0], 1_000_000)
        oracle.check(fleet)
    before = applied_at(fleet, "gw-1")
    fleet.run(60)
    assert applied_at(fleet, "gw-1") > before + 50
    assert before > 0
    assert fleet.events("partial_unanswered no-reply") > 0
    settle(fleet)


def test_nothing_is_lost_when_the_only_line_comes_and_goes_and_the_uplink_returns() -> None:
    fleet = make_chain(3)
    faults = Faults(fleet)
    fleet.start()
    fleet.run(20)
    faults.partition(fleet.gateways[2], 30_000_000)
    fleet.run(25)
    assert fleet.events("update_spooled") > 0
    assert fleet.gateways[0].disk.updates
    faults.crash(fleet.gateways[0], 1_000_000)
    fleet.run(30)
    assert fleet.events("spool_loaded") > 0
    for gateway in fleet.gateways[:2]:
        gateway.line.cut = False
    fleet.run(60)
    assert all(line.open for line in fleet.uplinks.lines.values())
    assert not fleet.gateways[0].disk.updates, "the spool is empty once everything is settled"
    settle(fleet)


def test_chains_live_through_storms() -> None:
    for seed in range(3):
        fleet = make_chain(10 + seed)
        storms = Storms(fleet, oracle.check)
        fleet.start()
        fleet.run(5)
        for _ in range(4):
            storms.rage(10)
            for gateway in fleet.gateways[:2]:
                Faults(fleet).partition(gateway, 0)
        storms.calm()
        for gateway in fleet.gateways[:2]:
            Faults(fleet).partition(gateway, 0)
        fleet.run(30)
        assert applied_at(fleet, "gw-1") > 0
        assert fleet.events("partial_taken_over") > 0
        settle(fleet)
