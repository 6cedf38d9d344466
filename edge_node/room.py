"""Room in a full outbox, or on a full disk, at the cost of updates that were never offered to anybody."""

from edge_node.closing import Closing
from edge_node.coalescing import can_coalesce, coalesce
from edge_node.outbox_state import OutboxState
from edge_node.replica import Replica
from edge_node.rows import PutUpdate
from hedgerow.core.codec import encode
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import UpdateId
from hedgerow.core.outlet import Outlet
from hedgerow.core.planbook import plan_ids

_LASTING_FAILURES = 3
"""A save that fails so often in a row fails for want of room, as far as a node can tell."""


class Room:
    """Adds up the two oldest updates that nobody was offered, or ends the oldest, where there is no room."""

    def __init__(
        self, outbox: OutboxState, replica: Replica, closing: Closing, outlet: Outlet
    ) -> None:
        self._outbox = outbox
        self._replica = replica
        self._closing = closing
        self._outlet = outlet

    def make(self) -> None:
        """Make room for one update, if there is none and it can be made; one step at a time."""
        no_disk = self._closing.failures >= _LASTING_FAILURES
        if not (self._outbox.full or no_disk):
            return
        if self._closing.waits("coalesced") or (no_disk and self._closing.waits("expired")):
            return
        oldest = self._outbox.never_offered()
        if oldest and not self._coalesce(oldest):
            reason = "outbox-full" if self._outbox.full else "disk-full"
            row = self._outbox.close(oldest[0], "expired", reason)
            self._outlet.record("update_expired", reason=reason, seq=row.id.seq)
            self._closing.save(row)

    def _coalesce(self, oldest: list[UpdateId]) -> bool:
        """Replace the two oldest updates by their sum; False where that is none of this version's."""
        found = map(self._outbox.update, oldest)
        one, other = next(found), next(found, None)
        base = self._replica.descriptor
        if one is None or other is None or base is None or base.version != one.base_version:
            return False
        if not can_coalesce(one, other) or one.plan_id not in plan_ids(base):
            return False
        plan, clip_norm = self._replica.plan(one.plan_id), base.rules.clip_norm
        try:
            total = coalesce(one, other, plan, clip_norm, self._outbox.next_id)
        except PeerError:
            return False  # a training that diverged: what is not finite cannot be added up
        ends = [self._outbox.close(one.id, "coalesced"), self._outbox.close(other.id, "coalesced")]
        self._outlet.record("update_coalesced", 2, seq=total.id.seq)
        self._closing.save(*ends, PutUpdate(total.id, total.base_version, encode(total)))
        return True
