"""The node's books in memory: every update from its issue to its end, over all its epochs.

issued = applied + rejected + expired + coalesced + held, at any time. An update leaves only when the
aggregator settled it, a final rejection came, or, if it was never offered to anybody, when there is no room.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edge_node.backoff import FORK
from edge_node.rows import Books, CloseUpdate
from hedgerow.core.codec import decode
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Receipt, Update, UpdateId

_FINAL = {"settled": "applied", "rejected": "rejected"}


@dataclass(slots=True)
class _Held:
    """`hash` is the content's, None until it is asked for, and 0 of a damaged body."""

    body: bytes
    offered: bool
    admitted: bool = False
    hash: int | None = None


class OutboxState:
    """Held updates by id, oldest first, and the counters of those that ended.

    `epoch` is that of the updates to come; those of former epochs are held until their receipts are final.
    `numbered` is how many ids were ever given out.
    `give_back` is called with the body of each update that ends and whose content does not go on.
    """

    def __init__(self, books: Books, max_updates: int, give_back: Callable[[bytes], None]) -> None:
        self._give_back = give_back
        self.node, self.epoch = books.node, books.epoch
        self.known_epochs = {book.epoch for book in books.epochs}
        self.ended: Counter[str] = Counter()
        self.issued = 0
        self.max_updates = max_updates
        self._held: dict[UpdateId, _Held] = {}
        for book in books.epochs:
            self.issued += book.issued
            self.ended["applied"] += book.applied
            self.ended["rejected"] += sum(book.rejected.values())
            self.ended["expired"] += book.expired
            self.ended["coalesced"] += book.coalesced
            for seq, body in sorted(book.outbox.items()):
                # Whether an update of an earlier life was offered is not known, so it counts as offered.
                self._held[UpdateId(books.node, book.epoch, seq)] = _Held(body, offered=True)
        self.numbered = self.issued
        self._next_seq = books.issued + 1

    @property
    def full(self) -> bool:
        """Whether another update would pass the bound."""
        return len(self._held) >= self.max_updates

    @property
    def stuck(self) -> bool:
        """Whether it is full of updates that must stay because they were offered."""
        return self.full and not self.never_offered()

    def never_offered(self) -> list[UpdateId]:
        """Return the held updates that nobody can have, oldest first."""
        return [update_id for update_id, held in self._held.items() if not held.offered]

    def take_epoch(self, epoch: int) -> None:
        """Number the updates to come anew, under this epoch."""
        self.epoch = epoch
        self.known_epochs.add(epoch)
        self._next_seq = 1

    def next_id(self) -> UpdateId:
        """Return the id of a new update; each id is given out once."""
        self._next_seq += 1
        self.numbered += 1
        return UpdateId(self.node, self.epoch, self._next_seq - 1)

    def put(self, update_id: UpdateId, body: bytes) -> None:
        """Hold an update that has just become durable."""
        self.issued += 1
        self._held[update_id] = _Held(body, offered=False)

    def body(self, update_id: UpdateId) -> bytes | None:
        """Return a held update's encoded message, b"" for a damaged one, None when it is not held."""
        held = self._held.get(update_id)
        return None if held is None else held.body

    def update(self, update_id: UpdateId) -> Update | None:
        """Return a held update, None for one that is damaged or not held."""
        return _read(self._held[update_id].body) if update_id in self._held else None

    def hashes(self, ids: Iterable[UpdateId]) -> list[int]:
        """Return the contents' hashes of held updates, 0 of a damaged one."""
        return [self._hash(self._held[update_id]) for update_id in ids]

    def mark_offered(self, update_id: UpdateId) -> None:
        """Remember that somebody may have the update from now on."""
        self._held[update_id].offered = True

    def lost_admissions(self) -> None:
        """Forget who admitted what: the gateway changed or restarted."""
        for held in self._held.values():
            held.admitted = False

    def to_offer(self, limit: int) -> list[UpdateId]:
        """Return the ids to offer, oldest first, those no gateway has admitted before the others."""
        return sorted(self._held, key=lambda update_id: self._held[update_id].admitted)[:limit]

    def take_receipt(self, receipt: Receipt) -> CloseUpdate | None:
        """Take a receipt; return the row that ends the update when the receipt is final and it is held."""
        held = self._held.get(receipt.id)
        if held is None:
            return None
        if receipt.hash and self._hash(held) not in (receipt.hash, 0):
            # A disk that was put back issued the id twice, and this is said of the other update.
            in_ledger = receipt.status == "settled"
            return self.close(receipt.id, "rejected", FORK) if in_ledger else None
        held.admitted = held.admitted or receipt.status == "admitted"
        outcome = _FINAL.get(receipt.status)
        return None if outcome is None else self.close(receipt.id, outcome, receipt.reason)

    def close(self, update_id: UpdateId, outcome: str, reason: str = "") -> CloseUpdate:
        """End a held update; return the row that says so."""
        body = self._held.pop(update_id).body
        # What was added to another update goes on there, and of a damaged one nothing is left.
        if outcome not in ("applied", "coalesced") and _read(body) is not None:
            self._give_back(body)
        self.ended[outcome] += 1
        return CloseUpdate(update_id, outcome, reason)

    def counters(self) -> dict[str, int]:
        """Return the books as counters for the node's state."""
        return {
            "issued": self.issued,
            "applied": self.ended["applied"],
            "rejected": self.ended["rejected"],
            "expired": self.ended["expired"],
            "coalesced": self.ended["coalesced"],
            "outbox": len(self._held),
        }

    @staticmethod
    def _hash(held: _Held) -> int:
        if held.hash is None:
            update = _read(held.body)
            held.hash = 0 if update is None else update.hash
        return held.hash


def _read(body: bytes) -> Update | None:
    """Return the update of a body, None for one that the disk has damaged or that nobody can read."""
    try:
        update = decode(body)
    except PeerError:
        return None
    return update if isinstance(update, Update) else None
