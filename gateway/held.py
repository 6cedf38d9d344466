"""The updates a gateway holds in memory, from admission until their receipt is final.

They stay, whole, after they were summed: a sum cannot subtract, so when the aggregator names duplicates
the partial aggregate is built anew from them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from hedgerow.core.buffer import Buffer
from hedgerow.core.messages import Receipt, Update, UpdateId

Stage = Literal["pending", "posted", "accepted"]
_RECENT_RECEIPTS = 8192
_OVERHEAD_BYTES = 512


@dataclass(slots=True)
class Held:
    """An admitted update: pending, in a partial aggregate on its way, or durable at the aggregator."""

    update: Update
    stage: Stage = "pending"


class HeldUpdates:
    """A bounded buffer of updates, and the latest final receipts as a short cut for repeats."""

    def __init__(self, max_updates: int, max_bytes: int) -> None:
        self.buffer: Buffer[UpdateId, Held] = Buffer(max_updates, max_bytes)
        self._pending: dict[UpdateId, Update] = {}
        self._recent: dict[UpdateId, Receipt] = {}

    def receipt(self, update_id: UpdateId) -> Receipt | None:
        """Return what is known of an update here: its final receipt, that it is held, or nothing."""
        if update_id in self.buffer:
            return Receipt(update_id, "admitted")
        return self._recent.get(update_id)

    def room_for(self, size_bytes: int) -> bool:
        """Whether an update of this size would be admitted."""
        buffer = self.buffer
        fits = buffer.held_bytes + size_bytes + _OVERHEAD_BYTES <= buffer.max_bytes
        return fits and len(buffer) < buffer.max_items

    def admit(self, update: Update) -> None:
        """Hold an update; call it when there is `room_for` its whole message."""
        size_bytes = len(update.payload) + len(update.scales) + _OVERHEAD_BYTES
        admitted = self.buffer.admit(update.id, Held(update), size_bytes)
        assert admitted, f"no room for {update.id}"
        self._pending[update.id] = update

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

    def close(self, receipt: Receipt) -> None:
        """Take a final receipt: the update leaves, the receipt is remembered for repeats."""
        if receipt.id in self.buffer:
            self.buffer.drain(receipt.id)
            self._pending.pop(receipt.id, None)
        self._recent[receipt.id] = receipt
        if len(self._recent) > _RECENT_RECEIPTS:
            del self._recent[next(iter(self._recent))]
