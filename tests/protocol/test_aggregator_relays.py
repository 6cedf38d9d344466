"""The rules of the aggregator for posts by way of a peer, for too many of them, and the fleet's books."""

import msgspec
import pytest

from aggregator.refusal import Refusal
from aggregator.rows import AcceptPartial
from aggregator.web.notices import holds
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    Bundle,
    FleetReport,
    Partial,
    PartialReply,
    Receipts,
    Subscribe,
)
from tests.protocol.aggregator_bench import Bench, answers, commits, updates
from tests.protocol.scenarios import make_update, node_state, saved_rows, saves, sent


def carried(partial: Partial, *path: str, by: str = "gw-2") -> Bundle:
    return Bundle(gateway=by, path=list(path or (partial.gateway,)), partials=[partial])


def listening(*gateways: str) -> Bench:
    bench = Bench()
    for gateway in gateways:
        bench.hear(Subscribe(gateway=gateway, after=0), f"gw/{gateway}")
    return bench


def settled(bench: Bench, peer: str) -> list[int]:
    return [r.id.seq for message in sent(bench.effects, Receipts, peer) for r in message.receipts]


def test_a_peers_partial_is_taken_as_its_own_and_answered_to_who_brought_it() -> None:
    bench = listening("gw-1", "gw-2")
    partial = bench.partial(*updates(1, 2, 3, 4))
    (save,) = saves(bench.hear(carried(partial), "gw/gw-2"))
    assert save.rows == (AcceptPartial(partial),)
    effects = bench.finish(save)
    assert [r.status for r in sent(effects, PartialReply, "gw/gw-2")] == ["accepted"]
    assert sent(effects, PartialReply, "gw/gw-1") == []
    bench.finish(commits(effects)[0])
    assert settled(bench, "gw/gw-2") == [1, 2, 3, 4]
    assert settled(bench, "gw/gw-1") == []


def test_a_partial_that_comes_by_two_ways_counts_once_and_both_hear() -> None:
    bench = listening("gw-1", "gw-2")
    partial = bench.partial(*updates(1, 2, 3, 4))
    (save,) = saves(bench.hear(partial))
    assert saves(bench.hear(carried(partial), "gw/gw-2")) == []
    assert saves(bench.hear(partial)) == []
    effects = bench.finish(save)
    for peer in ("gw/gw-1", "gw/gw-2"):
        assert [r.status for r in sent(effects, PartialReply, peer)] == ["accepted"]
    bench.finish(commits(effects)[0])
    for peer in ("gw/gw-1", "gw/gw-2"):
        assert settled(bench, peer) == [1, 2, 3, 4]


def test_one_that_was_lost_and_comes_by_another_way_is_known_there() -> None:
    bench = listening("gw-1", "gw-3")
    partial = bench.partial(*updates(1, 2))
    (save,) = saves(bench.hear(partial))
    bench.finish(save)
    effects = bench.hear(carried(partial, "gw-1", "gw-2", "gw-3", by="gw-3"), "gw/gw-3")
    assert answers(effects) == [("known", [(1, "admitted", ""), (2, "admitted", "")])]
    bench.finish(commits(bench.timer("deadline"))[0])
    assert settled(bench, "gw/gw-3") == settled(bench, "gw/gw-1") == [1, 2]


@pytest.mark.parametrize(
    ("reason", "peer", "path"),
    [
        ("wrong-source", "gw/gw-3", ["gw-1", "gw-2"]),
        ("wrong-source", "gw/gw-2", ["gw-3", "gw-2"]),
        ("inconsistent", "gw/gw-2", ["gw-1", "gw-2", "gw-1"]),
    ],
)
def test_a_bundle_that_hides_its_way_is_nobodys(reason: str, peer: str, path: list[str]) -> None:
    bench = Bench()
    with pytest.raises(PeerError) as caught:
        bench.hear(carried(bench.partial(make_update(1)), *path), peer)
    assert caught.value.reason == reason
    assert saves(bench.aggregator.effects()) == []


def test_a_relay_cannot_make_partials_in_anothers_name() -> None:
    bench = Bench()
    partial = msgspec.structs.replace(bench.partial(make_update(1)), id="gw-2-1-1")
    (reply,) = sent(bench.hear(carried(partial), "gw/gw-2"), PartialReply, "gw/gw-2")
    assert (reply.status, reply.reason) == ("rejected", "inconsistent")


# Too many.


def test_beyond_its_bound_it_asks_to_come_again_and_still_answers_what_it_knows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("aggregator.protocol._LEAST_HELD", 1)
    monkeypatch.setattr("aggregator.protocol._MOST_MERGES_HELD", 2)
    bench = Bench(heard=False)
    for seq in range(1, 9):
        bench.accept(make_update(seq))
    refused = bench.partial(make_update(9))
    effects = bench.hear(refused)
    assert sent(effects, Refusal, "gw/gw-1") == [Refusal(refused.id, "busy", 5)]
    assert saves(effects) == []
    assert answers(bench.hear(bench.partial(make_update(8)))) == [("known", [(8, "admitted", "")])]
    bench.finish(commits(bench.come_and_go())[0])
    assert saved_rows(bench.hear(bench.partial(make_update(9))), AcceptPartial)


def test_the_bound_follows_the_size_of_a_merge() -> None:
    for size, bound in ((4, 4096), (100, 6400)):
        bench = Bench(aggregation={"buffer_size": size})
        assert bench.aggregator._acceptance._most_held == bound


# The fleet's books.


def told(bench: Bench, node: str, counters: dict[str, int], **gateway: int) -> None:
    state = node_state(node=node, counters=counters)
    own = {name.replace("__", ":"): count for name, count in gateway.items()}
    bench.hear(FleetReport(gateway="gw-1", boot=1, nodes=[state], counters=own))


def test_the_law_is_shown_as_reported_beside_the_ledgers_own_count() -> None:
    bench = Bench()
    bench.merged(*updates(1, 2, 3))
    books = {"issued": 9, "applied": 2, "rejected": 1, "expired": 1, "coalesced": 2, "outbox": 3}
    told(bench, "node-1", books, update_rejected__norm=1)
    told(bench, "node-2", {"issued": 4, "outbox": 4}, update_rejected__norm=1)
    account = bench.aggregator.status(bench.now_us).account
    assert (account.issued, account.accounted, account.ledger_applied) == (13, 13, 3)
    assert (account.applied, account.outbox, account.coalesced) == (2, 7, 2)
    assert account.rejected_for == {"norm": 1}
    assert holds(account)


def test_books_that_contradict_the_ledger_or_the_law_are_told_apart() -> None:
    bench = Bench()
    bench.merged(*updates(1, 2))
    told(bench, "node-2", {"issued": 1, "applied": 1})
    account = bench.aggregator.status(bench.now_us).account
    assert account.contradicted == ["node-2"]
    assert account.applied < account.ledger_applied
    assert not holds(account)
    told(bench, "node-2", {"issued": 3, "outbox": 2})
    account = bench.aggregator.status(bench.now_us).account
    assert account.contradicted == []
    assert not holds(account)


def test_reasons_that_gateways_invent_are_bounded() -> None:
    bench = Bench()
    told(bench, "node-1", {}, **{f"update_rejected__r{n}": n + 1 for n in range(50)})
    found = bench.aggregator.status(bench.now_us).account.rejected_for
    assert len(found) == 33
    assert sum(found.values()) == sum(range(1, 51))
    assert found["other"] == sum(range(1, 19))
