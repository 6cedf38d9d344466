"""The gateway: admit, pre-aggregate, forward, relay.

It needs nothing durable: what it holds is also in the nodes' outboxes until it is settled.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from gateway.announcing import ANNOUNCE_TIMER
from gateway.carrying import CARRY_TIMER
from gateway.exchange import Exchange
from gateway.flushing import FLUSH_TIMER
from gateway.parts import Parts
from gateway.peers import PEERS_TIMER, Route
from gateway.roster import LEASE_TIMER
from gateway.rows import Spooled
from gateway.spooling import SPOOL_TIMER
from gateway.supply import UNITS_TIMER
from gateway.uplink import SUBSCRIBE_TIMER
from gateway.way import REPLY_TIMER
from hedgerow.core import names
from hedgerow.core.config import GatewayConfig, IslandConfig
from hedgerow.core.effects import (
    Effect,
    Follow,
    JobResult,
    LinkUp,
    SetTimer,
)
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BlobsWanted,
    Chunk,
    GatewayState,
    NodeState,
    Offer,
    ProbeAnswer,
)

_SECOND_US = 1_000_000
_DOUBT_US = 60_000_000
_REPORT_TIMER, _DOUBT_TIMER = "report", "doubt"
_NOTHING_SPOOLED = Spooled()
_NO_ISLANDS = IslandConfig()


class GatewayProtocol:
    """One gateway for one model. `boot` names this start of it; `meter` reads its counters.

    `packet_bytes` bounds what the broker takes in one message; `spooled` is what the disk held.
    """

    def __init__(
        self,
        gateway: str,
        boot: int,
        config: GatewayConfig,
        *,
        model: str,
        chunk_bytes: int,
        packet_bytes: int,
        rng: random.Random,
        meter: Callable[[], Mapping[str, int]],
        spooled: Spooled = _NOTHING_SPOOLED,
        island: IslandConfig = _NO_ISLANDS,
    ) -> None:
        self.gateway = gateway
        self.boot = boot
        self._spooled = spooled
        parts = self._parts = Parts(
            gateway,
            boot,
            config,
            model=model,
            chunk_bytes=chunk_bytes,
            packet_bytes=packet_bytes,
            rng=rng,
            spooled=spooled,
            island=island,
        )
        self._exchange = Exchange(parts)
        self._reporter = parts.reporter(gateway, boot, meter)
        self._report_us = round(config.report_s * _SECOND_US)
        self._timers: dict[str, Callable[[], None]] = {
            FLUSH_TIMER: lambda: parts.flushing.timer_fired(way=parts.way.route.leads),
            SUBSCRIBE_TIMER: lambda: parts.uplink.subscribe(parts.relay.version),
            ANNOUNCE_TIMER: parts.announcer.timer_fired,
            UNITS_TIMER: parts.supply.ask_again,
            SPOOL_TIMER: parts.spooling.timer_fired,
            PEERS_TIMER: parts.peers.forget_silent,
        }

    @property
    def ready(self) -> bool:
        """Whether nodes can be served: a version is known, and a way to the aggregator, or an island."""
        way = self._parts.way.route.leads or self._parts.islands.term > 0
        return way and self._parts.relay.served_version >= 0

    def start(self, now_us: int) -> None:
        """Listen to the nodes and the peers, and subscribe to versions."""
        outlet = self._parts.outlet
        outlet.do(Follow(names.node_state_channel("+")))
        outlet.do(Follow(names.gateway_state_channel("+")))
        self._parts.uplink.subscribe(self._parts.relay.version)
        outlet.do(SetTimer(_REPORT_TIMER, self._report_us))
        outlet.do(SetTimer(_DOUBT_TIMER, _DOUBT_US))
        if self._spooled.damaged:
            outlet.record("spool_damaged", self._spooled.damaged, reason="crc")
        if self._spooled.updates:
            outlet.record("spool_loaded", len(self._parts.held.buffer))
        self._parts.islands.start()
        self._go_on(now_us)

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        """Take a message or a change of a link; raises PeerError for what that peer must not send."""
        kind = peer.partition("/")[0]
        if peer == names.AGGREGATOR:
            self._exchange.from_aggregator(message)
        elif peer == names.BROKER:
            self._parts.peers.link(up=isinstance(message, LinkUp))
            self._parts.roster.report_all()
        elif kind == names.GATEWAYS:
            self._exchange.from_peer(peer, message)
        elif kind == names.BLOBS:
            self._exchange.take_piece(message)
        else:
            self._from_node(peer, message, now_us)
        self._go_on(now_us)

    def timer_fired(self, name: str, now_us: int) -> None:
        """Do what a timer was set for."""
        kind, _, partial_id = name.partition("/")
        if name == _REPORT_TIMER:
            self._report(now_us)
        elif name == _DOUBT_TIMER:
            self._doubt()
        elif name == LEASE_TIMER:
            self._parts.roster.end_leases(now_us)
        elif kind == REPLY_TIMER:
            self._exchange.unanswered(partial_id)
        elif kind == CARRY_TIMER:
            self._exchange.carry_again(partial_id)
        elif name in self._timers:
            self._timers[name]()
        else:
            self._parts.islands.timer_fired(name)
        self._go_on(now_us)

    def job_done(self, result: JobResult, now_us: int) -> None:
        """Take what became of a save. Raises RuntimeError for any other job: a gateway has none."""
        if result.job in self._parts.spooling:
            self._parts.spooling.job_done(result)
        elif not self._parts.islands.job_done(result):
            raise RuntimeError(f"a gateway starts no jobs but saves, got {result}")
        self._go_on(now_us)

    def effects(self) -> list[Effect]:
        """Return what must be done now, in order, and forget it."""
        return self._parts.outlet.drain()

    def _go_on(self, now_us: int) -> None:
        """After every input: find the way, send what is due by it, and say what changed."""
        parts, islands = self._parts, self._parts.islands
        route = parts.peers.route(uplink=parts.uplink.up, acts=islands.term > 0)
        if route != parts.way.route:
            self._exchange.turn(route)
        if route.usable or parts.peers.connected:
            islands.consider(self._state(route), parts.peers.known())
        way = route.leads and not islands.term
        parts.flushing.consider(way=way, deadline_us=self._deadline_us)
        parts.spooling.consider(way=route.usable)
        parts.announcer.say(self._state(route), now_us)

    def _state(self, route: Route) -> GatewayState:
        islands = self._parts.islands
        # Only an election asks for it, and with a way there is none: no announcement for each version.
        served = -1 if route.usable else islands.served
        return self._parts.announcer.state(route, acting=islands.term, served=served)

    def _from_node(self, peer: str, message: Any, now_us: int) -> None:
        match message:
            case Chunk():
                update = self._parts.intake.take_chunk(peer, message, now_us)
                if update is not None:
                    self._parts.roster.leases.end(update.id.node)
                    self._parts.flushing.pace.saw_update(update.id.node, now_us)
            case Offer():
                self._parts.intake.take_offer(peer, message)
            case BlobsWanted():
                self._parts.relay.serve_again(message.digests)
            case NodeState():
                self._parts.roster.take(peer, message, now_us)
                self._parts.islands.saw_version(message.version)
            case ProbeAnswer():
                self._parts.answers.take(peer, message, self._parts.relay.units)
            case _:
                raise PeerError("malformed", f"{type(message).__name__} from {peer}")

    @property
    def _deadline_us(self) -> int:
        newest = self._parts.relay.newest
        return 0 if newest is None else newest.deadline_us

    def _doubt(self) -> None:
        # Without a way to the aggregator no receipt can come, and another post would say nothing new.
        if self._parts.way.route.usable:
            self._parts.forward.doubt()
        self._parts.outlet.do(SetTimer(_DOUBT_TIMER, max(_DOUBT_US, 2 * self._deadline_us)))

    def _report(self, now_us: int) -> None:
        if self._parts.uplink.up:
            self._reporter.report()
        self._parts.announcer.count(len(self._parts.roster), self._parts.held.load)
        self._parts.intake.chase(now_us)
        self._parts.outlet.do(SetTimer(_REPORT_TIMER, self._report_us))
