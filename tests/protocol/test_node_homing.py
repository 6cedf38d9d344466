"""Which gateway a node chooses, and how long it keeps to it."""

import pytest

from edge_node.homing import choose_gateway
from hedgerow.core import names
from hedgerow.core.effects import Effect, Follow, LinkUp
from hedgerow.core.messages import NO_ROUTE, GatewayState
from tests.protocol.node_bench import Bench, gateway_state
from tests.protocol.scenarios import SECOND_US, recorded, timers

FLEET = [f"node-{n}" for n in range(200)]


def pair(**other: object) -> dict[str, GatewayState]:
    """Return two ready gateways; the second one differs as said."""
    return {"gw-1": gateway_state("gw-1", hops=0), "gw-2": gateway_state("gw-2", **other)}


def cut_off(gateway: str = "gw-1") -> GatewayState:
    return gateway_state(gateway, uplink=False)


def moved_to(effects: list[Effect]) -> list[str]:
    return [str(record.fields["now"]) for record in recorded(effects, "rehomed")]


# The choice.


def test_nodes_spread_evenly_over_equal_gateways() -> None:
    chosen = [choose_gateway(node, "", pair(hops=0)) for node in FLEET]
    assert 70 <= chosen.count("gw-1") <= 130
    assert chosen == [choose_gateway(node, "", pair(hops=0)) for node in FLEET]


@pytest.mark.parametrize(
    "worse",
    [{"state": "lost"}, {"uplink": False, "hops": NO_ROUTE}, {"hops": 1, "load": 0.95}],
)
def test_all_nodes_take_the_better_one(worse: dict[str, object]) -> None:
    assert {choose_gateway(node, "", pair(**worse)) for node in FLEET} == {"gw-1"}


def test_a_way_through_peers_is_a_way_and_one_without_room_is_better_than_none() -> None:
    peers = pair(uplink=False, hops=2)
    assert {choose_gateway(node, "", peers) for node in FLEET} == {"gw-1", "gw-2"}
    full = {"gw-1": gateway_state("gw-1", load=1.0), "gw-2": cut_off("gw-2")}
    assert {choose_gateway(node, "", full) for node in FLEET} == {"gw-1"}


def test_the_configured_home_wins_unless_it_is_dead() -> None:
    assert choose_gateway("node-1", "gw-2", pair(uplink=False, load=1.0)) == "gw-2"
    assert choose_gateway("node-1", "gw-2", pair(state="lost")) == "gw-1"
    assert choose_gateway("node-1", "", {}) == ""


# Patience.


def elsewhere(gateway: str = "gw-1") -> tuple[Bench, str]:
    """Return a node at a gateway that had a way to the aggregator, and another gateway's name."""
    bench = Bench().online(gateway)
    better = next(
        name
        for name in (f"gw-{n}" for n in range(2, 99))
        if choose_gateway("node-1", "", {g: gateway_state(g) for g in (gateway, name)}) == gateway
    )
    bench.hear(f"gw/{better}", gateway_state(better))
    return bench, better


def test_a_gateway_that_loses_its_way_is_left_only_after_a_while() -> None:
    bench, other = elsewhere()
    effects = bench.hear("gw/gw-1", cut_off())
    assert moved_to(effects) == []
    assert timers(effects)["homing"] == 30 * SECOND_US
    bench.now_us += 30 * SECOND_US
    effects = bench.timer("homing")
    assert moved_to(effects) == [other]
    assert Follow(f"gw/{other}/plan/model") in effects


def test_a_restart_of_the_aggregator_moves_nobody() -> None:
    bench, other = elsewhere()
    effects = bench.hear("gw/gw-1", cut_off()) + bench.hear(f"gw/{other}", cut_off(other))
    effects += bench.hear(f"gw/{other}", gateway_state(other))
    bench.now_us += 20 * SECOND_US
    effects += bench.hear("gw/gw-1", gateway_state("gw-1"))
    bench.now_us += 20 * SECOND_US
    assert moved_to(effects + bench.timer("homing")) == []


def test_a_timer_that_comes_early_is_set_again() -> None:
    bench, other = elsewhere()
    bench.hear("gw/gw-1", cut_off())
    bench.now_us += 30 * SECOND_US - 1
    effects = bench.timer("homing")
    assert timers(effects)["homing"] == 1
    bench.now_us += 1
    assert moved_to(bench.timer("homing")) == [other]


def test_where_it_never_was_better_a_node_does_not_wait() -> None:
    bench = Bench()
    bench.hear(names.BROKER, LinkUp())
    bench.hear("gw/gw-1", cut_off())
    assert moved_to(bench.hear("gw/gw-2", gateway_state("gw-2"))) == ["gw-2"]


def test_a_dead_gateway_is_left_at_once_even_for_one_without_a_way() -> None:
    bench, other = elsewhere()
    bench.hear(f"gw/{other}", cut_off(other))
    assert moved_to(bench.hear("gw/gw-1", gateway_state("gw-1", state="lost"))) == [other]


def test_a_node_comes_back_to_its_home_when_that_lives_again() -> None:
    bench = Bench(home="gw-1").online("gw-1")
    bench.hear("gw/gw-2", gateway_state("gw-2"))
    assert moved_to(bench.hear("gw/gw-1", gateway_state("gw-1", state="lost"))) == ["gw-2"]
    assert moved_to(bench.hear("gw/gw-1", gateway_state("gw-1", boot=2))) == ["gw-1"]
