"""The rules of the gateway: when it posts, what, and what becomes of it."""

import msgspec
import numpy as np
import pytest

from gateway.forward import MAX_BUCKETS
from hedgerow.core import names
from hedgerow.core.effects import (
    CancelTimer,
    LinkDown,
    LinkUp,
    Undelivered,
)
from hedgerow.core.messages import (
    NodeState,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    Update,
)
from hedgerow.core.partial import from_wire
from hedgerow.core.versions import LIFE_VERSIONS
from tests.protocol.gateway_bench import LINEAGE, Bench, receipts, settled
from tests.protocol.scenarios import (
    PLAN,
    SECOND_US,
    make_config,
    make_lineage,
    make_update,
    newest,
    node_state,
    recorded,
    sent,
    sums_of,
    timers,
)

POLYNOMIAL = make_config(staleness={"law": "polynomial"})


# Flushing.


def test_it_flushes_at_the_count() -> None:
    bench = Bench(flush_count=3).ready().expect("node-9")
    for seq in (1, 2):
        assert sent(bench.update(make_update(seq)), Partial) == []
    assert timers(bench.expect("node-8").effects).keys() == {"lease"}
    effects = bench.update(make_update(3))
    (partial,) = sent(effects, Partial, names.AGGREGATOR)
    assert [header.id.seq for header in partial.headers] == [1, 2, 3]
    assert CancelTimer("flush") in effects


def test_it_flushes_at_the_timer_and_never_later_than_the_merge_deadline() -> None:
    bench = Bench(flush_s=300.0).ready().expect("node-9")
    assert timers(bench.update(make_update()))["flush"] == 60 * SECOND_US
    assert len(sent(bench.timer("flush"), Partial)) == 1


def test_without_a_fixed_timer_it_follows_the_pace_of_its_nodes() -> None:
    bench = Bench(flush_count=99).ready().expect("node-9")
    for seq in range(1, 20):
        bench.now_us += 4 * SECOND_US
        bench.update(make_update(seq))
    bench.timer("flush")
    assert timers(bench.update(make_update(20)))["flush"] == 2 * SECOND_US


def test_it_flushes_at_once_when_nobody_is_expected() -> None:
    bench = Bench().ready().expect("node-1", "node-2")
    assert sent(bench.update(make_update()), Partial) == []
    effects = bench.update(make_update(node="node-2"))
    assert len(sent(effects, Partial)) == 1


def test_a_lease_that_runs_out_frees_its_place_and_the_late_update_is_welcome() -> None:
    bench = Bench().ready().expect("node-9")
    bench.update(make_update())
    bench.now_us += 60 * SECOND_US
    effects = bench.timer("lease")
    assert recorded(effects, "lease_expired")
    assert len(sent(effects, Partial)) == 1
    late = make_update(node="node-9")
    assert recorded(bench.update(late), "update_admitted")


def test_a_lease_is_about_three_usual_trainings() -> None:
    bench = Bench().ready()
    effects = bench.hear("node/node-1", node_state("training", usual_us=5 * SECOND_US))
    assert timers(effects)["lease"] == 15 * SECOND_US
    effects = bench.hear("node/node-2", node_state("training", "node-2", usual_us=10))
    assert timers(effects)["lease"] == SECOND_US


@pytest.mark.parametrize(
    "word",
    [
        node_state("ready", "node-9"),
        node_state("lost", "node-9", ""),
        node_state("training", "node-9", "gw-2"),
    ],
)
def test_whoever_stops_training_dies_or_moves_is_not_waited_for(word: NodeState) -> None:
    bench = Bench().ready().expect("node-9")
    assert sent(bench.update(make_update()), Partial) == []
    assert len(sent(bench.hear("node/node-9", word), Partial)) == 1


def test_nothing_is_posted_while_the_uplink_is_down() -> None:
    bench = Bench(flush_count=1).ready()
    bench.above(LinkDown())
    assert sent(bench.update(make_update()), Partial) == []
    assert sent(bench.timer("flush"), Partial) == []
    assert len(sent(bench.above(LinkUp()), Partial)) == 1


def test_without_a_version_there_is_nothing_to_post() -> None:
    bench = Bench()
    bench.above(LinkUp())
    assert sent(bench.timer("flush"), Partial) == []


# Partial aggregates.


def test_one_small_update_goes_as_it_is_and_many_go_as_their_sum() -> None:
    bench = Bench(flush_count=3).ready().expect("node-9")
    bench.update(make_update(1))
    (single,) = sent(bench.timer("flush"), Partial)
    assert (single.updates, single.sums) == ([make_update(1)], [])
    updates = [make_update(seq, value=seq / 10) for seq in (2, 3, 4)]
    (many,) = [p for update in updates for p in sent(bench.update(update), Partial)]
    assert many.updates == []
    assert [header.id.seq for header in many.headers] == [2, 3, 4]
    assert many.id != single.id
    lineage = make_lineage(1)
    expected, found = sums_of(updates, lineage), from_wire(many.sums, {PLAN.plan_id: PLAN})
    (key,) = expected
    assert np.array_equal(found[key].total, expected[key].total)
    assert found[key].count == 3


def test_the_exponential_law_needs_one_bucket_for_all_base_versions() -> None:
    bench = Bench(flush_count=4).ready(4)
    updates = [make_update(seq, base=seq % 4) for seq in range(4)]
    bench.expect("node-9")
    (partial,) = [p for update in updates for p in sent(bench.update(update), Partial)]
    assert [(s.ref_version, s.count) for s in partial.sums] == [(3, 4)]
    assert partial.at_version == 3


def test_other_laws_take_a_bucket_per_base_version_and_eight_at_most() -> None:
    versions = MAX_BUCKETS + 2
    lineage = make_lineage(versions, POLYNOMIAL)
    bench = Bench(flush_count=3 * versions).ready(versions, lineage.descriptor).expect("node-9")
    out = []
    for seq in range(3 * versions):
        out += bench.update(make_update(seq, base=seq % versions))
    partials = sent(out, Partial)
    assert [len(p.sums) for p in partials] == [8, 2]
    assert {s.gamma for p in partials for s in p.sums} == {1.0}
    assert sum(len(p.headers) for p in partials) == 3 * versions


def test_no_partial_has_more_than_count_max_updates() -> None:
    lineage = make_lineage(1, make_config(aggregation={"count_max": 2}))
    bench = Bench(flush_count=5).ready(1, lineage.descriptor).expect("node-9")
    partials = [p for seq in range(5) for p in sent(bench.update(make_update(seq)), Partial)]
    assert [len(p.headers) for p in partials] == [2, 2, 1]


def test_sums_that_would_outgrow_int32_are_sent_as_updates() -> None:
    base = make_lineage(1, make_config(aggregation={"count_max": 1}, training={"clip_norm": 0.6}))
    bench = Bench(flush_count=40).ready(1, base.descriptor).expect("node-9")
    law = msgspec.structs.replace(base.current.rules.staleness, kind="constant")
    wide = msgspec.structs.replace(base.current.rules, count_max=64, staleness=law)
    bench.above(newest(base, version=1, rules=wide))
    updates = [make_update(seq, value=0.15) for seq in range(40)]
    (partial,) = [p for update in updates for p in sent(bench.update(update), Partial)]
    assert (partial.sums, partial.updates) == ([], updates)


# What becomes of a post.


def posted(bench: Bench, *updates: Update) -> Partial:
    for update in updates:
        bench.update(update)
    (partial,) = sent(bench.effects, Partial)
    return partial


def test_an_accepted_update_waits_for_its_receipt_which_is_passed_on() -> None:
    bench = Bench(flush_count=1).ready()
    partial = posted(bench, make_update())
    assert sent(bench.reply(partial, "accepted"), Receipts) == []
    assert sent(bench.timer("flush"), Partial) == []
    effects = bench.above(settled(make_update()))
    assert receipts(effects) == [Receipt(make_update().id, "settled")]
    assert receipts(bench.update(make_update()))[-1].status == "settled"


def test_overlap_is_built_anew_without_the_known_ones() -> None:
    bench = Bench(flush_count=4).ready().expect("node-9")
    updates = [make_update(seq) for seq in (1, 2, 3, 4)]
    partial = posted(bench, *updates)
    ids = [update.id for update in updates]
    bench.expect()
    effects = bench.reply(
        partial, "overlap", Receipt(ids[0], "settled"), Receipt(ids[1], "admitted")
    )
    assert receipts(effects) == [Receipt(ids[0], "settled")]
    (again,) = sent(effects + bench.timer("flush"), Partial)
    assert [header.id for header in again.headers] == ids[2:]
    assert sent(bench.reply(partial, "overlap"), Partial) == []


def test_known_updates_are_not_posted_again() -> None:
    bench = Bench(flush_count=2).ready().expect("node-9")
    updates = [make_update(1), make_update(2)]
    partial = posted(bench, *updates)
    effects = bench.reply(
        partial, "known", Receipt(updates[0].id, "settled"), Receipt(updates[1].id, "admitted")
    )
    assert receipts(effects) == [Receipt(updates[0].id, "settled")]
    assert sent(effects + bench.timer("flush"), Partial) == []


def test_a_rejected_partial_ends_its_updates_with_the_reason() -> None:
    bench = Bench(flush_count=1).ready()
    partial = posted(bench, make_update())
    reply = PartialReply(partial_id=partial.id, status="rejected", reason="shape")
    update = make_update()
    assert receipts(bench.above(reply)) == [Receipt(update.id, "rejected", "shape", update.hash)]


def test_an_undelivered_partial_is_posted_again_after_a_growing_pause() -> None:
    bench = Bench(flush_count=1).ready()
    partial, pauses = posted(bench, make_update()), []
    for _ in range(12):
        effects = bench.above(Undelivered(partial, "no answer"))
        assert sent(effects, Partial) == []
        pauses.append(timers(effects)["flush"])
        (again,) = sent(bench.timer("flush"), Partial)
        assert again.headers == partial.headers
        assert again.id != partial.id
        partial = again
    assert max(pauses[:2]) < SECOND_US < max(pauses[6:]) <= 30 * SECOND_US
    bench.reply(partial, "accepted")
    effects = bench.above(Undelivered(posted(bench, make_update(2)), "no answer"))
    assert timers(effects)["flush"] < SECOND_US // 2


def test_it_waits_as_long_as_the_aggregator_asks() -> None:
    bench = Bench(flush_count=1).ready()
    partial = posted(bench, make_update())
    effects = bench.above(Undelivered(partial, "busy", 90 * SECOND_US))
    assert timers(effects)["flush"] == 90 * SECOND_US
    assert sent(bench.update(make_update(2)), Partial) == []
    (both,) = sent(bench.timer("flush"), Partial)
    assert len(both.headers) == 2


def test_a_new_term_posts_again_what_was_accepted() -> None:
    bench = Bench(flush_count=1).ready()
    partial = posted(bench, make_update())
    bench.reply(partial, "accepted")
    assert (
        sent(bench.above(newest(LINEAGE, version=0, units=LINEAGE.descriptor(0).units)), Partial)
        == []
    )
    renewed = newest(LINEAGE, version=0, units=LINEAGE.descriptor(0).units, term=2)
    (again,) = sent(bench.above(renewed), Partial)
    assert again.headers == partial.headers


def test_a_new_life_posts_again_what_was_accepted_even_under_a_former_term() -> None:
    bench = Bench(flush_count=1).ready()
    partial = posted(bench, make_update())
    bench.reply(partial, "accepted")
    units = LINEAGE.descriptor(0).units
    assert sent(bench.above(newest(LINEAGE, version=1, units=units)), Partial) == []
    (again,) = sent(bench.above(newest(LINEAGE, version=LIFE_VERSIONS, units=units)), Partial)
    assert again.headers == partial.headers


def test_an_accepted_update_that_is_never_settled_is_posted_again() -> None:
    bench = Bench(flush_count=1).ready()
    assert "doubt" in timers(Bench().effects)
    partial = posted(bench, make_update())
    bench.reply(partial, "accepted")
    effects = bench.timer("doubt")
    assert sent(effects, Partial) == []
    assert timers(effects)["doubt"] >= 2 * 60 * SECOND_US
    (again,) = sent(bench.timer("doubt"), Partial)
    assert again.headers == partial.headers
    bench.reply(again, "known", Receipt(make_update().id, "settled"))
    assert sent(bench.timer("doubt") + bench.timer("doubt"), Partial) == []
