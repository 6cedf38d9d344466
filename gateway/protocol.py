"""The gateway: admit, pre-aggregate, forward, relay. PROTOCOL, section Gateway.

It needs nothing durable: what it holds is also in the nodes' outboxes until it is settled.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from gateway.forward import Forwarder
from gateway.held import HeldUpdates
from gateway.intake import Intake
from gateway.leases import Leases
from gateway.pace import Pace
from gateway.relay import Relay
from hedgerow.core import names
from hedgerow.core.config import GatewayConfig
from hedgerow.core.effects import (
    Announce,
    CancelTimer,
    Effect,
    Follow,
    JobResult,
    LinkDown,
    LinkUp,
    Send,
    SetTimer,
    Undelivered,
)
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BlobPart,
    BlobsWanted,
    Chunk,
    Descriptor,
    FleetReport,
    GatewayState,
    NodeState,
    Offer,
    Partial,
    PartialReply,
    Receipts,
    Subscribe,
)
from hedgerow.core.outlet import Outlet

_SECOND_US = 1_000_000
_REPORT_US = 2 * _SECOND_US
_BACKOFF_FIRST_US = _SECOND_US // 2
_BACKOFF_MOST_US = 30 * _SECOND_US
_MAX_NODES = 8192


class GatewayProtocol:
    """One gateway for one model. `boot` names this start of it; `meter` reads its counters."""

    def __init__(
        self,
        gateway: str,
        boot: int,
        config: GatewayConfig,
        *,
        model: str,
        chunk_bytes: int,
        rng: random.Random,
        meter: Callable[[], Mapping[str, int]],
    ) -> None:
        self.gateway = gateway
        self.boot = boot
        self.outlet = Outlet()
        self.held = HeldUpdates(config.held_updates, config.held_bytes)
        self.relay = Relay(gateway, model, chunk_bytes, self.outlet)
        self.leases = Leases()
        self._config = config
        self._model = model
        self._random = rng
        self._meter = meter
        self._intake = Intake(
            self.held, self.relay, self.outlet, model=model, max_held_bytes=config.held_bytes
        )
        self._forward = Forwarder(
            self.held, self.relay, self.outlet, gateway=gateway, model=model, boot=boot
        )
        self._pace = Pace(round(config.flush_s * _SECOND_US))
        self._nodes: dict[str, NodeState] = {}
        self._unreported: set[str] = set()
        self._uplink = False
        self._failures = 0
        self._flush_set = False
        self._holding_off = False
        self._announced_nodes = 0

    @property
    def ready(self) -> bool:
        """Whether nodes can be served: a version is known and the aggregator is reachable."""
        return self._uplink and self.relay.served_version >= 0

    def start(self, now_us: int) -> None:
        """Listen to the nodes and subscribe to versions."""
        self.outlet.do(Follow(names.node_state_channel("+")))
        self._announce()
        self._subscribe()
        self.outlet.do(SetTimer("report", _REPORT_US))

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        """Take a message or a change of a link; raises PeerError for what that peer must not send."""
        if peer == names.AGGREGATOR:
            self._from_aggregator(message)
        elif peer == names.BROKER:
            self._unreported |= self._nodes.keys()
        else:
            self._from_node(peer, message, now_us)
        self._plan_flush()

    def _from_aggregator(self, message: Any) -> None:
        match message:
            case LinkUp():
                self._uplink = True
                self._failures = 0
                self._unreported |= self._nodes.keys()
                self.relay.fetch()
                self._announce()
            case LinkDown():
                self._uplink = False
                self._announce()
                self.outlet.do(SetTimer("subscribe", self._backoff_us()))
            case Descriptor():
                restarted = message.term > self.relay.term
                self.relay.take(message)
                if restarted:
                    self._forward.post_again()
            case BlobPart():
                self.relay.put(message)
            case Receipts():
                self._forward.take_receipts(message.receipts)
            case PartialReply():
                self._failures = 0
                self._forward.take_reply(message)
            case Undelivered(lost, detail, retry_after_us):
                self._undelivered(lost, detail, retry_after_us)
            case _:
                raise PeerError("malformed", f"{type(message).__name__} from the aggregator")

    def _from_node(self, peer: str, message: Any, now_us: int) -> None:
        match message:
            case Chunk():
                update = self._intake.take_chunk(peer, message, now_us)
                if update is not None:
                    self.leases.end(update.id.node)
                    self._pace.saw_update(update.id.node, now_us)
            case Offer():
                self._intake.take_offer(peer, message)
            case BlobsWanted():
                self.relay.serve_again(message.digests)
            case NodeState():
                self._take_node(peer, message, now_us)
            case _:
                raise PeerError("malformed", f"{type(message).__name__} from {peer}")

    def timer_fired(self, name: str, now_us: int) -> None:
        """Flush, report, subscribe again, or end leases that have run out."""
        match name:
            case "flush":
                self._flush_set = self._holding_off = False
                self._forward.flush()
            case "report":
                self._report()
                self._intake.chase(now_us)
                self.outlet.do(SetTimer("report", _REPORT_US))
            case "subscribe":
                self._subscribe()
            case "lease":
                late = self.leases.expire(now_us)
                if late:
                    self.outlet.record("lease_expired", len(late), reason="silent")
                self._set_lease_timer(now_us)
        self._plan_flush()

    def job_done(self, result: JobResult, now_us: int) -> None:
        """Raise RuntimeError: a gateway starts no jobs."""
        raise RuntimeError(f"a gateway starts no jobs, got {result}")

    def effects(self) -> list[Effect]:
        """Return what must be done now, in order, and forget it."""
        return self.outlet.drain()

    def _plan_flush(self) -> None:
        """Flush now when enough is pending or nobody else is expected, else at the timer."""
        pending = self.held.pending_count()
        if pending == 0 or not self._uplink or self._holding_off:
            return
        if pending >= self._config.flush_count or len(self.leases) == 0:
            if self._flush_set:
                self._flush_set = False
                self.outlet.do(CancelTimer("flush"))
            self._forward.flush()
        elif not self._flush_set:
            self._flush_set = True
            newest = self.relay.newest
            deadline_us = newest.deadline_us if newest is not None else 0
            self.outlet.do(SetTimer("flush", self._pace.flush_after_us(deadline_us)))

    def _undelivered(self, lost: Any, detail: str, retry_after_us: int) -> None:
        self.outlet.record("undelivered", reason=type(lost).__name__, detail=detail)
        if isinstance(lost, Partial):
            self._forward.undelivered(lost)
            wait_us = max(retry_after_us, self._backoff_us())
            self._flush_set = self._holding_off = True
            self.outlet.do(SetTimer("flush", wait_us))
        elif isinstance(lost, BlobsWanted):
            self.outlet.do(SetTimer("subscribe", max(retry_after_us, self._backoff_us())))

    def _backoff_us(self) -> int:
        """Full jitter: uniform up to a bound that doubles with each failure in a row."""
        bound = min(_BACKOFF_FIRST_US << min(self._failures, 10), _BACKOFF_MOST_US)
        self._failures += 1
        return self._random.randrange(bound // 10, bound)

    def _subscribe(self) -> None:
        after = max(self.relay.version, 0)
        self.outlet.do(Send(names.AGGREGATOR, Subscribe(gateway=self.gateway, after=after)))

    def _take_node(self, peer: str, state: NodeState, now_us: int) -> None:
        if peer != names.node_peer(state.node):
            raise PeerError("wrong-source", f"{peer} announced the state of {state.node}")
        known = self._nodes.get(state.node)
        # A last will may come late: it must not bury a node that has been born again.
        if state.state == "lost" and known is not None and known.epoch != state.epoch:
            return
        if state.gateway != self.gateway and state.state != "lost":
            self._nodes.pop(state.node, None)
            self.leases.end(state.node)
            return
        if known is None and (state.state == "lost" or len(self._nodes) >= _MAX_NODES):
            return
        self._nodes[state.node] = state
        self._unreported.add(state.node)
        self.leases.take(state, now_us)
        self._set_lease_timer(now_us)

    def _set_lease_timer(self, now_us: int) -> None:
        next_us = self.leases.next_us()
        if next_us is not None:
            self.outlet.do(SetTimer("lease", max(next_us - now_us, 0)))

    def _report(self) -> None:
        if self._uplink:
            nodes = [self._nodes[name] for name in sorted(self._unreported & self._nodes.keys())]
            self._unreported = set()
            report = FleetReport(
                gateway=self.gateway,
                boot=self.boot,
                nodes=nodes,
                counters={**self._meter(), "held": len(self.held.buffer), "leases": len(self.leases)},
            )
            self.outlet.do(Send(names.AGGREGATOR, report))
        if len(self._nodes) != self._announced_nodes:
            self._announce()

    def _announce(self) -> None:
        self._announced_nodes = len(self._nodes)
        state = GatewayState(
            gateway=self.gateway,
            boot=self.boot,
            state="ready",
            nodes=len(self._nodes),
            uplink=self._uplink,
        )
        self.outlet.do(Announce(names.gateway_state_channel(self.gateway), state))
