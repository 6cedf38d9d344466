"""Other gateways' partials on their way: held as they are, passed on when there is a way, never added up.

The aggregator's answer and the receipts of the updates inside go back to the peer that handed them over. A
partial that is lost here, or has no room, is handed over again by the gateway that made it.
"""

import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gateway.bundling import pack, patience_us
from gateway.peers import MOST_HOPS, Peers
from hedgerow.core import names
from hedgerow.core.buffer import Buffer
from hedgerow.core.codec import encode
from hedgerow.core.effects import CancelTimer, Send, SetTimer
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Bundle, Partial, PartialReply, Receipt, Receipts, UpdateId
from hedgerow.core.outlet import Outlet

CARRY_TIMER = "carry"
"""With a slash and a partial's id after it."""

_MOST_PARTIALS = 4096
_MOST_REMEMBERED_PARTIALS = 1 << 14
_MOST_REMEMBERED_UPDATES = 1 << 16

K = TypeVar("K")


class _WaysBack(Generic[K]):
    """Which peer something came from; the oldest is forgotten when there are too many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._peers: dict[K, str] = {}

    def remember(self, key: K, peer: str) -> None:
        self._peers.pop(key, None)
        self._peers[key] = peer
        if len(self._peers) > self._most:
            del self._peers[next(iter(self._peers))]

    def take(self, key: K) -> str:
        """Return the peer, "" when it is not known, and forget it."""
        return self._peers.pop(key, "")


@dataclass(slots=True)
class _Carried:
    """A partial, the gateways it came through, and the peer whose answer is waited for, "" for none."""

    partial: Partial
    path: tuple[str, ...]
    target: str = ""
    tries: int = 0


class Carrier:
    """Holds up to `max_bytes` of partials; the oldest make room for new ones, and are counted."""

    def __init__(
        self,
        gateway: str,
        model: str,
        max_bytes: int,
        packet_bytes: int,
        peers: Peers,
        outlet: Outlet,
        rng: random.Random,
    ) -> None:
        self._gateway = gateway
        self._model = model
        self._packet_bytes = packet_bytes
        self._peers = peers
        self._outlet = outlet
        self._random = rng
        self._held: Buffer[str, _Carried] = Buffer(_MOST_PARTIALS, max_bytes)
        self._origins: _WaysBack[str] = _WaysBack(_MOST_REMEMBERED_PARTIALS)
        self._owners: _WaysBack[UpdateId] = _WaysBack(_MOST_REMEMBERED_UPDATES)

    def __len__(self) -> int:
        """Return how many partials are held."""
        return len(self._held)

    def take(self, peer: str, bundle: Bundle) -> None:
        """Take a peer's bundle. Raises PeerError, with nothing taken, for one that must not be passed on."""
        self._check(peer, bundle)
        self._drop_replaced(bundle)
        for partial in bundle.partials:
            self._origins.remember(partial.id, peer)
            for header in partial.headers:
                self._owners.remember(header.id, peer)
            if partial.id not in self._held:
                self._hold(partial, tuple(bundle.path))

    def _check(self, peer: str, bundle: Bundle) -> None:
        path = bundle.path
        if peer != names.gateway_peer(bundle.gateway) or path[-1] != bundle.gateway:
            raise PeerError("wrong-source", f"{peer} handed over a bundle of {path[-1]}")
        if self._gateway in path or len(set(path)) < len(path):
            raise PeerError("inconsistent", f"a bundle came round in a circle: {path}")
        if len(path) > MOST_HOPS:
            raise PeerError("too-large", f"a bundle came through {len(path)} gateways")
        for partial in bundle.partials:
            # The answer is told by the id: one of another gateway's would be led astray.
            if partial.gateway != path[0] or partial.id.rsplit("-", 2)[0] != path[0]:
                raise PeerError("wrong-source", f"partial {partial.id} from {path[0]}")
            if partial.model != self._model:
                raise PeerError("wrong-model", f"a partial of {partial.model}")

    def _drop_replaced(self, bundle: Bundle) -> None:
        """Drop older partials of the same gateway whose updates are all in the new ones."""
        told = {header.id for partial in bundle.partials for header in partial.headers}
        fresh = {partial.id for partial in bundle.partials}
        for carried in self._held.values():
            old = carried.partial
            if old.gateway != bundle.path[0] or old.id in fresh:
                continue
            if all(header.id in told for header in old.headers):
                self._drop(old.id, "replaced")

    def _hold(self, partial: Partial, path: tuple[str, ...]) -> None:
        size_bytes = len(encode(partial))
        if size_bytes > self._held.max_bytes:
            self._outlet.record("carried_dropped", reason="too-large", gateway=partial.gateway)
            return
        while not self._held.admit(partial.id, _Carried(partial, path), size_bytes):
            self._drop(next(iter(self._held)), "relay-full")
        self._outlet.record("partial_taken_over", gateway=partial.gateway)

    def _drop(self, partial_id: str, reason: str) -> None:
        carried = self._held.evict(partial_id)
        self._outlet.do(CancelTimer(_timer(partial_id)))
        self._outlet.record("carried_dropped", reason=reason, gateway=carried.partial.gateway)

    def pass_on(self, *, uplink: bool) -> None:
        """Pass on everything that no answer is waited for, as far as there is a way."""
        bundles: dict[tuple[str, tuple[str, ...]], list[_Carried]] = defaultdict(list)
        for carried in self._held.values():
            if carried.target:
                continue
            target = names.AGGREGATOR if uplink else self._next_peer(carried.path)
            if target:
                bundles[target, carried.path].append(carried)
        for (target, path), some in bundles.items():
            self._send(target, path, some)

    def _next_peer(self, path: tuple[str, ...]) -> str:
        found = self._peers.next_hop(path) if len(path) < MOST_HOPS else None
        return "" if found is None else names.gateway_peer(found.gateway)

    def _send(self, target: str, path: tuple[str, ...], some: list[_Carried]) -> None:
        partials = [carried.partial for carried in some]
        # The aggregator answers each post by itself.
        posts = target == names.AGGREGATOR
        whole = [[p] for p in partials] if posts else pack(partials, self._packet_bytes)
        for piece in whole:
            onward = [*path, self._gateway]
            bundle = Bundle(gateway=self._gateway, path=onward, partials=piece)
            self._outlet.do(Send(target, bundle))
        self._outlet.record("partial_passed_on", len(partials), peer=target)
        for carried in some:
            carried.target = target
            carried.tries += 1
            # Of a post the link says how it ended, however slow it is; of a peer nobody says anything.
            if not posts:
                wait_us = patience_us(carried.tries - 1, self._random)
                self._outlet.do(SetTimer(_timer(carried.partial.id), wait_us))

    def unanswered(self, partial_id: str) -> None:
        """The wait for an answer is over: the partial may be passed on again."""
        if partial_id in self._held:
            self._held[partial_id].target = ""

    def undelivered(self, bundle: Bundle, least_us: int) -> None:
        """A post failed: try again after a while, `least_us` at least."""
        for partial in bundle.partials:
            if partial.id in self._held:
                wait_us = max(least_us, patience_us(self._held[partial.id].tries, self._random))
                self._outlet.do(SetTimer(_timer(partial.id), wait_us))

    def turn(self, target: str) -> None:
        """Another peer is the next one: what another one has may be passed on at once."""
        for carried in self._held.values():
            if carried.target and carried.target != target:
                self._outlet.do(CancelTimer(_timer(carried.partial.id)))
                carried.target, carried.tries = "", 0

    def take_reply(self, reply: PartialReply) -> bool:
        """Pass an answer back; False when it is none to a partial that came through here."""
        peer = self._origins.take(reply.partial_id)
        carried = reply.partial_id in self._held
        if peer:
            self._outlet.do(Send(peer, reply))
        if carried:
            self._held.drain(reply.partial_id)
            self._outlet.do(CancelTimer(_timer(reply.partial_id)))
        return bool(peer) or carried

    def take_receipts(self, receipts: Iterable[Receipt]) -> list[Receipt]:
        """Pass the receipts of carried updates back; return the others."""
        others: list[Receipt] = []
        by_peer: dict[str, list[Receipt]] = defaultdict(list)
        for receipt in receipts:
            peer = self._owners.take(receipt.id)
            (by_peer[peer] if peer else others).append(receipt)
        for peer, back in by_peer.items():
            self._outlet.record("receipt_passed_back", len(back), peer=peer)
            self._outlet.do(Send(peer, Receipts(receipts=back)))
        return others


def _timer(partial_id: str) -> str:
    return f"{CARRY_TIMER}/{partial_id}"
