"""The rules of an aggregator whose ledger was put back: no version number is given out twice."""

import dataclasses
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.lives import Lives
from aggregator.refusal import Refusal
from aggregator.rows import CommitVersion, LedgerRow, SetAside
from hedgerow.core.effects import Effect
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Descriptor, Header, PartialReply, Receipts, Subscribe
from hedgerow.core.versions import FIRST_PROVISIONAL, LIFE_VERSIONS, first_of_term
from tests.protocol.aggregator_bench import Bench, answers, commits, updates
from tests.protocol.scenarios import (
    SECOND_US,
    make_lineage,
    make_snapshot,
    make_update,
    params_of,
    recorded,
    saved_rows,
    saves,
    sent,
    timers,
)


def committed(effects: list[Effect]) -> list[tuple[int, int, int]]:
    """Return the version, its parent and the number of updates of each commit."""
    rows = saved_rows(effects, CommitVersion)
    return [(row.descriptor.version, row.descriptor.parent, len(row.headers)) for row in rows]


def test_nothing_is_merged_before_a_gateway_has_said_what_it_knows() -> None:
    bench = Bench(heard=False)
    assert commits(bench.accept(*updates(1, 2, 3, 4))) == []
    assert commits(bench.timer("deadline")) == []
    assert timers(bench.effects)["deadline"] == 20 * SECOND_US
    effects = bench.hear(Subscribe(gateway="gw-1", after=0))
    assert committed(effects) == [(1, 0, 4)]


def test_a_gateway_that_knows_more_makes_a_new_life_begin() -> None:
    bench = Bench(versions=6, heard=False)
    bench.accept(*updates(1, 2, 3, 4, base=5))
    effects = bench.hear(Subscribe(gateway="gw-1", after=9))
    (alarm,) = recorded(effects, "restored_backup")
    assert alarm.fields["level"] == "error"
    assert alarm.fields["reason"] == "gateway-ahead"
    assert committed(effects) == [(LIFE_VERSIONS + 6, 5, 4)]
    assert bench.aggregator.status(bench.now_us).restored == "gateway-ahead"
    effects = bench.finish(commits(effects)[0])
    assert [d.version for d in sent(effects, Descriptor, "gw/gw-1")] == [LIFE_VERSIONS + 6]
    (settled,) = sent(effects, Receipts)
    assert (settled.version, len(settled.receipts)) == (LIFE_VERSIONS + 6, 4)
    assert recorded(bench.come_and_go("gw-2", after=8), "restored_backup") == []


def test_what_waits_weighs_in_the_first_version_of_the_life_what_it_would_without() -> None:
    plain, ahead = Bench(versions=6), Bench(versions=6, heard=False)
    ahead.accept(*updates(1, 2, 3, 4, base=5))
    (usual,) = saved_rows(plain.accept(*updates(1, 2, 3, 4, base=5)), CommitVersion)
    (row,) = saved_rows(ahead.come_and_go(after=9), CommitVersion)
    assert row.params.tobytes() == usual.params.tobytes() != params_of(5).tobytes()
    assert (row.partial_ids, row.headers) == (usual.partial_ids, usual.headers)


def test_without_any_the_life_begins_with_the_same_parameters() -> None:
    (row,) = saved_rows(Bench(versions=6).come_and_go(after=9), CommitVersion)
    assert row.params.tobytes() == params_of(5).tobytes()
    assert (row.partial_ids, row.headers) == ((), ())


def test_what_is_on_its_way_to_the_disk_is_awaited_and_what_comes_then_put_off() -> None:
    bench = Bench(versions=6)
    (save,) = saves(bench.hear(bench.partial(*updates(1, base=5))))
    assert commits(bench.come_and_go("gw-2", after=9)) == []
    late = bench.partial(make_update(2, base=5))
    assert sent(bench.hear(late), Refusal) == [Refusal(late.id, "new-life", 1)]
    effects = bench.finish(save)
    assert committed(effects) == [(LIFE_VERSIONS + 6, 5, 1)]
    bench.finish(commits(effects)[0])
    assert answers(bench.hear(late)) == [("known", [(2, "rejected", "stale")])]


@pytest.mark.parametrize("after", [0, 5, first_of_term(3)])
def test_one_that_knows_no_more_does_not(after: int) -> None:
    bench = Bench(versions=6, heard=False)
    effects = bench.hear(Subscribe(gateway="gw-1", after=after))
    assert commits(effects) == []
    assert recorded(effects, "restored_backup") == []


def test_a_second_one_that_knows_still_more_begins_another() -> None:
    bench = Bench(versions=2, heard=False)
    (life,) = commits(bench.hear(Subscribe(gateway="gw-1", after=5)))
    bench.hear(Subscribe(gateway="gw-2", after=3 * LIFE_VERSIONS))
    assert commits(bench.effects) == []
    effects = bench.finish(life)
    assert committed(effects) == [(4 * LIFE_VERSIONS + 3, LIFE_VERSIONS + 2, 0)]
    assert committed(bench.finish(commits(effects)[0])) == []


def test_it_is_noticed_during_a_commit_and_begins_after_it() -> None:
    bench = Bench()
    (save,) = commits(bench.accept(*updates(1, 2, 3, 4)))
    assert commits(bench.come_and_go("gw-2", after=7)) == []
    effects = bench.finish(save)
    assert committed(effects) == [(LIFE_VERSIONS + 2, 1, 0)]


def test_a_partial_may_tell_it_too_and_is_built_again() -> None:
    bench = Bench(versions=3)
    known, lost = make_update(1, base=2), make_update(2, base=4)
    ahead = msgspec.structs.replace(bench.partial(known), at_version=4)
    effects = bench.hear(ahead)
    assert sent(effects, Refusal) == [Refusal(ahead.id, "new-life", 1)]
    assert committed(effects) == [(LIFE_VERSIONS + 3, 2, 0)]
    bench.finish(commits(effects)[0])
    both = msgspec.structs.replace(ahead, headers=[known.header, lost.header])
    effects = bench.hear(both)
    fates = [(1, "rejected", "stale"), (2, "rejected", "unknown-version")]
    assert answers(effects) == [("known", fates)]
    rejected = recorded(effects, "update_rejected")
    assert [event.fields["reason"] for event in rejected] == ["stale", "unknown-version"]


def test_updates_of_versions_that_are_gone_are_rejected_as_such() -> None:
    bench = Bench(versions=3)
    bench.finish(commits(bench.come_and_go(after=9))[0])
    headers = [make_update(seq, base=base).header for seq, base in ((1, 2), (2, 3), (3, 9))]
    partial = msgspec.structs.replace(bench.partial(make_update(1)), headers=headers)
    fates = [(1, "stale"), (2, "unknown-version"), (3, "unknown-version")]
    assert answers(bench.hear(partial)) == [
        ("known", [(seq, "rejected", reason) for seq, reason in fates])
    ]


def test_sums_made_at_a_lost_version_must_be_made_again() -> None:
    bench = Bench(versions=3)
    bench.finish(commits(bench.come_and_go(after=9))[0])
    fresh = make_update(1, base=bench.aggregator.lineage.version)
    lost = msgspec.structs.replace(
        bench.partial(make_update(2)), at_version=9, headers=[fresh.header]
    )
    assert sent(bench.hear(lost), Refusal) == [Refusal(lost.id, "new-life", 1)]


def test_sums_made_at_an_islands_version_are_refused_for_good() -> None:
    bench = Bench(versions=3)
    partial = msgspec.structs.replace(
        bench.partial(make_update(1, base=2)), at_version=first_of_term(1)
    )
    (reply,) = sent(bench.hear(partial), PartialReply)
    assert (reply.status, reply.reason) == ("rejected", "future-version")


def test_a_claim_out_of_all_proportion_is_refused() -> None:
    bench = Bench()
    with pytest.raises(PeerError, match="future-version"):
        bench.hear(Subscribe(gateway="gw-1", after=FIRST_PROVISIONAL - 1))
    wild = msgspec.structs.replace(bench.partial(make_update(1)), at_version=1 << 39)
    (reply,) = sent(bench.hear(wild), PartialReply)
    assert (reply.status, reply.reason) == ("rejected", "future-version")
    assert committed(bench.accept(*updates(1, 2, 3, 4))) == [(1, 0, 4)]


@pytest.mark.parametrize("reason", ["restore", "lost-frames", "damaged-version"])
def test_a_ledger_that_says_so_itself_begins_one_at_the_start(reason: str) -> None:
    snapshot = make_snapshot(make_lineage(3, Bench().config))
    snapshot = dataclasses.replace(snapshot, restored=reason, newest_seen=3)
    bench = Bench(snapshot, 3, heard=False)
    assert recorded(bench.start_effects, "restored_backup")[0].fields["reason"] == reason
    assert committed(bench.start_effects) == [(LIFE_VERSIONS + 3, 2, 0)]
    (life,) = commits(bench.start_effects)
    assert committed(bench.finish(life)) == []


def test_with_something_waiting_it_hears_first_how_far_others_are() -> None:
    first = Bench(versions=3)
    waiting = [first.partial(*updates(1, 2, 3, 4, base=2))]
    snapshot = make_snapshot(first.lineage, waiting=waiting)
    snapshot = dataclasses.replace(snapshot, restored="restore", newest_seen=3)
    bench = Bench(snapshot, 3, heard=False)
    assert commits(bench.start_effects) == []
    assert commits(bench.timer("deadline")) == []
    effects = bench.come_and_go(after=LIFE_VERSIONS + 9)
    assert committed(effects) == [(2 * LIFE_VERSIONS + 3, 2, 4)]
    assert recorded(effects, "restored_backup") == []


def test_a_life_goes_on_after_a_restart_and_counts_towards_the_end() -> None:
    bench = Bench(versions=3, stop={"max_versions": 4})
    bench.finish(commits(bench.come_and_go(after=9))[0])
    lineage = bench.aggregator.lineage
    snapshot = make_snapshot(lineage, term=2)
    again = Bench(snapshot, lineage=lineage, stop={"max_versions": 4})
    base = lineage.version
    effects = again.accept(*updates(1, 2, 3, 4, base=base))
    assert committed(effects) == [(LIFE_VERSIONS + 4, LIFE_VERSIONS + 3, 4)]
    again.finish(commits(effects)[0])
    assert commits(again.accept(*updates(5, 6, 7, 8, base=base))) == []


def test_an_update_of_a_former_life_is_counted_but_has_no_age_after_a_restart() -> None:
    lineage = Bench(versions=3).lineage
    rows = [LedgerRow(make_update(1, base=2).header, LIFE_VERSIONS + 3)]
    bench = Bench(make_snapshot(lineage, ledger=rows), lineage=lineage)
    status = bench.aggregator.status(bench.now_us)
    assert (status.updates_applied, status.staleness_histogram) == (1, {})


def test_what_waited_but_cannot_be_read_is_set_aside_and_may_come_again() -> None:
    first = Bench(versions=3)
    good = first.partial(make_update(1, base=2))
    twice = first.partial(make_update(1, base=2))
    strange = msgspec.structs.replace(first.partial(make_update(2, base=2)), model="other")
    ledger = [LedgerRow(make_update(3).header, 1)]
    settled = first.partial(make_update(3))
    waiting = [good, twice, strange, settled]
    bench = Bench(make_snapshot(first.lineage, waiting=waiting, ledger=ledger), 3)
    rows = saved_rows(bench.start_effects, SetAside)
    reasons = ["inconsistent", "wrong-model", "inconsistent"]
    assert [(row.partial_id, row.reason) for row in rows] == [
        (partial.id, reason) for partial, reason in zip(waiting[1:], reasons, strict=True)
    ]
    assert len(recorded(bench.start_effects, "partial_set_aside")) == 3
    bench.count = 10
    assert saves(bench.hear(bench.partial(make_update(2, base=2))))


def test_damage_found_in_the_ledger_is_said() -> None:
    snapshot = make_snapshot(make_lineage(1))
    damaged = dataclasses.replace(snapshot, damage={"partial": 2, "version": 1})
    said = recorded(Bench(damaged).start_effects, "ledger_damaged")
    assert [(e.fields["reason"], e.amount) for e in said] == [("partial", 2), ("version", 1)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20 * LIFE_VERSIONS)), max_size=20))
def test_no_number_that_anybody_knew_is_given_out(steps: list[tuple[bool, int]]) -> None:
    lives, own, known = Lives("", 0), 0, 0
    for grows, version in steps:
        if grows and not lives.due:
            own, known = own + 1, max(known, own + 1)
        else:
            lives.hear(version, own)
            known = max(known, version)
        if lives.due:
            assert lives.number(own) > known
            parent, own = own, lives.number(own)
            lives.took(_descriptor(own, parent))
            assert not lives.hear(own, own)
            known = own


def _descriptor(version: int, parent: int) -> Descriptor:
    fields: dict[str, Any] = {"version": version, "parent": parent}
    return msgspec.structs.replace(make_lineage(1).current, **fields)


def test_hashes_tell_two_updates_of_one_name_apart() -> None:
    bench = Bench()
    bench.merged(make_update(1))
    bench.accept(make_update(2))
    headers: list[Header] = []
    for seq in (1, 2):
        forged = make_update(seq, value=0.125)
        assert forged.hash != make_update(seq).hash
        headers.append(forged.header)
    partial = msgspec.structs.replace(bench.partial(make_update(3)), headers=headers)
    effects = bench.hear(partial)
    assert answers(effects) == [("known", [(1, "rejected", "fork"), (2, "rejected", "fork")])]
    alarms = recorded(effects, "fork_alarm")
    assert [(e.fields["node"], e.fields["seq"]) for e in alarms] == [("node-1", 1), ("node-1", 2)]
    assert {e.fields["level"] for e in alarms} == {"error"}
    unknown = [msgspec.structs.replace(header, hash=0) for header in headers]
    said = bench.hear(msgspec.structs.replace(partial, headers=unknown))
    assert answers(said) == [("known", [(1, "settled", ""), (2, "admitted", "")])]


def test_the_rest_of_a_partial_with_a_fork_may_come_again() -> None:
    bench = Bench()
    bench.merged(make_update(1))
    mixed = bench.partial(make_update(1, value=0.125), make_update(2))
    assert answers(bench.hear(mixed)) == [("overlap", [(1, "rejected", "fork")])]
    assert saves(bench.hear(bench.partial(make_update(2))))


def test_hashes_are_known_after_a_restart() -> None:
    first = Bench()
    ledger = [LedgerRow(make_update(1).header, 1)]
    waiting = [first.partial(make_update(2))]
    bench = Bench(make_snapshot(first.lineage, ledger=ledger, waiting=waiting))
    bench.count = 5
    forged = bench.partial(make_update(1, value=0.5), make_update(2, value=0.5))
    assert answers(bench.hear(forged)) == [
        ("known", [(1, "rejected", "fork"), (2, "rejected", "fork")])
    ]


def test_the_hashes_kept_are_bounded_and_old_ids_stay_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aggregator.mergebuffer._HASHES_KEPT", 2)
    bench = Bench()
    for seq in (1, 2, 3):
        bench.merged(make_update(seq))
    forged = [make_update(seq, value=0.5) for seq in (1, 2, 3)]
    assert answers(bench.hear(bench.partial(*forged))) == [
        ("known", [(1, "settled", ""), (2, "rejected", "fork"), (3, "rejected", "fork")])
    ]


def test_a_header_that_is_not_its_updates_own_is_refused() -> None:
    bench = Bench()
    update = make_update(1, kappa=float("nan"))
    raw = bench.partial(update, raw=True)
    forged = msgspec.structs.replace(update.header, hash=update.hash ^ 1)
    (reply,) = sent(bench.hear(msgspec.structs.replace(raw, headers=[forged])), PartialReply)
    assert (reply.status, reply.reason) == ("rejected", "inconsistent")
    older = msgspec.structs.replace(update.header, hash=0)
    assert saves(bench.hear(msgspec.structs.replace(raw, headers=[older])))
