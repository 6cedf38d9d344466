"""What a gateway hears from the aggregator and from its peers, and what that means for its parts."""

from typing import Any

from gateway.parts import Parts
from gateway.peers import Route
from hedgerow.core import names
from hedgerow.core.effects import LinkDown, LinkUp, Undelivered
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BlobPart,
    BlobsWanted,
    Bundle,
    Descriptor,
    GatewayState,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
)
from hedgerow.core.versions import begins_life


class Exchange:
    """Takes messages from above and from the side."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def turn(self, route: Route) -> None:
        """There is another way, or none any more."""
        source = names.gateway_peer(route.via) if route.via else ""
        above = names.AGGREGATOR if route.hops == 0 else source
        for partial in self._parts.way.turn(route):
            self._come_back(partial)
        self._parts.forward.way_changed()
        if self._parts.supply.turn_to(above):
            self._parts.relay.fetch()
        if route.usable:
            self._parts.carrier.turn(above)
            self._parts.carrier.pass_on(uplink=self._parts.uplink.up)

    def from_aggregator(self, message: Any) -> None:
        """Take what came over the uplink. Raises PeerError for what the aggregator does not send."""
        match message:
            case LinkUp():
                self._parts.uplink.came_up()
                self._parts.roster.report_all()
                self._parts.relay.fetch()
            case LinkDown():
                self._parts.uplink.went_down()
            case Descriptor():
                self._take_version(message)
            case BlobPart():
                self._parts.relay.put(message)
            case Receipts():
                self._take_receipts(message.receipts)
            case PartialReply():
                self._parts.uplink.answered()
                self._take_reply(message)
            case Undelivered(lost, detail, retry_after_us):
                self._undelivered(lost, detail, retry_after_us)
            case _:
                raise PeerError("malformed", f"{type(message).__name__} from the aggregator")

    def from_peer(self, peer: str, message: Any) -> None:
        """Take another gateway's message. Raises PeerError for what none may send."""
        match message:
            case GatewayState():
                if not self._parts.peers.take(peer, message):
                    self._parts.announcer.contradicted()
            case Bundle():
                if not self._parts.islands.take_bundle(peer, message):
                    self._parts.carrier.take(peer, message)
                    self._parts.carrier.pass_on(uplink=self._parts.uplink.up)
            case PartialReply():
                self._take_reply(message)
            case Receipts():
                self._take_receipts(message.receipts)
            case BlobsWanted():
                self._parts.relay.serve_again(message.digests)
            case Descriptor():
                if peer == self._parts.supply.source:
                    self._take_version(message)
            case _:
                raise PeerError("malformed", f"{type(message).__name__} from {peer}")

    def _take_version(self, descriptor: Descriptor) -> None:
        # One put back to an older state counts its starts up to a former term again, but not its lives.
        relay = self._parts.relay
        new_life = begins_life(descriptor.version, relay.version)
        restarted = descriptor.term > relay.term or new_life
        relay.take(descriptor)
        if restarted:
            self._parts.forward.post_again()

    def take_piece(self, message: Any) -> None:
        """Take what came on a unit's channel. Raises PeerError for what is none of its pieces."""
        if not isinstance(message, BlobPart):
            raise PeerError("malformed", f"{type(message).__name__} on a unit's channel")
        whole = self._parts.supply.put(message)
        if whole is not None:
            self._parts.relay.put(whole)

    def _take_reply(self, reply: PartialReply) -> None:
        if not self._parts.carrier.take_reply(reply):
            self._parts.way.answered(reply.partial_id)
            if not self._parts.islands.take_reply(reply):
                self._parts.forward.take_reply(reply)

    def _take_receipts(self, receipts: list[Receipt]) -> None:
        """Take final receipts: of updates held here, of carried ones, or of both."""
        receipts = [r for r in receipts if r.status in ("settled", "rejected")]
        self._parts.islands.take_receipts(receipts)
        others = set(self._parts.carrier.take_receipts(receipts))
        own = [r for r in receipts if r in others or r.id in self._parts.held.buffer]
        self._parts.forward.take_receipts(own)

    def unanswered(self, partial_id: str) -> None:
        """A peer gave no answer to a partial of this gateway in time."""
        partial = self._parts.way.unanswered(partial_id)
        if partial is not None:
            self._come_back(partial)

    def carry_again(self, partial_id: str) -> None:
        """No answer came to a carried partial in time."""
        self._parts.carrier.unanswered(partial_id)
        self._parts.carrier.pass_on(uplink=self._parts.uplink.up)

    def _come_back(self, partial: Partial, wait_us: int = 0) -> None:
        """A partial did not arrive: its updates are to be posted again."""
        if not self._parts.islands.undelivered(partial, wait_us):
            self._parts.forward.undelivered(partial)

    def _undelivered(self, lost: Any, detail: str, retry_after_us: int) -> None:
        self._parts.outlet.record("undelivered", reason=type(lost).__name__, detail=detail)
        if isinstance(lost, Partial):
            wait_us = max(retry_after_us, self._parts.uplink.backoff_us())
            self._come_back(lost, wait_us)
            self._parts.flushing.hold_off(wait_us)
        elif isinstance(lost, Bundle):
            self._parts.carrier.undelivered(lost, retry_after_us)
        elif isinstance(lost, BlobsWanted):
            self._parts.uplink.subscribe_later(retry_after_us)
