"""What comes up from the nodes: chunks are put together, checked, and admitted or refused with a reason."""

from gateway.held import HeldUpdates
from gateway.relay import Relay
from hedgerow.core import names
from hedgerow.core.chunks import Reassembler
from hedgerow.core.codec import decode
from hedgerow.core.effects import Send
from hedgerow.core.errors import PeerError, Reason
from hedgerow.core.messages import (
    BodiesWanted,
    Chunk,
    ChunksWanted,
    Offer,
    Receipt,
    Receipts,
    Update,
    UpdateId,
)
from hedgerow.core.outlet import Outlet
from hedgerow.core.planbook import check_plan
from hedgerow.core.quantize import update_norm

_NORM_TOLERANCE = 1.001
_MAX_INCOMING = 1024
_STALL_US = 5_000_000
_GIVE_UP_US = 60_000_000
_MAX_MISSING = 1024
_FINAL: frozenset[Reason] = frozenset(
    {"wrong-model", "unknown-plan", "shape", "not-finite", "norm", "malformed"}
)
"""Reasons that another try cannot mend. The others leave the update in the node's outbox."""


class Intake:
    """Admits updates into the held buffer. Every refusal is counted and, where it is final, told."""

    def __init__(
        self, held: HeldUpdates, relay: Relay, outlet: Outlet, *, model: str, max_held_bytes: int
    ) -> None:
        self._held = held
        self._relay = relay
        self._outlet = outlet
        self._model = model
        self._dropped = 0
        self._incoming = Reassembler(max_held_bytes, max_held_bytes, _MAX_INCOMING)

    def take_chunk(self, peer: str, chunk: Chunk, now_us: int) -> Update | None:
        """Take a chunk; return the update that it completed, when that was admitted.

        Raises PeerError for a chunk that is damaged or not the sender's own.
        """
        self._check_source(peer, chunk.id)
        known = self._held.receipt(chunk.id)
        if known is not None:
            if chunk.index == chunk.count - 1:
                self._tell(known)
            return None
        try:
            self._check_version(chunk.model, chunk.base_version, chunk.plan_id)
        except PeerError as error:
            self._refuse(chunk.id, error)
            return None
        if not self._held.room_for(chunk.total_bytes):
            if chunk.index == 0:
                self._busy(chunk.id)
            return None
        body = self._incoming.put(chunk, now_us)
        return None if body is None else self._admit(chunk.id, body)

    def take_offer(self, peer: str, offer: Offer) -> None:
        """Answer an offer: receipts for what is known, requests for what is not."""
        receipts, wanted = [], []
        stalled = self._incoming.stalled(before_us=1 << 62)
        for update_id in offer.ids:
            self._check_source(peer, update_id)
            known = self._held.receipt(update_id)
            if known is not None:
                receipts.append(known)
            elif update_id in stalled:
                self._want_chunks(update_id, stalled[update_id])
            else:
                wanted.append(update_id)
        if receipts:
            self._outlet.do(Send(peer, Receipts(receipts=receipts)))
        if wanted and self._relay.newest is not None:
            self._outlet.do(Send(peer, BodiesWanted(ids=wanted)))

    def chase(self, now_us: int) -> None:
        """Ask for the missing chunks of updates that have been quiet for a while, but not for ever."""
        for update_id in self._incoming.stalled(now_us - _GIVE_UP_US):
            self._incoming.forget(update_id)
            self._outlet.record("incoming_dropped", reason="silent", node=update_id.node)
        for update_id, missing in self._incoming.stalled(now_us - _STALL_US).items():
            self._want_chunks(update_id, missing)
        if self._incoming.dropped > self._dropped:
            lately = self._incoming.dropped - self._dropped
            self._outlet.record("incoming_dropped", lately, reason="no-room")
            self._dropped = self._incoming.dropped

    def _want_chunks(self, update_id: UpdateId, missing: list[int]) -> None:
        wanted = ChunksWanted(id=update_id, missing=missing[:_MAX_MISSING])
        self._outlet.do(Send(names.node_peer(update_id.node), wanted))

    def _check_source(self, peer: str, update_id: UpdateId) -> None:
        if peer != names.node_peer(update_id.node):
            raise PeerError("wrong-source", f"{peer} sent an update of {update_id.node}")

    def _check_version(self, model: str, base_version: int, plan_id: str) -> None:
        if model != self._model:
            raise PeerError("wrong-model", f"update of {model}, this is {self._model}")
        newest = self._relay.newest
        if newest is None or base_version > newest.version:
            raise PeerError("future-version", f"base version {base_version} is not known here yet")
        if self._relay.is_stale(base_version):
            return  # it may have been applied long ago: the aggregator tells
        check_plan(self._relay.descriptor(base_version), plan_id)

    def _admit(self, update_id: UpdateId, body: bytes) -> Update | None:
        try:
            update = self._checked(update_id, body)
        except PeerError as error:
            self._refuse(update_id, error)
            return None
        self._held.admit(update)
        # The node is not told: it hears when the update is settled, and asks if that takes long.
        self._outlet.record("update_admitted", node=update_id.node, bytes=len(body))
        return update

    def _checked(self, update_id: UpdateId, body: bytes) -> Update:
        update = decode(body)
        if not isinstance(update, Update) or update.id != update_id:
            raise PeerError("malformed", "the chunks do not hold the update they announced")
        self._check_version(update.model, update.base_version, update.plan_id)
        if self._relay.is_stale(update.base_version):
            return update
        length = update_norm(update, self._relay.plan(update.plan_id))
        limit = self._relay.rules(update.base_version).clip_norm * _NORM_TOLERANCE
        if length > limit:
            raise PeerError("norm", f"norm {length:.3g} is above the clip norm {limit:.3g}")
        return update

    def _refuse(self, update_id: UpdateId, error: PeerError) -> None:
        """Refuse an update: for ever where no other try can help, else only for now."""
        final = error.reason in _FINAL
        event = "update_rejected" if final else "update_refused"
        self._outlet.record(event, reason=error.reason, detail=error.detail, node=update_id.node)
        receipt = Receipt(update_id, "rejected" if final else "busy", error.reason)
        if final:
            self._held.close(receipt)
            self._incoming.forget(update_id)
        self._tell(receipt)

    def _busy(self, update_id: UpdateId) -> None:
        self._outlet.record("update_refused", reason="busy", node=update_id.node)
        self._tell(Receipt(update_id, "busy", "buffer-full"))

    def _tell(self, receipt: Receipt) -> None:
        peer = names.node_peer(receipt.id.node)
        self._outlet.do(Send(peer, Receipts(receipts=[receipt])))
