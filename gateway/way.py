"""How a gateway's own partials leave: posted over its uplink, or handed to a peer that has one.

A peer gives no receipt of its own: what counts is the aggregator's answer, which comes back through the same
peers. What stays unanswered is pending again.
"""

import random
from dataclasses import dataclass

from gateway.bundling import ENVELOPE_BYTES, pack, patience_us
from gateway.peers import Route
from hedgerow.core import names
from hedgerow.core.effects import CancelTimer, Send, SetTimer
from hedgerow.core.messages import Bundle, Partial
from hedgerow.core.outlet import Outlet

REPLY_TIMER = "reply"
"""With a slash and a partial's id after it."""


@dataclass(frozen=True, slots=True)
class _Handed:
    """A partial, the peer that it was handed to, and how many answers in a row were missing by then."""

    partial: Partial
    via: str
    tries: int


class Way:
    """Sends partials by the present `route` and waits for the answers of those handed to peers."""

    def __init__(self, gateway: str, packet_bytes: int, outlet: Outlet, rng: random.Random) -> None:
        self.route = Route()
        self._gateway = gateway
        self._packet_bytes = packet_bytes
        self._outlet = outlet
        self._random = rng
        self._tries = 0
        self._waiting: dict[str, _Handed] = {}

    @property
    def most_bytes(self) -> int:
        """The largest partial that can go this way, 0 where any can."""
        return self._packet_bytes - ENVELOPE_BYTES if self.route.via else 0

    def post(self, partials: list[Partial]) -> None:
        """Send partials. Call it only while there is a route."""
        if not self.route.via:
            for partial in partials:
                self._outlet.do(Send(names.AGGREGATOR, partial))
            return
        peer = names.gateway_peer(self.route.via)
        for some in pack(partials, self._packet_bytes):
            bundle = Bundle(gateway=self._gateway, path=[self._gateway], partials=some)
            self._outlet.do(Send(peer, bundle))
            self._outlet.record("partial_handed_over", len(some), peer=self.route.via)
        wait_us = patience_us(self._tries, self._random)
        for partial in partials:
            self._waiting[partial.id] = _Handed(partial, self.route.via, self._tries)
            self._outlet.do(SetTimer(_timer(partial.id), wait_us))

    def turn(self, route: Route) -> list[Partial]:
        """Take another route; return what the last one has, to be posted anew by this one."""
        self.route = route
        if not route.leads:
            return []
        self._tries = 0
        elsewhere = [name for name, handed in self._waiting.items() if handed.via != route.via]
        return [self._forget(name) for name in elsewhere]

    def answered(self, partial_id: str) -> None:
        """The aggregator answered: peers work."""
        if partial_id in self._waiting:
            self._forget(partial_id)
            self._tries = 0

    def unanswered(self, partial_id: str) -> Partial | None:
        """The wait is over; return the partial, if it is still waited for."""
        handed = self._waiting.pop(partial_id, None)
        if handed is None:
            return None
        self._tries = max(self._tries, handed.tries + 1)
        self._outlet.record("partial_unanswered", reason="no-reply")
        return handed.partial

    def _forget(self, partial_id: str) -> Partial:
        self._outlet.do(CancelTimer(_timer(partial_id)))
        return self._waiting.pop(partial_id).partial


def _timer(partial_id: str) -> str:
    return f"{REPLY_TIMER}/{partial_id}"
