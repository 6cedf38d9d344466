"""The updates a gateway holds in memory, from admission until their receipt is final.

They stay, whole, after they were summed: a sum cannot subtract, so when the aggregator names duplicates
the partial aggregate is built anew from them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hedgerow.core.buffer import Buffer
from hedgerow.core.messages import Receipt, ReceiptStatus, Update, UpdateId

FORK = "fork"
Stage = Literal["pending", "posted", "accepted", "too-large", "island"]
_RECENT_RECEIPTS = 8192
_OVERHEAD_BYTES = 512
_FORK_STATUS: dict[str, ReceiptStatus] = {"admitted": "busy", "settled": "rejected"}


@dataclass(slots=True)
class Held:
    """An admitted update: pending, in a partial on its way, durable at the aggregator, or too large to go.

    "island": in what an island came to, which is not on its way yet.

    `digest` is that of its message, "" where that is not known; `checked` says whether its delta was.
    """

    update: Update
    hash: int
    digest: str
    checked: bool
    stage: Stage = "pending"


@dataclass(frozen=True, slots=True)
class Known:
    """What is known here of an update: a receipt, its content's hash and its message's digest."""

    receipt: Receipt
    hash: int
    digest: str

    def is_other(self, content_hash: int) -> bool:
        """Whether an update of the same id with this hash is another one; 0 says nothing."""
        return content_hash != 0 and self.hash not in (0, content_hash)


class HeldUpdates:
    """A bounded buffer of updates, and the latest final receipts as a short cut for repeats."""

    def __init__(self, max_updates: int, max_bytes: int) -> None:
        self.buffer: Buffer[UpdateId, Held] = Buffer(max_updates, max_bytes)
        self._pending: dict[UpdateId, Update] = {}
        self._recent: dict[UpdateId, Known] = {}

    @property
    def load(self) -> float:
        """The share of the buffer that is full, in [0, 1]."""
        buffer = self.buffer
        return max(len(buffer) / buffer.max_items, buffer.held_bytes / buffer.max_bytes)

    def known(self, update_id: UpdateId) -> Known | None:
        """Return what is known of an update here: its final receipt, that it is held, or nothing."""
        if update_id in self.buffer:
            held = self.buffer[update_id]
            return Known(Receipt(update_id, "admitted"), held.hash, held.digest)
        return self._recent.get(update_id)

    def verdict(self, update_id: UpdateId, content_hash: int) -> Receipt | None:
        """Return what to say of an update of this content, 0 where that is not known; None: it is news.

        Another update of the same id is a fork: a node's disk was put back or copied. The ledger takes one
        of the two, and only what it holds is final: the one that is merely held here may come to nothing.
        """
        known = self.known(update_id)
        if known is None:
            return None
        status = known.receipt.status
        if known.is_other(content_hash):
            fork = _FORK_STATUS.get(status)
            return None if fork is None else Receipt(update_id, fork, FORK, content_hash)
        # A final receipt says nothing of an update that may be another one.
        return None if content_hash == 0 and status != "admitted" else known.receipt

    def room_for(self, size_bytes: int) -> bool:
        """Whether an update of this size would be admitted."""
        buffer = self.buffer
        fits = buffer.held_bytes + size_bytes + _OVERHEAD_BYTES <= buffer.max_bytes
        return fits and len(buffer) < buffer.max_items

    def admit(self, update: Update, *, digest: str = "", checked: bool = True) -> None:
        """Hold an update; call it when there is `room_for` its whole message."""
        size_bytes = len(update.payload) + len(update.scales) + _OVERHEAD_BYTES
        held = Held(update, update.hash, digest, checked)
        admitted = self.buffer.admit(update.id, held, size_bytes)
        assert admitted, f"no room for {update.id}"
        self._pending[update.id] = update

    def take_up(self, updates: Iterable[Update]) -> list[UpdateId]:
        """Hold updates of a former life again, as far as there is room; return the ids of all of them."""
        ids = []
        for update in updates:
            ids.append(update.id)
            if self.room_for(len(update.payload) + len(update.scales)):
                self.admit(update, checked=False)
        return ids

    def pending(self) -> list[Update]:
        """Return the updates that wait for a flush, oldest first."""
        return list(self._pending.values())

    def pending_count(self) -> int:
        """Return how many updates wait for a flush."""
        return len(self._pending)

    def move(self, ids: Iterable[UpdateId], stage: Stage) -> None:
        """Change the stage of those still held."""
        for update_id in ids:
            if update_id not in self.buffer:
                continue
            held = self.buffer[update_id]
            held.stage = stage
            if stage == "pending":
                self._pending[update_id] = held.update
            else:
                self._pending.pop(update_id, None)

    def in_stage(self, stage: Stage) -> list[UpdateId]:
        """Return the ids of the updates in one stage, oldest first."""
        return [held.update.id for held in self.buffer.values() if held.stage == stage]

    def rejections(self, ids: Iterable[UpdateId], reason: str) -> list[Receipt]:
        """Return receipts that end updates held here; another update of the same id is not meant."""
        held = [(i, self.buffer[i].hash) for i in ids if i in self.buffer]
        return [Receipt(i, "rejected", reason, content_hash) for i, content_hash in held]

    def close(self, receipt: Receipt, content_hash: int = 0) -> None:
        """Take a final receipt: the update leaves, and its receipt is remembered for repeats.

        The receipt of an update that was never here, and whose hash is not told, is not: a repeat of it
        could not be told from another update of the same id.
        """
        digest = ""
        held = self.buffer.get(receipt.id)
        if held is not None and receipt.hash not in (0, held.hash) and receipt.status == "rejected":
            return  # that was another update of this id; this one may still be welcome
        if held is not None:
            self.buffer.drain(receipt.id)
            self._pending.pop(receipt.id, None)
            content_hash, digest = held.hash, held.digest
        if receipt.hash not in (0, content_hash):
            # It is about another update of this id, which somebody else held.
            content_hash, digest = receipt.hash, ""
        if content_hash == 0:
            return
        self._recent[receipt.id] = Known(receipt, content_hash, digest)
        if len(self._recent) > _RECENT_RECEIPTS:
            del self._recent[next(iter(self._recent))]
