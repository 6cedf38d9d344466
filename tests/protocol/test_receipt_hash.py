"""A receipt says which content is settled: a disk that was put back may have issued the id twice."""

import pytest

from edge_node.rows import CloseUpdate, NewEpoch
from hedgerow.core.codec import encode
from hedgerow.core.effects import Effect
from hedgerow.core.messages import (
    Offer,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    Subscribe,
    UpdateId,
)
from tests.protocol import aggregator_bench, gateway_bench, node_bench
from tests.protocol.scenarios import make_books, make_update, recorded, saved_rows, sent

OWN, TWIN = make_update(1), make_update(1, value=0.5)
ID = UpdateId("node-1", 7, 1)


def heard(receipt: Receipt) -> list[Effect]:
    books = make_books(issued=1, outbox={1: encode(OWN)}, fresh_epoch=0xABCD)
    return node_bench.Bench(books).online().hear("gw", Receipts(receipts=[receipt]))


@pytest.mark.parametrize("known", [OWN.hash, 0])
def test_a_receipt_of_the_same_content_or_of_unknown_ends_the_update(known: int) -> None:
    effects = heard(Receipt(ID, "settled", hash=known))
    assert len(recorded(effects, "update_applied")) == 1
    assert saved_rows(effects, NewEpoch) == []


def test_a_receipt_of_other_content_is_a_fork() -> None:
    effects = heard(Receipt(ID, "settled", hash=TWIN.hash))
    assert saved_rows(effects, CloseUpdate) == [CloseUpdate(ID, "rejected", "fork")]
    assert [epoch.reason for epoch in saved_rows(effects, NewEpoch)] == ["fork"]


@pytest.mark.parametrize(
    "receipt", [Receipt(ID, "rejected", "norm", TWIN.hash), Receipt(ID, "admitted", hash=TWIN.hash)]
)
def test_what_becomes_of_another_content_otherwise_says_nothing_of_this_one(
    receipt: Receipt,
) -> None:
    effects = heard(receipt)
    assert saved_rows(effects, CloseUpdate) == []
    assert saved_rows(effects, NewEpoch) == []


def test_a_fork_that_the_ledger_has_not_decided_begins_an_epoch_and_ends_nothing() -> None:
    effects = heard(Receipt(ID, "busy", "fork"))
    assert saved_rows(effects, CloseUpdate) == []
    assert [epoch.reason for epoch in saved_rows(effects, NewEpoch)] == ["fork"]
    assert not recorded(effects, "held_back")


def test_a_gateway_remembers_which_content_was_settled() -> None:
    bench = gateway_bench.Bench().ready()
    bench.update(OWN)
    bench.above(Receipts(receipts=[Receipt(ID, "settled", hash=TWIN.hash)]))
    effects = bench.hear("node/node-1", Offer(ids=[ID, ID], hashes=[TWIN.hash, OWN.hash]))
    (told,) = sent(effects, Receipts)
    assert [(r.status, r.reason) for r in told.receipts] == [("settled", ""), ("rejected", "fork")]


def test_the_end_of_a_twin_elsewhere_does_not_end_the_update_that_is_held_here() -> None:
    bench = gateway_bench.Bench().ready().expect("node-9")
    bench.update(OWN)
    bench.above(Receipts(receipts=[Receipt(ID, "rejected", "fork", TWIN.hash)]))
    (partial,) = sent(bench.timer("flush"), Partial)
    assert partial.updates == [OWN]


@pytest.mark.parametrize("stale", [False, True])
def test_the_aggregator_names_the_content_that_it_refuses(stale: bool) -> None:  # noqa: FBT001
    bench = aggregator_bench.Bench(versions=8 if stale else 1, staleness={"tau_max": 2})
    if not stale:
        bench.merged(OWN)
    (reply,) = sent(bench.hear(bench.partial(TWIN, raw=True)), PartialReply)
    ((refused,),) = (reply.receipts,)
    assert (refused.status, refused.hash) == ("rejected", TWIN.hash)


def test_the_aggregator_names_the_content_that_it_settled() -> None:
    bench = aggregator_bench.Bench()
    bench.hear(Subscribe(gateway="gw-1", after=0))
    (receipts,) = sent(bench.merged(OWN), Receipts)
    assert receipts.receipts == [Receipt(ID, "settled", hash=OWN.hash)]
    (reply,) = sent(bench.hear(bench.partial(OWN)), PartialReply)
    assert reply.receipts == [Receipt(ID, "settled", hash=OWN.hash)]
