"""The other gateways of the site, and which of them leads to the aggregator.

Distance-vector routing with split horizon: each gateway says how many peers lie between it and the
aggregator and which is the next one, and whoever goes through me is no way for me. A loop of three or more
counts up to `MOST_HOPS` and is gone.
"""

from collections.abc import Collection
from dataclasses import dataclass

from gateway.election import acting
from hedgerow.core import names
from hedgerow.core.effects import SetTimer
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import NO_ROUTE, GatewayState
from hedgerow.core.outlet import Outlet
from hedgerow.core.versions import check_term

PEERS_TIMER = "peers"
MOST_HOPS = 8
_SILENCE_US = 30_000_000
_MOST_PEERS = 1024
_CLEARLY_LESS_LOAD = 0.25
"""A peer as near as the present one is preferred from this difference on: less would make routes flap."""


@dataclass(frozen=True, slots=True)
class Route:
    """The way to the aggregator: how many peers lie on it, and the next one, "" for an own uplink."""

    hops: int = NO_ROUTE
    via: str = ""

    @property
    def usable(self) -> bool:
        """Whether there is a way to the aggregator."""
        return self.hops < NO_ROUTE

    @property
    def to_island(self) -> bool:
        """Whether the next peer is the acting aggregator of an island, which is all there is."""
        return bool(self.via) and not self.usable

    @property
    def leads(self) -> bool:
        """Whether there is somebody to hand updates to."""
        return self.usable or self.to_island


class Peers:
    """Keeps each peer's last word; only those `named`, if any are, lie on a way of this gateway."""

    def __init__(self, gateway: str, boot: int, named: Collection[str], outlet: Outlet) -> None:
        self.states: dict[str, GatewayState] = {}
        self.connected = True
        self._gateway = gateway
        self._boot = boot
        self._named = frozenset(named)
        self._outlet = outlet
        self._via = ""
        self._doubted: set[str] = set()

    def link(self, *, up: bool) -> None:
        """The link to the broker came or went. A broker that lost its memory tells no last wills.

        So whoever is not heard of within a while after it came is forgotten.
        """
        self.connected = up
        if up and self.states:
            self._doubted = set(self.states)
            self._outlet.do(SetTimer(PEERS_TIMER, _SILENCE_US))

    def forget_silent(self) -> None:
        """The while is over."""
        for name in sorted(self._doubted & self.states.keys()):
            del self.states[name]
            self._outlet.record("peer_forgotten", reason="silent", peer=name)
        self._doubted = set()

    def take(self, peer: str, state: GatewayState) -> bool:
        """Take a gateway's word; False when it is one about this gateway that is not true any more.

        Raises PeerError when it is not the sender's own, or speaks of an island term that cannot be.
        """
        if peer != names.gateway_peer(state.gateway):
            raise PeerError("wrong-source", f"{peer} announced the state of {state.gateway}")
        check_term(state.acting)
        if state.gateway == self._gateway:
            return state.boot == self._boot and state.state == "ready"
        known = self.states.get(state.gateway)
        if state.state == "lost":
            # A last will may come late: it must not bury a gateway that has started again. Nor is it a sign
            # of life, after the link was away: a later start may have come and gone unseen.
            if known is not None and known.boot == state.boot:
                del self.states[state.gateway]
        elif known is None and len(self.states) >= _MOST_PEERS:
            self._outlet.record("peer_ignored", reason="too-many", peer=state.gateway)
        else:
            self.states[state.gateway] = state
            self._doubted.discard(state.gateway)
        return True

    def route(self, *, uplink: bool, acts: bool = False) -> Route:
        """Return the best way now; of equally near peers the present one stays unless it is clearly fuller.

        Without any, the way to the acting aggregator of an island, unless this gateway `acts` itself.
        """
        if uplink:
            self._via = ""
            return Route(0)
        best = self.next_hop()
        present = self._usable().get(self._via)
        if best is None:
            self._via = ""
            island = None if acts else acting(self.known())
            return Route() if island is None else Route(NO_ROUTE, island.gateway)
        if present is not None and not _clearly_better(best, present):
            best = present
        self._via = best.gateway
        return Route(best.hops + 1, best.gateway)

    def next_hop(self, path: Collection[str] = ()) -> GatewayState | None:
        """Return the best peer that is not on `path`: the nearest, then the emptiest, then by name."""
        usable = [state for name, state in self._usable().items() if name not in path]
        return min(usable, key=lambda state: (state.hops, state.load, state.gateway), default=None)

    def known(self) -> list[GatewayState]:
        """Return the last word of every peer that may be on a way; of none while there is no broker."""
        if not self.connected:
            return []
        return [s for s in self.states.values() if not self._named or s.gateway in self._named]

    def _usable(self) -> dict[str, GatewayState]:
        return {
            state.gateway: state
            for state in self.known()
            if state.hops < MOST_HOPS and state.via != self._gateway
        }


def _clearly_better(best: GatewayState, present: GatewayState) -> bool:
    if best.hops != present.hops:
        return best.hops < present.hops
    return best.load < present.load - _CLEARLY_LESS_LOAD
