"""A node's epochs: no id is issued twice, whatever happened to its disk."""

from typing import Any

import pytest

from edge_node.epochs import last_will
from edge_node.rows import Books, CloseUpdate, EpochBooks, NewEpoch, PutUpdate
from hedgerow.core import names
from hedgerow.core.codec import encode
from hedgerow.core.effects import Effect, Follow, JobFailed, LinkDown, LinkUp, Saved, Unfollow
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BodiesWanted,
    Chunk,
    NodeState,
    Offer,
    Receipt,
    Receipts,
    UpdateId,
)
from tests.protocol.node_bench import Bench, gateway_state, issued_one, trains
from tests.protocol.scenarios import (
    SECOND_US,
    announced,
    make_books,
    make_update,
    node_state,
    recorded,
    saved_rows,
    saves,
    sent,
    timers,
)

OWN = names.node_peer("node-1")
CHANNEL = names.node_state_channel("node-1")
FRESH = 0xABCD


def found_books(issued: int = 3, **keys: Any) -> Books:
    """Return books that were found on the disk, with one update held."""
    body = encode(make_update(issued))
    held: dict[str, Any] = {"issued": issued, "applied": issued - 1, "outbox": {issued: body}}
    return make_books(**{**held, "found": True, "fresh_epoch": FRESH, **keys})


def told(issued: int, epoch: int = 7) -> NodeState:
    return node_state(epoch=epoch, counters={"issued": issued})


def started(books: Books | None = None) -> Bench:
    """Return a node that is online and has a version, but not yet an answer."""
    bench = Bench(books or found_books()).online()
    bench.fetch(0)
    return bench


def forked(update_id: UpdateId) -> Receipts:
    return Receipts(receipts=[Receipt(update_id, "rejected", "fork")])


def settle(bench: Bench, effects: list[Effect]) -> list[Effect]:
    """Have all saves end well; return all effects."""
    out = list(effects)
    for save in saves(effects):
        out += settle(bench, bench.done(Saved(save.job)))
    return out


# A disk that was put back.


def test_a_new_disk_asks_nobody() -> None:
    bench = Bench(make_books(found=False)).online()
    assert Follow(CHANNEL) not in bench.effects
    assert trains(bench.fetch(0))


def test_a_link_that_breaks_before_the_answer_is_no_answer() -> None:
    bench = started()
    bench.hear(names.BROKER, LinkDown())
    bench.timer("certainty")
    assert timers(bench.hear(names.BROKER, LinkUp()))["certainty"] == 2 * SECOND_US
    (restored,) = recorded(bench.hear(OWN, told(5)), "restored_disk")
    assert (restored.fields["told"], restored.fields["found"]) == (5, 3)


def test_a_node_says_and_issues_nothing_before_it_knows_what_it_said_last() -> None:
    bench = Bench(found_books())
    assert Follow(CHANNEL) in bench.effects
    effects = bench.hear(names.BROKER, LinkUp())
    assert timers(effects)["certainty"] == 2 * SECOND_US
    effects += bench.hear("gw/gw-1", gateway_state())
    effects += bench.fetch(0)
    assert announced(effects, NodeState) == []
    assert trains(effects) == []
    effects = bench.hear(OWN, told(3))
    assert Unfollow(CHANNEL) in effects
    assert announced(effects, NodeState)[-1].epoch == 7
    assert len(trains(effects)) == 1


def test_without_an_answer_it_goes_on() -> None:
    bench = started()
    effects = bench.timer("certainty")
    assert len(trains(effects)) == 1
    assert saved_rows(effects, NewEpoch) == []
    assert announced(effects, NodeState)


@pytest.mark.parametrize(
    "state",
    [told(0), told(2), told(3), node_state("lost", epoch=7), node_state("lost", epoch=6)],
    ids=["little", "less", "same", "its will", "the will of a former epoch"],
)
def test_what_the_disk_knows_itself_is_no_reason_for_a_new_epoch(state: NodeState) -> None:
    former = EpochBooks("node-1", 6, 0, 0, {}, 0, {}, ended="fork")
    bench = started(found_books(former=(former,)))
    effects = bench.hear(OWN, state)
    assert saved_rows(effects, NewEpoch) == []
    assert len(trains(effects)) == 1


@pytest.mark.parametrize("state", [told(4), told(1, epoch=99)], ids=["more", "another epoch"])
def test_a_disk_that_knows_less_than_others_was_put_back(state: NodeState) -> None:
    bench = started()
    effects = bench.hear(OWN, state)
    assert recorded(effects, "restored_disk")
    assert recorded(effects, "new_epoch")[0].fields["reason"] == "restored-disk"
    assert saved_rows(effects, NewEpoch) == [NewEpoch(FRESH, "restored-disk")]
    assert trains(effects) == [], "the epoch must be durable first"
    assert announced(effects, NodeState)[-1].epoch == FRESH
    (job,) = trains(settle(bench, effects))
    (row,) = saved_rows(bench.trained(job), PutUpdate)
    assert row.id == UpdateId("node-1", FRESH, 1)


def test_it_looks_at_what_the_disk_held_not_at_what_it_issued_since_offline() -> None:
    bench = Bench(found_books())
    bench.hear(names.BROKER, LinkUp())
    bench.hear("gw/gw-1", gateway_state())
    bench.fetch(0)
    effects = bench.hear(names.BROKER, LinkDown())
    for _ in range(3):
        (job,) = trains(effects)
        effects = bench.issue(job)
    bench.hear(names.BROKER, LinkUp())
    assert recorded(bench.hear(OWN, told(4)), "restored_disk")


def test_its_own_voice_does_not_confuse_it() -> None:
    bench = started()
    (job,) = trains(bench.timer("certainty"))
    effects = bench.issue(job) + bench.hear(OWN, told(99))
    assert not recorded(effects, "new_epoch")


def test_a_training_that_ends_before_the_answer_waits_for_it() -> None:
    bench = Bench(found_books())
    bench.hear(names.BROKER, LinkUp())
    bench.hear("gw/gw-1", gateway_state())
    bench.fetch(0)
    (job,) = trains(bench.hear(names.BROKER, LinkDown()))
    bench.hear(names.BROKER, LinkUp())
    assert saves(bench.trained(job)) == []
    effects = settle(bench, bench.hear(OWN, told(9)))
    assert [row.id for row in saved_rows(effects, PutUpdate)] == [UpdateId("node-1", FRESH, 1)]


def test_another_node_s_state_is_refused() -> None:
    bench = started()
    with pytest.raises(PeerError, match="wrong-source"):
        bench.hear("node/node-2", node_state(node="node-2"))
    with pytest.raises(PeerError, match="wrong-source"):
        bench.hear("node/node-2", told(99))


# A fork.


def test_a_fork_ends_the_update_and_the_epoch_in_one_transaction() -> None:
    bench, update_id = issued_one()
    effects = bench.hear("gw", forked(update_id))
    (save,) = saves(effects)
    assert save.rows[0] == CloseUpdate(update_id, "rejected", "fork")
    assert isinstance(save.rows[1], NewEpoch)
    assert save.rows[1].reason == "fork"
    assert recorded(effects, "new_epoch")[0].fields["epoch"] == save.rows[1].epoch


def test_updates_of_a_former_epoch_are_offered_until_their_end() -> None:
    books = make_books(
        issued=2,
        fresh_epoch=FRESH,
        outbox={1: encode(make_update(1)), 2: encode(make_update(2, value=0.5))},
    )
    bench = Bench(books).online()
    first, second = UpdateId("node-1", 7, 1), UpdateId("node-1", 7, 2)
    effects = settle(bench, bench.hear("gw", forked(first)) + bench.fetch(0))
    new = UpdateId("node-1", FRESH, 1)
    (job,) = trains(effects)
    assert sent(bench.issue(job), Chunk)[0].id == new
    (offer,) = sent(bench.timer("resend"), Offer)
    assert offer.ids == [second, new]
    assert offer.hashes[0] == make_update(2, value=0.5).hash
    receipts = [Receipt(second, "settled"), Receipt(new, "settled")]
    bench.hear("gw", Receipts(receipts=receipts))
    (state,) = announced(bench.timer("presence"), NodeState)
    figures = {name: state.counters[name] for name in ("issued", "applied", "rejected", "outbox")}
    assert figures == {"issued": 3, "applied": 2, "rejected": 1, "outbox": 0}
    assert state.epoch == FRESH


def test_a_second_fork_of_the_same_epoch_changes_nothing_and_one_of_the_next_does() -> None:
    bodies = {seq: encode(make_update(seq)) for seq in (1, 2)}
    bench = Bench(make_books(issued=2, outbox=bodies, fresh_epoch=FRESH)).online()
    effects = bench.hear("gw", forked(UpdateId("node-1", 7, 1)))
    effects += bench.hear("gw", forked(UpdateId("node-1", 7, 2)))
    assert [row.epoch for row in saved_rows(effects, NewEpoch)] == [FRESH]
    (job,) = trains(settle(bench, effects) + bench.fetch(0))
    bench.issue(job)
    (row,) = saved_rows(bench.hear("gw", forked(UpdateId("node-1", FRESH, 1))), NewEpoch)
    assert row.epoch not in (7, FRESH)


def test_an_update_is_not_written_before_its_epoch() -> None:
    bench, update_id = issued_one()
    (job,) = trains(bench.fetch(1))
    (epoch,) = saves(bench.hear("gw", forked(update_id)))
    bench.done(JobFailed(epoch.job, "disk full"))
    assert saves(bench.trained(job)) == []
    (again,) = saves(bench.timer("save"))
    assert again.rows == epoch.rows
    (row,) = saved_rows(bench.done(Saved(again.job)), PutUpdate)
    assert (row.id.epoch, row.id.seq) == (epoch.rows[1].epoch, 1)


def test_a_new_epoch_at_the_start_is_counted() -> None:
    bench = Bench(make_books(ended="lost-frames"))
    assert recorded(bench.effects, "new_epoch")[0].fields == {"reason": "lost-frames", "epoch": 7}


def test_a_receipt_of_another_content_is_a_fork() -> None:
    bench, update_id = issued_one()
    own = bench.node._courier.outbox.hashes([update_id])[0]
    effects = bench.hear("gw", Receipts(receipts=[Receipt(update_id, "settled", hash=own ^ 1)]))
    assert saved_rows(effects, CloseUpdate) == [CloseUpdate(update_id, "rejected", "fork")]
    assert saved_rows(effects, NewEpoch)


def test_a_receipt_of_the_same_content_is_none() -> None:
    bench, update_id = issued_one()
    own = bench.node._courier.outbox.hashes([update_id])[0]
    bench.hear("gw", Receipts(receipts=[Receipt(update_id, "settled", hash=own)]))
    rows = saved_rows(bench.timer("close"), CloseUpdate)
    assert rows == [CloseUpdate(update_id, "applied")]


# Damage.


def test_a_damaged_update_is_offered_and_ends_when_its_body_is_wanted() -> None:
    bench = Bench(make_books(issued=2, outbox={1: b"", 2: encode(make_update(2))})).online()
    damaged, sound = UpdateId("node-1", 7, 1), UpdateId("node-1", 7, 2)
    (offer,) = sent(bench.timer("resend"), Offer)
    assert offer.ids == [damaged, sound]
    assert offer.hashes == [0, make_update(2).hash]
    effects = bench.hear("gw", BodiesWanted(ids=[damaged, sound, damaged]))
    assert {chunk.id for chunk in sent(effects, Chunk)} == {sound}
    (rejected,) = recorded(effects, "update_rejected")
    assert rejected.fields["reason"] == "damaged"
    rows = saved_rows(bench.timer("close"), CloseUpdate)
    assert rows == [CloseUpdate(damaged, "rejected", "damaged")]


def test_a_damaged_update_that_was_applied_is_settled() -> None:
    bench = Bench(make_books(issued=1, outbox={1: b""})).online()
    damaged = UpdateId("node-1", 7, 1)
    receipt = Receipt(damaged, "settled", hash=make_update(1).hash)
    bench.hear("gw", Receipts(receipts=[receipt]))
    assert saved_rows(bench.timer("close"), CloseUpdate) == [CloseUpdate(damaged, "applied")]


# The last will.


def test_the_will_tells_how_much_was_issued_when_the_life_began() -> None:
    will = last_will(found_books(5))
    assert (will.state, will.epoch, will.counters) == ("lost", 7, {"issued_before": 5})
    effects = started(found_books(5)).hear(OWN, will)
    assert saved_rows(effects, NewEpoch) == []
    effects = started(found_books(4)).hear(OWN, will)
    assert recorded(effects, "restored_disk")[0].fields["told"] == 5
