"""The law of the node's books: whatever happens, each issued update is in exactly one place."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from edge_node.outbox_state import OutboxState
from edge_node.rows import CloseUpdate, EpochBooks
from hedgerow.core.codec import encode
from hedgerow.core.messages import Receipt, UpdateId
from tests.protocol.scenarios import make_books, make_update

STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["issue", "epoch", "offer", "settled", "rejected", "busy", "close", "restart"]
        ),
        st.integers(0, 1 << 16),
    ),
    max_size=60,
)


class Life:
    """An outbox in memory and what a disk would hold of it."""

    def __init__(self) -> None:
        self.epochs = [1]
        self.bodies: dict[UpdateId, bytes] = {}
        self.ends: dict[UpdateId, CloseUpdate] = {}
        self.given_back: list[bytes] = []
        self.state = self.started()

    def started(self) -> OutboxState:
        *former, current = [self.account(epoch) for epoch in self.epochs]
        books = make_books(
            **current, former=tuple(EpochBooks(node="node-1", **one) for one in former)
        )
        return OutboxState(books, 8, self.given_back.append)

    def account(self, epoch: int) -> dict[str, Any]:
        ids = [i for i in self.bodies if i.epoch == epoch]
        ends = [self.ends[i].outcome for i in ids if i in self.ends]
        return {
            "epoch": epoch,
            "issued": len(ids),
            "applied": ends.count("applied"),
            "rejected": {"why": ends.count("rejected")},
            "expired": ends.count("expired"),
            "coalesced": ends.count("coalesced"),
            "outbox": {i.seq: self.bodies[i] for i in ids if i not in self.ends},
        }

    def step(self, what: str, number: int) -> None:
        held = self.state.to_offer(99)
        if what == "issue":
            update_id = self.state.next_id()
            assert update_id not in self.bodies, "an id is issued once"
            self.bodies[update_id] = encode(make_update(update_id.seq, id=update_id))
            self.state.put(update_id, self.bodies[update_id])
        elif what == "epoch":
            self.epochs.append(self.epochs[-1] + 1)
            self.state.take_epoch(self.epochs[-1])
        elif what == "restart":
            self.state = self.started()
        elif held:
            self.end(held[number % len(held)], what)

    def end(self, update_id: UpdateId, what: str) -> None:
        if what == "offer":
            self.state.mark_offered(update_id)
        elif what == "close":
            loose = self.state.never_offered()
            if loose:
                self.ends[loose[0]] = self.state.close(loose[0], "coalesced")
        else:
            receipt = Receipt(update_id, what, "why")  # type: ignore[arg-type]
            row = self.state.take_receipt(receipt)
            assert (row is None) == (what == "busy")
            if row is not None:
                self.ends[update_id] = row
            assert self.state.take_receipt(receipt) is None or what == "busy"


@given(STEPS)
def test_every_update_is_in_one_place(steps: list[tuple[str, int]]) -> None:
    life = Life()
    for what, number in steps:
        life.step(what, number)
        figures = life.state.counters()
        held = set(life.bodies) - set(life.ends)
        assert set(life.state.to_offer(99)) == held
        assert figures["issued"] == len(life.bodies)
        ended = ("applied", "rejected", "expired", "coalesced")
        assert sum(figures[term] for term in ended) == len(life.ends)
        assert figures["outbox"] == len(held)
        assert life.state.hashes(sorted(held)) == [
            make_update(i.seq, id=i).hash for i in sorted(held)
        ]
    refused = [i for i, row in life.ends.items() if row.outcome == "rejected"]
    assert sorted(life.given_back) == sorted(life.bodies[i] for i in refused)
