"""Updates that peers of a site hand over: one by one, for the island's acting gateway to merge.

They are held here as those of its own nodes are, and their receipts go back to the peer as well.
"""

from collections import defaultdict
from collections.abc import Iterable

from gateway.checks import check_update, check_version
from gateway.held import FORK, HeldUpdates
from gateway.intake import is_final
from gateway.relay import Relay
from hedgerow.core import names
from hedgerow.core.effects import Send
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    Bundle,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    Update,
    UpdateId,
)
from hedgerow.core.outlet import Outlet
from hedgerow.core.versions import is_provisional


def is_for_island(bundle: Bundle, term: int) -> bool:
    """Whether a bundle is to be taken apart here, by the acting gateway of `term` (0: it does not act).

    Updates of provisional versions are never passed on as they are: the aggregator does not know their base.
    """
    single = all(partial.updates for partial in bundle.partials)
    headers = [header for partial in bundle.partials for header in partial.headers]
    return single and (term > 0 or any(is_provisional(h.base_version) for h in headers))


class IslandSink:
    """Takes bundles of single updates into the held buffer, by the same checks as a node's."""

    def __init__(self, held: HeldUpdates, relay: Relay, outlet: Outlet) -> None:
        self._held = held
        self._relay = relay
        self._outlet = outlet
        self._owners: dict[UpdateId, str] = {}

    def take(self, peer: str, bundle: Bundle) -> None:
        """Take a peer's bundle. Raises PeerError for one that is not the peer's own."""
        if peer != names.gateway_peer(bundle.gateway) or bundle.path != [bundle.gateway]:
            raise PeerError("wrong-source", f"{peer} handed over a bundle of {bundle.path[-1]}")
        for partial in bundle.partials:
            reply = self._take(peer, partial)
            if reply is not None:
                self._outlet.do(Send(peer, reply))

    def _take(self, peer: str, partial: Partial) -> PartialReply | None:
        """Admit a partial's updates; None, and no answer, where some must come again later."""
        fates = [self._fate(update) for update in partial.updates]
        for fate in fates:
            if fate.status == "admitted":
                self._owners[fate.id] = peer
        self._forget_ended()
        final = [fate for fate in fates if fate.status in ("settled", "rejected")]
        if any(fate.status == "busy" for fate in fates):
            return None
        if final:
            return PartialReply(partial_id=partial.id, status="overlap", receipts=final)
        return PartialReply(partial_id=partial.id, status="accepted")

    def _fate(self, update: Update) -> Receipt:
        """Admit an update; or say why not, or that it is known."""
        known = self._held.verdict(update.id, update.hash)
        if known is not None:
            if known.reason == FORK:
                self._outlet.record("fork_alarm", reason=known.status, node=update.id.node)
            return known
        if not self._held.room_for(len(update.payload) + len(update.scales)):
            self._outlet.record("update_refused", reason="busy", node=update.id.node)
            return Receipt(update.id, "busy", "buffer-full")
        try:
            check_version(self._relay, update.model, update.base_version, update.plan_id)
            checked = check_update(self._relay, update)
        except PeerError as error:
            final = is_final(error.reason, update.base_version)
            event = "update_rejected" if final else "update_refused"
            self._outlet.record(event, reason=error.reason, node=update.id.node)
            return Receipt(update.id, "rejected" if final else "busy", error.reason, update.hash)
        self._held.admit(update, checked=checked)
        self._outlet.record("update_admitted", node=update.id.node, bytes=len(update.payload))
        return Receipt(update.id, "admitted")

    def take_receipts(self, receipts: Iterable[Receipt]) -> None:
        """Tell the peers what became of the updates that they handed over."""
        by_peer: dict[str, list[Receipt]] = defaultdict(list)
        for receipt in receipts:
            peer = self._owners.pop(receipt.id, "")
            if peer:
                by_peer[peer].append(receipt)
        for peer, back in by_peer.items():
            self._outlet.record("receipt_passed_back", len(back), peer=peer)
            self._outlet.do(Send(peer, Receipts(receipts=back)))

    def _forget_ended(self) -> None:
        """Owners of updates that are not held any more, whatever became of them."""
        if len(self._owners) > 2 * self._held.buffer.max_items:
            held = self._held.buffer
            self._owners = {i: peer for i, peer in self._owners.items() if i in held}
