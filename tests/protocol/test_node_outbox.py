"""The rules of the node: what becomes of its updates."""

from typing import Any

import pytest

from edge_node.rows import CloseUpdate, PutUpdate
from hedgerow.core import names
from hedgerow.core.effects import (
    JobFailed,
    LinkDown,
    LinkUp,
    Saved,
)
from hedgerow.core.messages import (
    BodiesWanted,
    Chunk,
    ChunksWanted,
    NodeState,
    Offer,
    Receipt,
    Receipts,
    UpdateId,
)
from tests.protocol.node_bench import LINEAGE, Bench, descriptor, issued_one, trains
from tests.protocol.scenarios import (
    SECOND_US,
    announced,
    make_books,
    newest,
    recorded,
    saved_rows,
    saves,
    sent,
    timers,
)

# The outbox.


def test_it_stores_an_update_before_it_sends_it() -> None:
    bench = Bench().online()
    (job,) = trains(bench.fetch(0))
    effects = bench.trained(job)
    assert [(row.id.seq, row.base_version) for row in saved_rows(effects, PutUpdate)] == [(1, 0)]
    assert not sent(effects, Chunk)
    assert not sent(effects, Offer)
    chunks = sent(bench.done(Saved(saves(effects)[0].job)), Chunk, "gw/gw-1")
    assert len(chunks) > 1
    assert chunks[0].id == UpdateId("node-1", 7, 1)


def test_a_failed_save_stops_training_and_is_tried_again() -> None:
    bench = Bench().online()
    (job,) = trains(bench.fetch(0))
    save = saves(bench.trained(job))[0]
    effects = bench.done(JobFailed(save.job, "disk full"))
    assert recorded(effects, "save_failed")
    assert "save" in timers(effects)
    assert trains(bench.fetch(1)) == []
    (again,) = saves(bench.timer("save"))
    assert again.rows == save.rows
    effects = bench.done(Saved(again.job))
    assert sent(effects, Chunk)
    assert len(trains(effects)) == 1


def test_after_a_reconnection_ids_come_first_and_bodies_when_asked() -> None:
    bench, update_id = issued_one()
    bench.hear(names.BROKER, LinkDown())
    effects = bench.hear(names.BROKER, LinkUp())
    assert sent(effects, Offer)[0].ids == [update_id]
    assert sent(effects, Chunk) == []
    assert sent(bench.hear("gw", BodiesWanted(ids=[update_id])), Chunk)
    wanted = ChunksWanted(id=update_id, missing=[1])
    assert [c.index for c in sent(bench.hear("gw", wanted), Chunk)] == [1]
    unknown = BodiesWanted(ids=[UpdateId("node-1", 7, 99), UpdateId("node-1", 1, 1)])
    assert sent(bench.hear("gw", unknown), Chunk) == []


def test_it_offers_again_and_again_those_that_nobody_admitted_first() -> None:
    books = make_books(issued=2, last_base_version=0, outbox={1: b"a", 2: b"b"})
    bench = Bench(books).online()
    bench.hear("gw", Receipts(receipts=[Receipt(UpdateId("node-1", 7, 1), "admitted")]))
    effects = bench.timer("resend")
    assert [update_id.seq for update_id in sent(effects, Offer)[0].ids] == [2, 1]
    assert 7.5 * SECOND_US <= timers(effects)["resend"] <= 12.5 * SECOND_US


@pytest.mark.parametrize(("status", "outcome"), [("settled", "applied"), ("rejected", "rejected")])
def test_a_final_receipt_ends_an_update(status: Any, outcome: str) -> None:
    bench, update_id = issued_one()
    bench.timer("presence")
    effects = bench.hear("gw", Receipts(receipts=[Receipt(update_id, status, "why")]))
    assert saves(effects) == [], "writing soon is soon enough: it would only be offered once more"
    assert timers(effects)["close"] == 5 * SECOND_US
    assert saved_rows(bench.timer("close"), CloseUpdate) == [CloseUpdate(update_id, outcome, "why")]
    assert timers(effects)["presence"] == 2 * SECOND_US
    counters = announced(bench.timer("presence"), NodeState)[-1].counters
    assert (counters["issued"], counters[outcome], counters["outbox"]) == (1, 1, 0)
    again = bench.hear("gw", Receipts(receipts=[Receipt(update_id, status, "why")]))
    assert saves(again + bench.timer("close")) == []


def test_what_ended_is_written_with_the_next_update() -> None:
    bench, update_id = issued_one()
    (job,) = trains(bench.fetch(1))
    bench.hear("gw", Receipts(receipts=[Receipt(update_id, "settled")]))
    effects = bench.trained(job)
    (save,) = saves(effects)
    assert save.rows == (CloseUpdate(update_id, "applied"), *saved_rows(effects, PutUpdate))
    bench.done(JobFailed(save.job, "disk full"))
    (again,) = saves(bench.timer("save"))
    assert again.rows == save.rows
    assert saves(bench.done(Saved(again.job)) + bench.timer("close")) == []


def test_all_that_ended_meanwhile_is_written_at_once() -> None:
    books = make_books(issued=3, last_base_version=0, outbox={1: b"a", 2: b"b", 3: b"c"})
    bench = Bench(books).online()
    first, *others = [Receipt(UpdateId("node-1", 7, seq), "settled") for seq in (1, 2, 3)]
    assert "close" in timers(bench.hear("gw", Receipts(receipts=[first])))
    assert "close" not in timers(bench.hear("gw", Receipts(receipts=others)))
    (save,) = saves(bench.timer("close"))
    assert save.rows == tuple(
        CloseUpdate(UpdateId("node-1", 7, seq), "applied") for seq in (1, 2, 3)
    )


@pytest.mark.parametrize("status", ["admitted", "busy"])
def test_any_other_receipt_keeps_it(status: Any) -> None:
    bench, update_id = issued_one()
    effects = bench.hear("gw", Receipts(receipts=[Receipt(update_id, status)]))
    assert saves(effects) == []
    bench.now_us += 10 * SECOND_US
    assert sent(bench.timer("resend"), Offer)[0].ids == [update_id]


def test_a_receipt_of_another_epoch_or_node_is_not_its_own() -> None:
    bench, _ = issued_one()
    strangers = [UpdateId("node-1", 8, 1), UpdateId("node-2", 7, 1)]
    effects = bench.hear("gw", Receipts(receipts=[Receipt(i, "settled") for i in strangers]))
    assert saves(effects) == []


def test_when_full_of_offered_updates_training_pauses_until_there_is_room() -> None:
    bench, update_id = issued_one(outbox_updates=1, offline_updates=1)
    assert trains(bench.fetch(1)) == []
    effects = bench.hear("gw", Receipts(receipts=[Receipt(update_id, "settled")]))
    assert len(trains(effects)) == 1


def test_updates_of_an_earlier_life_count_as_offered() -> None:
    books = make_books(issued=1, last_base_version=0, outbox={1: b"a"})
    bench = Bench(books, outbox_updates=1, offline_updates=1).online()
    effects = bench.fetch(1)
    assert trains(effects) == []
    assert saved_rows(effects, CloseUpdate) == []


def test_a_message_that_is_none_of_a_node_s_is_counted() -> None:
    bench = Bench().online()
    assert recorded(bench.hear("gw", Offer(ids=[])), "ignored_message")


def test_a_renewed_descriptor_replaces_the_rules_of_its_version() -> None:
    bench, _ = issued_one()
    bench.hear(
        "gw/gw-1", newest(LINEAGE, version=0, units=descriptor(0).units, training_open=False)
    )
    assert trains(bench.hear(names.BROKER, LinkDown())) == []
