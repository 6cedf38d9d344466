"""What comes up from the nodes: chunks are put together, checked, and admitted or refused with a reason."""

from gateway.checks import check_update, check_version
from gateway.held import FORK, HeldUpdates, Known
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
from hedgerow.core.units import digest
from hedgerow.core.versions import is_provisional

_MAX_INCOMING = 1024
_STALL_US = 5_000_000
_GIVE_UP_US = 60_000_000
_MAX_MISSING = 1024
FINAL_REASONS: frozenset[Reason] = frozenset(
    {"wrong-model", "unknown-plan", "shape", "not-finite", "norm", "malformed"}
)
"""Reasons that another try cannot mend. The others leave the update in the node's outbox."""
_OF_THE_BASE: frozenset[Reason] = frozenset({"unknown-plan", "norm"})


def is_final(reason: Reason, base_version: int) -> bool:
    """Whether a gateway's refusal of an update for this reason is the end of it.

    Of an island that this gateway does not remember it knows neither plan nor clip norm: the gateway that
    does may have merged the update, and bring it to the ledger.
    """
    return reason in FINAL_REASONS and not (is_provisional(base_version) and reason in _OF_THE_BASE)


class Intake:
    """Admits updates into the held buffer. Every refusal is counted and, where it is final, told."""

    def __init__(
        self, held: HeldUpdates, relay: Relay, outlet: Outlet, *, max_held_bytes: int
    ) -> None:
        self._held = held
        self._relay = relay
        self._outlet = outlet
        self._dropped = 0
        self._incoming = Reassembler(max_held_bytes, max_held_bytes, _MAX_INCOMING)

    def take_chunk(self, peer: str, chunk: Chunk, now_us: int) -> Update | None:
        """Take a chunk; return the update that it completed, when that was admitted.

        Raises PeerError for a chunk that is damaged or not the sender's own.
        """
        self._check_source(peer, chunk.id)
        known = self._held.known(chunk.id)
        if known is not None and not self._may_be_other(known, chunk):
            if chunk.index == chunk.count - 1:
                self._tell(known.receipt)
            return None
        try:
            check_version(self._relay, chunk.model, chunk.base_version, chunk.plan_id)
        except PeerError as error:
            if chunk.index == 0 or not is_final(error.reason, chunk.base_version):
                self._refuse(chunk.id, error, chunk.base_version)
            return None
        if not self._held.room_for(chunk.total_bytes):
            if chunk.index == 0:
                self._busy(chunk.id)
            return None
        body = self._incoming.put(chunk, now_us)
        return None if body is None else self._admit(chunk.id, body)

    def _may_be_other(self, known: Known, chunk: Chunk) -> bool:
        """Whether a known id's chunk may be of another update: its last one's digest is not the known one.

        Then the whole is put together, those chunks that went by before with what is asked for again. Where
        the known one was refused, the other one may be welcome: nothing of it is to go by.
        """
        last = chunk.index == chunk.count - 1
        refused = known.receipt.status == "rejected"
        return refused or chunk.id in self._incoming or (last and chunk.digest != known.digest)

    def take_offer(self, peer: str, offer: Offer) -> None:
        """Answer an offer: receipts for what is known, requests for what is not.

        Raises PeerError for ids that are not the sender's own, and where there is not one hash for each id.
        """
        hashes = offer.hashes or [0] * len(offer.ids)
        if len(hashes) != len(offer.ids):
            raise PeerError("inconsistent", f"{len(hashes)} hashes of {len(offer.ids)} updates")
        receipts, wanted = [], []
        stalled = self._incoming.stalled(before_us=1 << 62)
        for update_id, content_hash in zip(offer.ids, hashes, strict=True):
            self._check_source(peer, update_id)
            receipt = self._verdict(update_id, content_hash)
            if receipt is not None:
                receipts.append(receipt)
            elif update_id in stalled:
                self._want_chunks(update_id, stalled[update_id])
            else:
                wanted.append(update_id)
        if receipts:
            self._outlet.do(Send(peer, Receipts(receipts=receipts)))
        if wanted and self._relay.newest is not None:
            self._outlet.do(Send(peer, BodiesWanted(ids=wanted)))

    def _verdict(self, update_id: UpdateId, content_hash: int) -> Receipt | None:
        """Return what is known of an update of this content, None where its body is needed to know."""
        receipt = self._held.verdict(update_id, content_hash)
        if receipt is not None and receipt.reason == FORK:
            self._outlet.record("fork_alarm", reason=receipt.status, node=update_id.node)
            self._incoming.forget(update_id)
        return receipt

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

    def _admit(self, update_id: UpdateId, body: bytes) -> Update | None:
        update = None
        try:
            update = self._read(update_id, body)
            known = self._verdict(update_id, update.hash)
            if known is not None:
                self._tell(known)
                return None
            check_version(self._relay, update.model, update.base_version, update.plan_id)
            checked = check_update(self._relay, update)
        except PeerError as error:
            base_version, content = (0, 0) if update is None else (update.base_version, update.hash)
            self._refuse(update_id, error, base_version, content)
            return None
        self._held.admit(update, digest=digest(body), checked=checked)
        # The node is not told: it hears when the update is settled, and asks if that takes long.
        self._outlet.record("update_admitted", node=update_id.node, bytes=len(body))
        return update

    @staticmethod
    def _read(update_id: UpdateId, body: bytes) -> Update:
        update = decode(body)
        if not isinstance(update, Update) or update.id != update_id:
            raise PeerError("malformed", "the chunks do not hold the update they announced")
        return update

    def _refuse(
        self, update_id: UpdateId, error: PeerError, base_version: int, content_hash: int = 0
    ) -> None:
        """Refuse an update: for ever where no other try can help, else only for now."""
        final = is_final(error.reason, base_version)
        event = "update_rejected" if final else "update_refused"
        self._outlet.record(event, reason=error.reason, detail=error.detail, node=update_id.node)
        receipt = Receipt(update_id, "rejected" if final else "busy", error.reason, content_hash)
        if final:
            self._held.close(receipt, content_hash)
            self._incoming.forget(update_id)
        self._tell(receipt)

    def _busy(self, update_id: UpdateId) -> None:
        self._outlet.record("update_refused", reason="busy", node=update_id.node)
        self._tell(Receipt(update_id, "busy", "buffer-full"))

    def _tell(self, receipt: Receipt) -> None:
        peer = names.node_peer(receipt.id.node)
        self._outlet.do(Send(peer, Receipts(receipts=[receipt])))
