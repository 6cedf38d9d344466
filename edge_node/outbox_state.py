"""The node's books in memory: every update from its issue to its end.

issued = applied + rejected + expired + held, at any time. An update leaves only when the aggregator
settled it, a final rejection came, or, if it was never offered to anybody, when there is no room.
"""

from collections.abc import Callable
from dataclasses import dataclass

from edge_node.rows import Books, CloseUpdate
from hedgerow.core.messages import Receipt, UpdateId

_FINAL = {"settled": "applied", "rejected": "rejected"}


@dataclass(slots=True)
class _Held:
    body: bytes
    offered: bool
    admitted: bool = False


class OutboxState:
    """Held updates by seq, oldest first, and the counters of those that ended.

    `give_back` is called with the body of each update that ends without being applied.
    """

    def __init__(self, books: Books, max_updates: int, give_back: Callable[[bytes], None]) -> None:
        self._give_back = give_back
        self.node, self.epoch = books.node, books.epoch
        self.issued, self.applied, self.expired = books.issued, books.applied, books.expired
        self.rejected = dict(books.rejected)
        self.max_updates = max_updates
        # Whether an update of an earlier life was offered is not known, so it counts as offered.
        self._held = {seq: _Held(body, offered=True) for seq, body in sorted(books.outbox.items())}

    @property
    def full(self) -> bool:
        """Whether another update would pass the bound."""
        return len(self._held) >= self.max_updates

    @property
    def stuck(self) -> bool:
        """Whether it is full of updates that must stay because they were offered."""
        return self.full and all(held.offered for held in self._held.values())

    def id_of(self, seq: int) -> UpdateId:
        """Return the update's id."""
        return UpdateId(self.node, self.epoch, seq)

    def put(self, seq: int, body: bytes) -> None:
        """Hold an update that has just become durable."""
        self.issued = max(self.issued, seq)
        self._held[seq] = _Held(body, offered=False)

    def body(self, update_id: UpdateId) -> bytes | None:
        """Return a held update's encoded message, None when it is not held."""
        held = self._held.get(update_id.seq) if update_id.epoch == self.epoch else None
        return None if held is None else held.body

    def mark_offered(self, seq: int) -> None:
        """Remember that somebody may have the update from now on."""
        self._held[seq].offered = True

    def lost_admissions(self) -> None:
        """Forget who admitted what: the gateway changed or restarted."""
        for held in self._held.values():
            held.admitted = False

    def to_offer(self, limit: int) -> list[UpdateId]:
        """Return the ids to offer, oldest first, those no gateway has admitted before the others."""
        seqs = sorted(self._held, key=lambda seq: (self._held[seq].admitted, seq))
        return [self.id_of(seq) for seq in seqs[:limit]]

    def take_receipt(self, receipt: Receipt) -> CloseUpdate | None:
        """Take a receipt; return the row that ends the update when the receipt is final and it is held."""
        held = self._held.get(receipt.id.seq)
        if held is None or (receipt.id.node, receipt.id.epoch) != (self.node, self.epoch):
            return None
        held.admitted = held.admitted or receipt.status == "admitted"
        outcome = _FINAL.get(receipt.status)
        if outcome is None:
            return None
        return self._close(receipt.id.seq, outcome, receipt.reason)

    def expire_for_room(self) -> CloseUpdate | None:
        """Where it is full, end the oldest update that was never offered; None when there was none."""
        for seq, held in self._held.items():
            if self.full and not held.offered:
                return self._close(seq, "expired", "outbox-full")
        return None

    def _close(self, seq: int, outcome: str, reason: str) -> CloseUpdate:
        body = self._held.pop(seq).body
        if outcome != "applied":
            self._give_back(body)
        if outcome == "applied":
            self.applied += 1
        elif outcome == "expired":
            self.expired += 1
        else:
            self.rejected[reason] = self.rejected.get(reason, 0) + 1
        return CloseUpdate(seq, outcome, reason)

    def counters(self) -> dict[str, int]:
        """Return the books as counters for the node's state."""
        return {
            "issued": self.issued,
            "applied": self.applied,
            "rejected": sum(self.rejected.values()),
            "expired": self.expired,
            "outbox": len(self._held),
        }
