"""A site without the aggregator: when its island begins, what it learns, and how that goes up."""

from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from gateway.rows import DropIsland, KeepIsland, Spooled
from hedgerow.core import names
from hedgerow.core.effects import Effect, LinkDown, LinkUp, Saved, Undelivered
from hedgerow.core.messages import (
    Bundle,
    Descriptor,
    GatewayState,
    IslandStamp,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    Update,
)
from hedgerow.core.units import Vector
from hedgerow.core.versions import first_of_term
from tests.protocol.gateway_bench import LINEAGE, Bench, receipts
from tests.protocol.scenarios import (
    MODEL,
    PLAN,
    SECOND_US,
    announced,
    make_update,
    node_state,
    recorded,
    saved_rows,
    saves,
    sent,
    timers,
)

AFTER_S, DEADLINE_S = 600.0, 60.0
SETTINGS = {"enabled": True, "after_s": AFTER_S, "buffer_size": 2, "deadline_s": DEADLINE_S}
FIRST = first_of_term(1)


def make_bench(name: str = "gw-1", **config: Any) -> Bench:
    """Return a gateway that had two versions and then lost its uplink."""
    bench = Bench(name, island=SETTINGS, **config)
    bench.hear(names.BROKER, LinkUp())
    bench.ready(2)
    bench.above(LinkDown())
    return bench


def acting_bench(**config: Any) -> Bench:
    """Return a gateway that acts as its site's aggregator."""
    bench = make_bench(**config)
    bench.timer("island")
    return bench


def peer_state(name: str = "gw-2", **keys: Any) -> GatewayState:
    told = {"t": "gateway-state", "gateway": name, "boot": 7, "state": "ready", "served": 1}
    return msgspec.convert({**told, **keys}, GatewayState)


def meet(bench: Bench, name: str = "gw-2", **keys: Any) -> list[Effect]:
    return bench.hear(f"gw/{name}", peer_state(name, **keys))


def contributions(effects: list[Effect]) -> list[Partial]:
    return [partial for partial in sent(effects, Partial) if partial.island is not None]


def delta_in(partial: Partial) -> Vector:
    assert partial.island is not None
    return np.frombuffer(partial.island.delta, "<f4").astype(np.float32)


def numbers(effects: list[Effect]) -> list[int]:
    return [descriptor.version for descriptor in announced(effects, Descriptor)]


def feed(bench: Bench, *updates: Update) -> list[Effect]:
    return [effect for update in updates for effect in bench.update(update)]


# Begin.


def test_a_version_that_never_became_whole_hides_no_island() -> None:
    bench = Bench(island=SETTINGS)
    bench.hear(names.BROKER, LinkUp())
    bench.ready(2).above(LINEAGE.descriptor(2))
    bench.above(LinkDown())
    assert numbers(bench.timer("island")) == [FIRST]
    assert numbers(feed(bench, make_update(1, 1), make_update(2, 1))) == [FIRST + 1]
    bench.above(LinkUp())
    assert numbers(bench.take_version(LINEAGE.descriptor(2))) == [2], (
        "told again, it ends the island"
    )


def test_islands_are_off_unless_enabled() -> None:
    bench = Bench()
    bench.hear(names.BROKER, LinkUp())
    bench.ready(2)
    assert "island" not in timers(bench.above(LinkDown()))
    assert numbers(bench.timer("island")) == []


def test_after_a_while_without_a_way_the_gateway_serves_a_provisional_version() -> None:
    bench = Bench(island=SETTINGS)
    bench.hear(names.BROKER, LinkUp())
    bench.ready(2)
    assert timers(bench.above(LinkDown()))["island"] == AFTER_S * SECOND_US
    effects = bench.timer("island")
    (descriptor,) = announced(effects, Descriptor)
    assert descriptor.version == FIRST
    assert descriptor.island == IslandStamp("gw-1", 1, 1)
    assert descriptor.individual
    assert descriptor.units == LINEAGE.descriptor(1).units
    bench.now_us += 2 * SECOND_US
    said = announced(effects + bench.timer("announce"), GatewayState)[-1]
    assert (said.acting, said.uplink, said.served) == (1, False, 1)
    assert recorded(effects, "island_began")
    assert bench.gateway.ready


def test_an_uplink_in_time_prevents_it() -> None:
    bench = make_bench()
    bench.above(LinkUp())
    assert numbers(bench.timer("island")) == []


def test_without_a_whole_version_nobody_acts() -> None:
    bench = Bench(island=SETTINGS)
    bench.hear(names.BROKER, LinkUp())
    assert numbers(bench.timer("island")) == []


@pytest.mark.parametrize(
    ("peer", "served"),
    [
        ({"name": "gw-0"}, []),
        ({"name": "gw-0", "served": 0}, [FIRST]),
        ({"name": "gw-2"}, [FIRST]),
        ({"name": "gw-2", "served": 5}, []),
        ({"name": "gw-2", "acting": 3}, []),
        ({"name": "gw-2", "hops": 0, "uplink": True}, []),
    ],
)
def test_only_the_elected_gateway_begins(peer: dict[str, Any], served: list[int]) -> None:
    bench = make_bench()
    meet(bench, **peer)
    assert numbers(bench.timer("island")) == served


def test_a_term_that_anybody_saw_is_not_used_again() -> None:
    bench = make_bench()
    state = node_state("ready", "node-1", version=first_of_term(41) + 7)
    bench.hear("node/node-1", state)
    meet(bench, acting=40)
    meet(bench, acting=0)
    assert numbers(bench.timer("island")) == [first_of_term(42)]


# Learning.


def test_updates_are_merged_into_versions_and_stay_unsettled() -> None:
    bench = acting_bench()
    assert numbers(feed(bench, make_update(1, base=1))) == []
    effects = feed(bench, make_update(2, base=FIRST))
    (descriptor,) = announced(effects, Descriptor)
    assert descriptor.version == FIRST + 1
    assert descriptor.parent == FIRST
    changed = {n for n, unit in descriptor.units.items() if unit.changed == FIRST + 1}
    assert changed == set(PLAN.names)
    assert receipts(effects) == []
    assert sent(effects, Partial) == []
    assert recorded(effects, "island_merged")[0].amount == 2


def test_one_update_is_merged_at_the_deadline() -> None:
    bench = acting_bench()
    effects = feed(bench, make_update(1, base=FIRST))
    assert timers(effects)["island-merge"] == DEADLINE_S * SECOND_US
    assert numbers(bench.timer("island-merge")) == [FIRST + 1]


def test_an_update_of_an_unknown_island_is_merged_as_of_the_first_version() -> None:
    ours, other = acting_bench(), acting_bench()
    for bench, base in ((ours, FIRST), (other, first_of_term(9) + 4)):
        feed(bench, make_update(1, base=base), make_update(2, base=base))
    told = [contributions(bench.above(LinkUp()))[0] for bench in (ours, other)]
    assert np.array_equal(delta_in(told[0]), delta_in(told[1]))
    assert told[1].headers[0].base_version == first_of_term(9) + 4


def test_a_full_buffer_ends_the_learning_not_the_service() -> None:
    bench = acting_bench(held_updates=2)
    assert numbers(feed(bench, make_update(1, base=FIRST), make_update(2, base=FIRST)))
    effects = feed(bench, make_update(3, base=FIRST + 1))
    assert {r.status for r in receipts(effects)} == {"busy"}


# The end.


def ended_bench() -> tuple[Bench, Partial, list[Update]]:
    """Return a gateway whose uplink came back after two merges, its contribution, and what is in it."""
    bench = acting_bench()
    updates = [make_update(1, base=1), make_update(2, base=FIRST, value=0.5)]
    updates += [make_update(3, base=FIRST + 1, value=-0.25), make_update(4, base=FIRST)]
    feed(bench, *updates)
    effects = bench.above(LinkUp())
    (partial,) = contributions(effects)
    assert sent(effects, Partial) == [partial]
    return bench, partial, updates


def test_what_the_site_came_to_is_one_contribution() -> None:
    _, partial, updates = ended_bench()
    assert partial.island is not None
    assert [header.id for header in partial.headers] == [update.id for update in updates]
    assert [h.base_version for h in partial.headers] == [1, FIRST, FIRST + 1, FIRST]
    assert all(h.hash == u.hash for h, u in zip(partial.headers, updates, strict=True))
    assert (partial.island.gateway, partial.island.term) == ("gw-1", 1)
    assert (partial.island.base_version, partial.island.merges) == (1, 2)
    assert tuple(partial.island.units) == PLAN.names
    assert np.abs(delta_in(partial)).max() > 0.01
    assert partial.sums == []
    assert partial.updates == []


def test_what_was_pending_goes_along() -> None:
    bench = acting_bench()
    feed(bench, make_update(1, base=FIRST))
    (partial,) = contributions(bench.above(LinkUp()))
    assert [header.id.seq for header in partial.headers] == [1]
    assert partial.island is not None
    assert partial.island.merges == 1


def test_nodes_hear_of_the_settling_from_the_ledger_only() -> None:
    bench, partial, updates = ended_bench()
    assert receipts(bench.reply(partial, "accepted")) == []
    done = Receipts(receipts=[Receipt(update.id, "settled") for update in updates])
    assert {r.status for r in receipts(bench.above(done))} == {"settled"}
    assert contributions(bench.timer("report")) == []


def test_an_overlap_is_left_out_and_the_rest_comes_again() -> None:
    bench, partial, updates = ended_bench()
    named = [Receipt(updates[1].id, "settled"), Receipt(updates[0].id, "admitted")]
    (again,) = contributions(bench.reply(partial, "overlap", *named))
    assert [header.id for header in again.headers] == [update.id for update in updates[2:]]
    other = acting_bench()
    feed(other, make_update(9, base=FIRST), make_update(8, base=FIRST), *updates[2:])
    whole = contributions(other.above(LinkUp()))[0]
    first = acting_bench()
    feed(first, make_update(9, base=FIRST), make_update(8, base=FIRST))
    without = contributions(first.above(LinkUp()))[0]
    np.testing.assert_allclose(
        delta_in(again), delta_in(whole) - delta_in(without), atol=1e-6, rtol=0
    )
    assert contributions(bench.reply(again, "accepted")) == []


def test_a_rejected_contribution_leaves_the_aggregators_own_updates() -> None:
    bench, partial, updates = ended_bench()
    reply = PartialReply(partial_id=partial.id, status="rejected", reason="unknown-plan")
    effects = bench.above(reply)
    effects += bench.timer("flush") if "flush" in timers(effects) else []
    (alone,) = sent(effects, Partial)
    assert [header.id for header in alone.headers] == [updates[0].id]
    assert alone.island is None
    refused = receipts(effects)
    assert [r.id for r in refused] == [update.id for update in updates[1:]]
    assert {(r.status, r.reason) for r in refused} == {("rejected", "unknown-plan")}


def test_a_lost_post_comes_again_after_a_while() -> None:
    bench, partial, _ = ended_bench()
    effects = bench.above(Undelivered(partial, "no answer", SECOND_US))
    assert contributions(effects) == []
    assert timers(effects)["island-post"] >= SECOND_US
    (again,) = contributions(bench.timer("island-post"))
    assert again.headers == partial.headers
    assert again.id != partial.id
    assert np.array_equal(delta_in(again), delta_in(partial))


def test_late_updates_of_an_island_are_a_contribution_of_their_own() -> None:
    bench, partial, _ = ended_bench()
    bench.reply(partial, "accepted")
    effects = feed(bench, make_update(11, base=FIRST + 1), make_update(12, base=FIRST))
    assert sent(effects, Partial) == []
    (late,) = contributions(bench.timer("island-post"))
    assert late.island is not None
    assert (late.island.term, late.island.base_version, late.island.merges) == (1, 1, 1)
    assert [header.id.seq for header in late.headers] == [11, 12]


def test_late_updates_go_up_where_islands_are_off_too_and_nobody_knows_theirs() -> None:
    bench = Bench()
    bench.hear(names.BROKER, LinkUp())
    bench.ready(2)
    feed(bench, make_update(1, base=first_of_term(6) + 3))
    (late,) = contributions(bench.timer("island-post"))
    assert late.island is not None
    assert (late.island.term, late.island.base_version) == (6, 0), "the oldest version known here"


def test_the_aggregators_next_version_ends_the_island_for_the_nodes() -> None:
    bench, _, _ = ended_bench()
    effects = bench.take_version(LINEAGE.descriptor(2))
    assert numbers(effects)[-1] == 2
    assert numbers(bench.timer("report")) == []


def test_a_second_outage_is_an_island_of_its_own() -> None:
    bench, partial, updates = ended_bench()
    bench.reply(partial, "accepted")
    bench.take_version(LINEAGE.descriptor(2))
    bench.above(Receipts(receipts=[Receipt(update.id, "settled") for update in updates]))
    bench.above(LinkDown())
    assert numbers(bench.timer("island")) == [first_of_term(2)]
    feed(bench, make_update(21, base=first_of_term(2)))
    (second,) = contributions(bench.above(LinkUp()))
    assert second.island is not None
    assert (second.island.term, second.island.base_version) == (2, 2)


# Several gateways.


def bundles(effects: list[Effect], peer: str = "gw/gw-2") -> list[Bundle]:
    return sent(effects, Bundle, peer)


def follower_bench() -> Bench:
    bench = make_bench()
    meet(bench, acting=3)
    return bench


def test_others_hand_their_updates_to_the_acting_one_as_they_are() -> None:
    bench = follower_bench()
    updates = [make_update(1, base=1), make_update(2, base=1)]
    (bundle,) = bundles(feed(bench, *updates))[:1]
    assert bundle.path == ["gw-1"]
    assert bundle.partials[0].updates[0] == updates[0]
    assert bundle.partials[0].sums == []


def test_the_acting_one_takes_them_in_and_passes_receipts_back() -> None:
    giver, taker = follower_bench(), Bench("gw-2", island=SETTINGS)
    taker.hear(names.BROKER, LinkUp())
    taker.ready(2)
    taker.above(LinkDown())
    taker.timer("island")
    updates = [make_update(1, base=1), make_update(2, base=1)]
    effects = []
    for bundle in bundles(feed(giver, *updates)):
        effects += taker.hear("gw/gw-1", bundle)
    assert numbers(effects) == [FIRST + 1]
    replies = sent(effects, PartialReply, "gw/gw-1")
    assert {reply.status for reply in replies} == {"accepted"}
    for reply in replies:
        assert receipts(giver.hear("gw/gw-2", reply)) == []
    (partial,) = contributions(taker.above(LinkUp()))
    taker.reply(partial, "accepted")
    done = Receipts(receipts=[Receipt(update.id, "settled") for update in updates])
    back = sent(taker.above(done), Receipts, "gw/gw-1")
    assert [r for message in back for r in message.receipts] == done.receipts
    assert [r.status for r in receipts(giver.hear("gw/gw-2", back[0]))] == ["settled", "settled"]


def test_a_bundle_that_does_not_fit_is_not_answered_and_forks_are_named() -> None:
    bench = acting_bench(held_updates=1)
    fork = make_update(1, base=1, value=0.5)
    feed(bench, make_update(1, base=1))

    def hand(update: Update) -> list[PartialReply]:
        partial = Partial(
            id="gw-2-1-1",
            gateway="gw-2",
            model=MODEL,
            at_version=1,
            headers=[update.header],
            updates=[update],
        )
        bundle = Bundle(gateway="gw-2", path=["gw-2"], partials=[partial])
        return sent(bench.hear("gw/gw-2", bundle), PartialReply, "gw/gw-2")

    assert hand(make_update(2, base=1, node="node-2")) == []
    assert hand(fork) == [], "the ledger has yet to choose"
    bench.above(Receipts(receipts=[Receipt(fork.id, "settled")]))
    (reply,) = hand(fork)
    assert reply.status == "overlap"
    assert reply.receipts == [Receipt(fork.id, "rejected", "fork", fork.hash)]


def test_when_the_acting_one_dies_its_updates_go_to_the_next() -> None:
    bench = follower_bench()
    for bundle in bundles(feed(bench, make_update(1, base=1), make_update(2, base=1))):
        for partial in bundle.partials:
            bench.hear("gw/gw-2", PartialReply(partial_id=partial.id, status="accepted"))
    meet(bench, state="lost")
    meet(bench, "gw-3", acting=4)
    again = bundles(bench.effects + bench.timer("report"), "gw/gw-3")
    assert {h.id.seq for b in again for p in b.partials for h in p.headers} == {1, 2}


def test_the_higher_term_wins_and_takes_over_what_was_merged() -> None:
    bench = acting_bench()
    feed(bench, make_update(1, base=FIRST), make_update(2, base=FIRST))
    effects = meet(bench, acting=5) + bench.timer("report")
    assert recorded(effects, "island_ended")
    handed = [h.id.seq for b in bundles(effects) for p in b.partials for h in p.headers]
    assert sorted(handed) == [1, 2]
    bench.now_us += 2 * SECOND_US
    assert announced(effects + bench.timer("announce"), GatewayState)[-1].acting == 0


def test_a_lower_term_does_not() -> None:
    bench = acting_bench()
    feed(bench, make_update(1, base=FIRST), make_update(2, base=FIRST))
    assert recorded(meet(bench, acting=1), "island_ended") == [], "of one term the lower name stays"
    assert numbers(feed(bench, make_update(3, base=FIRST), make_update(4, base=FIRST)))


def test_a_contribution_goes_over_a_peer_that_has_a_way() -> None:
    bench = acting_bench()
    feed(bench, make_update(1, base=FIRST), make_update(2, base=FIRST))
    (bundle,) = bundles(meet(bench, hops=0, uplink=True))
    (partial,) = bundle.partials
    assert partial.island is not None
    assert bench.hear("gw/gw-2", PartialReply(partial_id=partial.id, status="accepted"))


# The disk.


def test_after_a_restart_the_island_goes_on_under_a_new_term() -> None:
    bench = acting_bench()
    updates = [make_update(seq, base=FIRST, value=0.1 * seq) for seq in (1, 2, 3, 4)]
    effects = feed(bench, *updates)
    # What the begin saved is not among the bench's last effects: it is the same for every such gateway.
    begun = make_bench().timer("island")
    rows = {row.name: row.body for row in saved_rows(begun + effects, KeepIsland)}
    assert sorted(rows) == ["island", "merge-0000001", "merge-0000002"]
    again = Bench(island=SETTINGS, spooled=Spooled(updates=tuple(updates), island=rows))
    again.hear(names.BROKER, LinkUp())
    effects = again.timer("island")
    assert numbers(effects)[-1] == first_of_term(2) + 2
    whole, resumed = (contributions(b.above(LinkUp()))[0] for b in (bench, again))
    assert np.array_equal(delta_in(whole), delta_in(resumed))
    assert whole.headers == resumed.headers
    effects = again.reply(resumed, "accepted")
    assert saved_rows(effects, DropIsland)


def test_rows_that_cannot_be_read_cost_the_island_not_the_updates() -> None:
    updates = (make_update(1, base=1), make_update(2, base=1))
    spooled = Spooled(updates=updates, island={"island": b"\x93\x01", "merge-0000001": b"\x90"})
    bench = Bench(island=SETTINGS, spooled=spooled)
    assert recorded(bench.effects, "island_lost")
    bench.hear(names.BROKER, LinkUp())
    effects = bench.above(LinkUp())
    for version in range(2):
        effects += bench.take_version(LINEAGE.descriptor(version))
    posted = sent(effects, Partial)
    assert {h.id.seq for partial in posted for h in partial.headers} == {1, 2}


def test_saves_are_its_own_and_those_of_nobody_are_a_fault() -> None:
    bench = make_bench()
    (save,) = saves(bench.timer("island"))
    bench.do(lambda: bench.gateway.job_done(Saved(save.job), bench.now_us))
    with pytest.raises(RuntimeError):
        bench.gateway.job_done(Saved(999), bench.now_us)


def test_a_gateway_that_does_not_remember_an_island_refuses_nothing_of_it_for_good() -> None:
    bench = Bench().ready()
    update = replace(make_update(1, FIRST), plan_id="0" * 32)
    assert {told.status for told in receipts(bench.update(update))} == {"busy"}
