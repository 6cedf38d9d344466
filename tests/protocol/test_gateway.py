"""The rules of the gateway: what is admitted, and who is known."""

import msgspec
import pytest

from hedgerow.core import names
from hedgerow.core.codec import encode
from hedgerow.core.effects import (
    LinkDown,
    LinkUp,
    Saved,
)
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BodiesWanted,
    ChunksWanted,
    FleetReport,
    GatewayState,
    Offer,
    Partial,
    Receipt,
    Receipts,
    Update,
    UpdateId,
)
from tests.protocol.gateway_bench import LINEAGE, Bench, receipts, settled, short_lived
from tests.protocol.scenarios import (
    SECOND_US,
    WHOLE,
    announced,
    chunks_of,
    make_update,
    node_state,
    recorded,
    scales_of,
    sent,
    timers,
)

# Admission.


def test_an_update_is_admitted_and_its_node_told_when_it_asks() -> None:
    bench = Bench().ready().expect("node-9")
    effects = bench.update(make_update())
    assert recorded(effects, "update_admitted")
    assert receipts(effects) == []
    assert sent(effects, Partial) == []
    again = bench.update(make_update())
    assert [(r.id.seq, r.status) for r in receipts(again)] == [(1, "admitted")]


@pytest.mark.parametrize(
    ("reason", "update"),
    [
        ("wrong-model", make_update(model="other")),
        ("unknown-plan", make_update(plan_id=WHOLE.plan_id)),
        ("shape", make_update(payload=b"123")),
        ("shape", make_update(scales=scales_of(1.0)[:4])),
        ("not-finite", make_update(scales=scales_of(float("nan")))),
        ("norm", make_update(scales=scales_of(100.0))),
    ],
)
def test_what_no_other_try_can_mend_is_rejected_for_ever(reason: str, update: Update) -> None:
    bench = Bench().ready()
    effects = bench.update(update)
    final = [r for r in receipts(effects) if r.status == "rejected"]
    assert {r.reason for r in final} == {reason}
    assert recorded(effects, "update_rejected")
    offered = bench.hear("node/node-1", Offer(ids=[update.id], hashes=[update.hash]))
    if reason in ("wrong-model", "unknown-plan"):  # said by a chunk: its content was not seen
        assert sent(offered, BodiesWanted, "node/node-1")[0].ids == [update.id]
    else:
        assert [(r.status, r.reason) for r in receipts(offered)] == [("rejected", reason)]


def test_a_body_that_is_not_the_announced_update_is_rejected() -> None:
    bench = Bench().ready()
    honest, body = make_update(1), encode(make_update(2))
    whole = chunks_of(make_update(2), len(body))[0]
    effects = bench.hear("node/node-1", msgspec.structs.replace(whole, id=honest.id))
    assert [(r.status, r.reason) for r in receipts(effects)] == [("rejected", "malformed")]


@pytest.mark.parametrize("versions", [0, 1])
def test_a_version_not_known_yet_is_refused_for_now_only(versions: int) -> None:
    bench = Bench().ready(versions)
    effects = bench.update(make_update(base=1))
    assert {(r.status, r.reason) for r in receipts(effects)} == {("busy", "future-version")}
    assert recorded(effects, "update_refused")
    bench.ready(2)
    assert recorded(bench.update(make_update(base=1)), "update_admitted")


def test_a_former_version_that_this_gateway_never_heard_of_is_refused_for_now() -> None:
    bench = Bench()
    bench.above(LinkUp())
    bench.take_version(LINEAGE.descriptor(3))
    effects = bench.update(make_update(base=2))
    assert {(r.status, r.reason) for r in receipts(effects)} == {("busy", "unknown-version")}


def test_a_stale_update_goes_up_whole_since_only_the_ledger_knows_its_fate() -> None:
    bench = Bench().ready(4, short_lived)
    stale, fine = make_update(1, base=0), make_update(2, base=3, node="node-2")
    (partial,) = sent(bench.update(stale), Partial)
    assert partial.updates == [stale]
    effects = bench.reply(partial, "known", Receipt(stale.id, "rejected", "stale"))
    assert receipts(effects) == [Receipt(stale.id, "rejected", "stale")]
    bench.expect("node-8")
    bench.update(make_update(3, base=0))
    bench.update(fine)
    partials = sent(bench.timer("flush"), Partial)
    assert [[u.id.seq for u in p.updates] for p in partials] == [[2], [3]]


def test_an_update_that_grows_stale_while_it_waits_does_no_harm() -> None:
    bench = Bench().ready(3, short_lived).expect("node-8")
    update = make_update(base=0)
    bench.update(update)
    bench.take_version(short_lived(3))
    (partial,) = sent(bench.timer("flush"), Partial)
    assert (partial.updates, partial.sums) == ([update], [])


def test_nobody_speaks_for_another_node() -> None:
    bench = Bench().ready()
    update = make_update(node="node-2")
    for message in (chunks_of(update)[0], Offer(ids=[update.id]), node_state(node="node-2")):
        with pytest.raises(PeerError, match="wrong-source"):
            bench.hear("node/node-1", message)


def test_a_damaged_chunk_is_refused_and_the_update_still_gets_through() -> None:
    bench = Bench().ready()
    first = chunks_of(make_update())[0]
    with pytest.raises(PeerError, match="checksum"):
        bench.hear("node/node-1", msgspec.structs.replace(first, body=b"damaged"))
    assert recorded(bench.update(make_update()), "update_admitted")


def test_a_full_buffer_says_busy_until_something_is_settled() -> None:
    bench = Bench(held_updates=1, flush_count=1).ready()
    bench.update(make_update(1))
    effects = bench.update(make_update(2))
    assert [(r.status, r.reason) for r in receipts(effects)] == [("busy", "buffer-full")]
    assert recorded(effects, "update_refused")
    bench.above(settled(make_update(1)))
    assert recorded(bench.update(make_update(2)), "update_admitted")


def test_a_buffer_that_fills_while_chunks_arrive_says_busy_too() -> None:
    size = len(encode(make_update()))
    bench = Bench(held_updates=1, held_bytes=size + 512).ready()
    *first, last = chunks_of(make_update(1))
    for chunk in first:
        bench.hear("node/node-1", chunk)
    bench.update(make_update(1, node="node-2"))
    whole = [*first, last]
    effects = [e for chunk in whole for e in bench.hear("node/node-1", chunk)]
    assert {r.status for r in receipts(effects)} == {"busy"}


def test_messages_that_no_node_sends_are_refused() -> None:
    bench = Bench().ready()
    with pytest.raises(PeerError, match="malformed"):
        bench.hear("node/node-1", settled(make_update()))
    with pytest.raises(PeerError, match="malformed"):
        bench.above(Offer(ids=[]))
    with pytest.raises(PeerError, match="malformed"):
        bench.hear("gw/gw-2", Offer(ids=[]))
    with pytest.raises(PeerError, match="malformed"):
        bench.hear("blob", Offer(ids=[]))
    with pytest.raises(RuntimeError):
        bench.do(lambda: bench.gateway.job_done(Saved(1), 0))


def test_an_offer_is_answered_with_receipts_and_wishes() -> None:
    bench = Bench().ready().expect("node-9")
    held, half, unknown = make_update(1), make_update(2), UpdateId("node-1", 7, 3)
    bench.update(held)
    bench.hear("node/node-1", chunks_of(half)[0])
    effects = bench.hear("node/node-1", Offer(ids=[held.id, half.id, unknown]))
    assert [(r.id.seq, r.status) for r in receipts(effects)] == [(1, "admitted")]
    assert sent(effects, ChunksWanted, "node/node-1")[0].missing == [
        chunk.index for chunk in chunks_of(half)[1:]
    ]
    assert sent(effects, BodiesWanted, "node/node-1")[0].ids == [unknown]


def test_before_the_first_version_no_bodies_are_asked_for() -> None:
    assert sent(Bench().hear("node/node-1", Offer(ids=[make_update().id])), BodiesWanted) == []


def test_missing_chunks_are_chased_but_not_for_ever() -> None:
    bench = Bench().ready()
    bench.hear("node/node-1", chunks_of(make_update())[0])
    bench.now_us += 4 * SECOND_US
    assert sent(bench.timer("report"), ChunksWanted) == []
    bench.now_us += 2 * SECOND_US
    assert sent(bench.timer("report"), ChunksWanted, "node/node-1")
    bench.now_us += 60 * SECOND_US
    effects = bench.timer("report")
    assert sent(effects, ChunksWanted) == []
    assert recorded(effects, "incoming_dropped")


# States.


def test_it_announces_itself_with_its_boot_and_its_uplink() -> None:
    bench = Bench()
    (state,) = announced(bench.effects, GatewayState)
    assert (state.gateway, state.boot, state.uplink) == ("gw-1", 10, False)
    assert announced(bench.above(LinkUp()), GatewayState)[0].uplink
    assert not announced(bench.above(LinkDown()), GatewayState)[0].uplink


def test_a_late_last_will_does_not_bury_a_node_born_again() -> None:
    bench = Bench().ready()
    bench.hear("node/node-1", node_state("training", epoch=8))
    bench.update(make_update(node="node-2"))
    will = node_state("lost", gateway="", epoch=7)
    assert sent(bench.hear("node/node-1", will), Partial) == []
    assert (
        len(sent(bench.hear("node/node-1", node_state("lost", gateway="", epoch=8)), Partial)) == 1
    )


def test_it_reports_each_change_once_and_everything_to_who_may_have_forgotten() -> None:
    bench = Bench().ready().expect("node-1", "node-2")
    (report,) = sent(bench.timer("report"), FleetReport, names.AGGREGATOR)
    assert [state.node for state in report.nodes] == ["node-1", "node-2"]
    assert report.counters == {
        "http_bytes_up": 5,
        "held": 0,
        "leases": 2,
        "carried": 0,
        "spooled": 0,
    }
    assert announced(bench.effects, GatewayState)[0].nodes == 2
    (report,) = sent(bench.timer("report"), FleetReport)
    assert report.nodes == []
    assert announced(bench.effects, GatewayState) == []
    bench.hear(names.BROKER, LinkUp())
    (report,) = sent(bench.timer("report"), FleetReport)
    assert len(report.nodes) == 2
    bench.above(LinkDown())
    assert sent(bench.timer("report"), FleetReport) == []


def test_a_repeat_is_known_by_its_receipt_as_long_as_that_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gateway.held._RECENT_RECEIPTS", 1)
    bench = Bench().ready().expect("node-9")
    updates = [make_update(seq) for seq in (1, 2, 3)]
    for update in updates[:2]:
        bench.update(update)
    bench.above(settled(*updates))
    ids, hashes = [u.id for u in updates], [u.hash for u in updates]
    offered = bench.hear("node/node-1", Offer(ids=ids, hashes=hashes))
    assert [(r.id.seq, r.status) for r in receipts(offered)] == [(2, "settled")]
    assert [i.seq for i in sent(offered, BodiesWanted)[0].ids] == [1, 3], (
        "the third was never here: it may be another update of that id"
    )
    unnamed = bench.hear("node/node-1", Offer(ids=ids))
    assert receipts(unnamed) == []
    assert len(sent(unnamed, BodiesWanted)[0].ids) == 3


def test_another_update_of_a_held_id_is_a_fork() -> None:
    bench = Bench().ready().expect("node-9")
    first, other = make_update(1), make_update(1, value=0.125)
    bench.update(first)
    effects = bench.hear("node/node-1", Offer(ids=[other.id], hashes=[other.hash]))
    assert receipts(effects) == [Receipt(other.id, "busy", "fork", other.hash)], (
        "the ledger has yet to choose"
    )
    assert recorded(effects, "fork_alarm")
    same = bench.hear("node/node-1", Offer(ids=[first.id], hashes=[first.hash]))
    assert receipts(same) == [Receipt(first.id, "admitted")]
    (partial,) = sent(bench.timer("flush"), Partial)
    assert partial.updates == [first]
    bench.above(settled(first))
    effects = bench.hear("node/node-1", Offer(ids=[other.id], hashes=[other.hash]))
    assert receipts(effects) == [Receipt(other.id, "rejected", "fork", other.hash)]


def test_where_the_held_one_comes_to_nothing_the_other_one_is_welcome() -> None:
    bench = Bench().ready().expect("node-9")
    first, other = make_update(1), make_update(1, value=0.125)
    bench.update(first)
    bench.above(Receipts(receipts=[Receipt(first.id, "rejected", "stale")]))
    effects = bench.hear("node/node-1", Offer(ids=[other.id], hashes=[other.hash]))
    assert sent(effects, BodiesWanted)[0].ids == [other.id]
    bench.update(other)
    (partial,) = sent(bench.timer("flush"), Partial)
    assert partial.updates == [other]


@pytest.mark.parametrize("ended", [False, True])
def test_a_fork_is_found_by_its_body_too(ended: bool) -> None:  # noqa: FBT001
    bench = Bench().ready().expect("node-9")
    first, other = make_update(1), make_update(1, value=0.125)
    bench.update(first)
    if ended:
        bench.above(settled(first))
    effects = bench.update(other)
    assert receipts(effects) == []
    *before, _last = chunks_of(other)
    effects = [e for chunk in before for e in bench.hear("node/node-1", chunk)]
    (told,) = receipts(effects)
    assert (told.status, told.reason) == ("rejected" if ended else "busy", "fork")
    assert recorded(effects, "fork_alarm")
    (again,) = receipts(bench.update(first))
    assert again.status == ("settled" if ended else "admitted")


def test_an_offer_needs_as_many_hashes_as_ids() -> None:
    with pytest.raises(PeerError, match="inconsistent"):
        Bench().ready().hear("node/node-1", Offer(ids=[make_update().id], hashes=[1, 2]))


def test_a_full_roster_makes_room_by_the_lost_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.roster._MAX_NODES", 2)
    bench = Bench().ready().expect("node-1", "node-2")
    effects = bench.hear("node/node-3", node_state(node="node-3"))
    assert recorded(effects, "node_ignored")
    bench.hear("node/node-1", node_state("lost", gateway=""))
    bench.hear("node/node-3", node_state(node="node-3"))
    (report,) = sent(bench.timer("report"), FleetReport)
    assert [state.node for state in report.nodes] == ["node-2", "node-3"]


def test_the_pace_forgets_the_oldest_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gateway.pace._MAX_NODES", 1)
    bench = Bench(flush_count=99).ready().expect("node-9")
    for node in ("node-1", "node-2", "node-1"):
        bench.now_us += 4 * SECOND_US
        bench.update(make_update(bench.now_us, node=node))
    bench.timer("flush")
    assert timers(bench.update(make_update(node="node-3")))["flush"] == SECOND_US


def test_a_malformed_update_too_old_to_be_checked_harms_nobody() -> None:
    bench = Bench()
    bench.above(LinkUp())
    for version in (3, 2, 1, 0):  # as a stream brings them: the newest first
        bench.take_version(short_lived(version))
    bench.expect("node-8", "node-9")
    effects = bench.update(make_update(base=0, payload=b"no delta" * 1000))
    effects += bench.timer("flush")
    (partial,) = sent(effects, Partial, names.AGGREGATOR)
    assert partial.updates[0].payload == b"no delta" * 1000, (
        "only the aggregator can tell what became of it"
    )
    bench.update(make_update(seq=2, base=3))
    bench.timer("report")
    assert sent(bench.timer("flush"), Partial, names.AGGREGATOR)
