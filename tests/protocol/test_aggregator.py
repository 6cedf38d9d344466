"""The rules of the aggregator: partial aggregates and merges."""

from typing import Any

import msgspec
import numpy as np
import pytest

from aggregator.refusal import Refusal
from aggregator.rows import (
    AcceptPartial,
    CommitVersion,
    DropPartials,
    LedgerRow,
)
from hedgerow.core.effects import (
    CancelTimer,
    JobFailed,
    Send,
)
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    Descriptor,
    Offer,
    Partial,
    PartialReply,
    Receipts,
    Subscribe,
)
from tests.protocol.aggregator_bench import Bench, answers, commits, updates
from tests.protocol.scenarios import (
    PLAN,
    SECOND_US,
    WHOLE,
    make_snapshot,
    make_update,
    params_of,
    recorded,
    saved_rows,
    saves,
    scales_of,
    sent,
    timers,
)

# Partials.


def test_a_partial_is_durable_before_it_is_answered() -> None:
    bench = Bench()
    partial = bench.partial(*updates(1, 2))
    effects = bench.hear(partial)
    assert saved_rows(effects, AcceptPartial) == [AcceptPartial(partial)]
    assert answers(effects) == []
    effects = bench.finish(saves(effects)[0])
    assert answers(effects) == [("accepted", [])]
    assert sent(effects, PartialReply, "gw/gw-1")[0].partial_id == partial.id


def test_all_known_some_known_none_known() -> None:
    bench = Bench()
    bench.merged(*updates(1, 2))
    bench.accept(*updates(3))
    known = bench.hear(bench.partial(*updates(1, 3)))
    assert answers(known) == [("known", [(1, "settled", ""), (3, "admitted", "")])]
    some = bench.hear(bench.partial(*updates(2, 4)))
    assert answers(some) == [("overlap", [(2, "settled", "")])]
    assert saves(known) == saves(some) == []
    none = bench.hear(bench.partial(*updates(4)))
    assert saved_rows(none, AcceptPartial)


def test_a_repeat_is_not_answered_before_the_first_is_durable() -> None:
    bench = Bench()
    first = bench.partial(*updates(1))
    (save,) = saves(bench.hear(first))
    other = bench.partial(*updates(1, 2), gateway="gw-2")
    assert answers(bench.hear(first) + bench.hear(other, "gw/gw-2")) == []
    effects = bench.finish(save)
    assert answers(effects)[0] == ("accepted", [])
    assert ("overlap", [(1, "admitted", "")]) in answers(effects)


def test_ids_decide_not_the_partial_s_own() -> None:
    bench = Bench()
    bench.accept(*updates(1))
    again = msgspec.structs.replace(bench.partial(*updates(1)), id="another")
    assert answers(bench.hear(again)) == [("known", [(1, "admitted", "")])]
    fresh = msgspec.structs.replace(bench.partial(*updates(2)), id="gw-1-1-1")
    assert answers(bench.hear(fresh)) == [("rejected", [])]


def test_an_update_too_old_is_rejected_stale_unless_it_is_settled() -> None:
    bench = Bench(versions=5, staleness={"tau_max": 2})
    old, fine = make_update(1, base=1), make_update(2, base=4)
    stale = msgspec.structs.replace(bench.partial(fine), headers=[old.header, fine.header])
    effects = bench.hear(stale)
    assert answers(effects) == [("overlap", [(1, "rejected", "stale")])]
    assert recorded(effects, "update_rejected")
    ledger = [LedgerRow(old.header, 2)]
    settled = Bench(make_snapshot(bench.lineage, ledger=ledger), 5, staleness={"tau_max": 2})
    assert answers(settled.hear(stale)) == [("overlap", [(1, "settled", "")])]


def spoiled(bench: Bench, **changes: Any) -> Partial:
    return msgspec.structs.replace(bench.partial(*updates(1, 2)), **changes)


def with_sums(partial: Partial, **changes: Any) -> Partial:
    sums = [msgspec.structs.replace(bucket, **changes) for bucket in partial.sums]
    return msgspec.structs.replace(partial, sums=sums)


def test_partials_that_contradict_themselves_or_the_model_are_rejected() -> None:
    bench = Bench()
    good, raw = bench.partial(*updates(1, 2)), bench.partial(*updates(1), raw=True)
    one, two = (update.header for update in updates(1, 2))
    heavy = msgspec.structs.replace(good.sums[0], weight=good.sums[0].weight + 3)
    bad = {
        "wrong-model": spoiled(bench, model="other"),
        "future-version": spoiled(bench, at_version=1 << 39),
        "unknown-plan": with_sums(good, plan_id="0" * 32),
        "shape": with_sums(good, total=b"1234"),
        "inconsistent": spoiled(bench, headers=[one, one]),
    }
    inconsistent = [
        spoiled(bench, headers=[one]),
        spoiled(bench, sums=[]),
        spoiled(bench, updates=updates(1, 2)),
        spoiled(bench, sums=[heavy]),
        spoiled(bench, sums=[good.sums[0], good.sums[0]]),
        with_sums(good, gamma=0.5),
        msgspec.structs.replace(raw, headers=[two]),
    ]
    cases = [*bad.items(), *(("inconsistent", partial) for partial in inconsistent)]
    for reason, partial in cases:
        effects = bench.hear(partial)
        assert [(r.status, r.reason) for r in sent(effects, PartialReply)] == [("rejected", reason)]
        assert recorded(effects, "partial_rejected")[0].fields["reason"] == reason
        assert saves(effects) == []
    assert saves(bench.hear(good))


def test_raw_updates_are_checked_like_sums() -> None:
    bench = Bench(versions=2)
    cases = {
        "unknown-plan": make_update(1, plan_id=WHOLE.plan_id),
        "shape": make_update(1, payload=b"12"),
        "not-finite": make_update(1, scales=scales_of(float("inf"))),
        "future-version": make_update(1, base=1 << 39),
    }
    for reason, update in cases.items():
        partial = msgspec.structs.replace(
            bench.partial(make_update(1), raw=True), updates=[update], headers=[update.header]
        )
        assert sent(bench.hear(partial), PartialReply)[0].reason == reason
    late = msgspec.structs.replace(bench.partial(make_update(1, base=1), raw=True), at_version=0)
    assert sent(bench.hear(late), PartialReply)[0].reason == "inconsistent"


def test_raw_updates_and_their_sum_merge_to_the_same_bits() -> None:
    results = []
    for raw in (False, True):
        bench = Bench()
        partial = bench.partial(*updates(1, 2, 3, 4), raw=raw)
        (save,) = saves(bench.hear(partial))
        (row,) = saved_rows(bench.finish(save), CommitVersion)
        results.append(row.params.tobytes())
    assert results[0] == results[1] != params_of(0).tobytes()


def test_nobody_posts_for_another_gateway() -> None:
    bench = Bench()
    with pytest.raises(PeerError, match="wrong-source"):
        bench.hear(bench.partial(*updates(1), gateway="gw-2"), "gw/gw-1")
    with pytest.raises(PeerError, match="malformed"):
        bench.hear(Offer(ids=[]))


def test_too_many_held_back_posts_are_left_to_be_posted_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aggregator.acceptance._MAX_DEFERRED", 1)
    bench = Bench()
    (save,) = saves(bench.hear(bench.partial(*updates(1))))
    for gateway in ("gw-2", "gw-3"):
        bench.hear(bench.partial(*updates(1), gateway=gateway), f"gw/{gateway}")
    assert sent(bench.effects, Refusal, "gw/gw-3") == [Refusal("gw-3-1-3", "busy", 5)]
    effects = bench.finish(save)
    assert [e.peer for e in effects if isinstance(e, Send)] == ["gw/gw-1", "gw/gw-2"]


# Merging.


def test_it_merges_at_k_updates_over_all_gateways() -> None:
    bench = Bench()
    assert commits(bench.accept(*updates(1, 2))) == []
    effects = bench.accept(*updates(3, 4), gateway="gw-2")
    (row,) = saved_rows(effects, CommitVersion)
    assert row.descriptor.version == 1
    assert row.partial_ids == ("gw-1-1-1", "gw-2-1-2")
    assert [header.id.seq for header in row.headers] == [1, 2, 3, 4]
    assert np.any(row.params != params_of(0))


def test_it_merges_what_there_is_at_the_deadline() -> None:
    bench = Bench()
    effects = bench.accept(*updates(1))
    assert timers(effects)["deadline"] == 20 * SECOND_US
    assert "deadline" not in timers(bench.accept(*updates(2)))
    effects = bench.timer("deadline")
    (row,) = saved_rows(effects, CommitVersion)
    assert len(row.headers) == 2
    assert CancelTimer("deadline") in effects
    assert commits(bench.timer("deadline")) == []


def test_no_merge_begins_during_a_commit_and_the_next_follows_it() -> None:
    bench = Bench()
    (save,) = commits(bench.accept(*updates(1, 2, 3, 4)))
    assert commits(bench.accept(*updates(5, 6, 7, 8))) == []
    assert commits(bench.timer("deadline")) == []
    (following,) = saved_rows(bench.finish(save), CommitVersion)
    assert following.descriptor.version == 2
    assert following.descriptor.parent == 1


def test_what_is_left_after_a_commit_gets_a_deadline_of_its_own() -> None:
    bench = Bench()
    (save,) = commits(bench.accept(*updates(1, 2, 3, 4)))
    left = bench.accept(*updates(5))
    assert "deadline" in timers(left + bench.finish(save))
    assert len(saved_rows(bench.timer("deadline"), CommitVersion)) == 1


def test_it_settles_only_after_the_commit_is_durable() -> None:
    bench = Bench()
    bench.hear(Subscribe(gateway="gw-1", after=0))
    effects = bench.accept(*updates(1, 2, 3, 4))
    assert not sent(effects, Receipts)
    assert not sent(effects, Descriptor)
    effects = bench.finish(commits(effects)[0])
    kinds = [type(e.message) for e in effects if isinstance(e, Send)]
    assert kinds == [Receipts, Descriptor]
    (message,) = sent(effects, Receipts, "gw/gw-1")
    assert message.version == 1
    assert [(r.id.seq, r.status) for r in message.receipts] == [
        (i, "settled") for i in (1, 2, 3, 4)
    ]


def test_only_changed_units_get_a_new_digest() -> None:
    bench = Bench()
    (descriptor,) = [
        row.descriptor for row in saved_rows(bench.accept(*updates(1, 2, 3, 4)), CommitVersion)
    ]
    assert descriptor.units["body.weight"] == bench.lineage.current.units["body.weight"]
    assert {descriptor.units[name].changed for name in PLAN.names} == {1}


def test_a_failed_save_is_tried_again_and_nothing_is_settled_meanwhile() -> None:
    bench = Bench()
    (save,) = commits(bench.accept(*updates(1, 2, 3, 4)))
    effects = bench.done(JobFailed(save.job, "disk full"))
    assert recorded(effects, "save_failed")
    assert "save" in timers(effects)
    assert commits(bench.accept(*updates(5, 6, 7, 8))) == []
    (again,) = commits(bench.timer("save"))
    assert again.rows == save.rows
    assert recorded(bench.finish(again), "update_settled")


def test_what_the_disk_does_not_take_is_refused_at_once_and_tried_again() -> None:
    bench = Bench()
    partial = bench.partial(*updates(1))
    (save,) = saves(bench.hear(partial))
    bench.hear(bench.partial(*updates(1, 2), gateway="gw-2"), "gw/gw-2")
    assert bench.aggregator.trouble == ""
    effects = bench.done(JobFailed(save.job, "disk full"))
    refused = [(e.peer, e.message.reason) for e in effects if isinstance(e, Send)]
    assert refused == [("gw/gw-1", "disk"), ("gw/gw-2", "disk")]
    assert bench.aggregator.trouble == "the disk refuses to write"
    for post in (partial, bench.partial(*updates(1)), bench.partial(*updates(3))):
        (refusal,) = sent(bench.hear(post), Refusal)
        assert (refusal.reason, refusal.retry_after_s) == ("disk", 10)
        assert saves(bench.effects) == []
    (again,) = saves(bench.timer("save"))
    assert again.rows == save.rows
    assert answers(bench.finish(again)) == []
    assert bench.aggregator.trouble == ""
    assert answers(bench.hear(partial)) == [("known", [(1, "admitted", "")])]
    assert saved_rows(bench.hear(bench.partial(*updates(3))), AcceptPartial)


@pytest.mark.parametrize("law", ["exponential", "polynomial"])
def test_an_update_accepted_in_time_is_merged_though_its_version_is_long_gone(law: str) -> None:
    staleness = {"law": law, "tau_max": 2}
    bench = Bench(versions=3, staleness=staleness, aggregation={"buffer_size": 1})
    (commit,) = commits(bench.accept(make_update(1, base=2)))
    bench.accept(make_update(2, base=0))
    (commit,) = commits(bench.finish(commit))
    assert recorded(bench.finish(commit), "update_settled")


def test_merge_inputs_are_dropped_at_a_checkpoint() -> None:
    bench = Bench(aggregation={"checkpoint_versions": 2})
    assert saved_rows(bench.merged(*updates(1)), DropPartials) == []
    (row,) = saved_rows(bench.merged(*updates(2)), DropPartials)
    assert (row.through_version, row.needed_from) == (2, 0)
