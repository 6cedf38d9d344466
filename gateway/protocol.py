"""The gateway: admit, pre-aggregate, forward, relay.

It needs nothing durable: what it holds is also in the nodes' outboxes until it is settled.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from gateway.answers import Answers
from gateway.flushing import FLUSH_TIMER, Flushing
from gateway.forward import Forwarder
from gateway.held import HeldUpdates
from gateway.intake import Intake
from gateway.relay import Relay
from gateway.roster import LEASE_TIMER, Roster
from gateway.uplink import SUBSCRIBE_TIMER, Uplink
from hedgerow.core import names
from hedgerow.core.config import GatewayConfig
from hedgerow.core.effects import (
    Announce,
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
    ProbeAnswer,
    Receipts,
)
from hedgerow.core.outlet import Outlet

_SECOND_US = 1_000_000
_DOUBT_US = 60_000_000
_REPORT_TIMER, _DOUBT_TIMER = "report", "doubt"


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
        self._meter = meter
        self._outlet = Outlet()
        self._held = HeldUpdates(config.held_updates, config.held_bytes)
        self._relay = Relay(gateway, model, chunk_bytes, self._outlet)
        self._roster = Roster(gateway, self._outlet)
        self._answers = Answers(model, self._outlet)
        self._uplink = Uplink(gateway, self._outlet, rng)
        self._intake = Intake(
            self._held, self._relay, self._outlet, model=model, max_held_bytes=config.held_bytes
        )
        self._forward = Forwarder(
            self._held, self._relay, self._outlet, gateway=gateway, model=model, boot=boot
        )
        self._flushing = Flushing(
            config, self._held, self._roster.leases, self._forward, self._outlet
        )
        self._report_us = round(config.report_s * _SECOND_US)
        self._announced_nodes = 0

    @property
    def ready(self) -> bool:
        """Whether nodes can be served: a version is known and the aggregator is reachable."""
        return self._uplink.up and self._relay.served_version >= 0

    def start(self, now_us: int) -> None:
        """Listen to the nodes and subscribe to versions."""
        self._outlet.do(Follow(names.node_state_channel("+")))
        self._announce()
        self._uplink.subscribe(self._relay.version)
        self._outlet.do(SetTimer(_REPORT_TIMER, self._report_us))
        self._outlet.do(SetTimer(_DOUBT_TIMER, _DOUBT_US))

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        """Take a message or a change of a link; raises PeerError for what that peer must not send."""
        if peer == names.AGGREGATOR:
            self._from_aggregator(message)
        elif peer == names.BROKER:
            self._roster.report_all()
        else:
            self._from_node(peer, message, now_us)
        self._plan_flush()

    def timer_fired(self, name: str, now_us: int) -> None:
        """Flush, report, subscribe again, end leases that have run out, or doubt old answers."""
        if name == FLUSH_TIMER:
            self._flushing.timer_fired(uplink=self._uplink.up)
        elif name == _REPORT_TIMER:
            self._report()
            self._intake.chase(now_us)
            self._outlet.do(SetTimer(_REPORT_TIMER, self._report_us))
        elif name == SUBSCRIBE_TIMER:
            self._uplink.subscribe(self._relay.version)
        elif name == LEASE_TIMER:
            self._roster.end_leases(now_us)
        elif name == _DOUBT_TIMER:
            self._forward.doubt()
            self._outlet.do(SetTimer(_DOUBT_TIMER, max(_DOUBT_US, 2 * self._deadline_us)))
        self._plan_flush()

    def job_done(self, result: JobResult, now_us: int) -> None:
        """Raise RuntimeError: a gateway starts no jobs."""
        raise RuntimeError(f"a gateway starts no jobs, got {result}")

    def effects(self) -> list[Effect]:
        """Return what must be done now, in order, and forget it."""
        return self._outlet.drain()

    def _from_aggregator(self, message: Any) -> None:
        match message:
            case LinkUp():
                self._uplink.came_up()
                self._roster.report_all()
                self._relay.fetch()
                self._announce()
            case LinkDown():
                self._uplink.went_down()
                self._announce()
            case Descriptor():
                restarted = message.term > self._relay.term
                self._relay.take(message)
                if restarted:
                    self._forward.post_again()
            case BlobPart():
                self._relay.put(message)
            case Receipts():
                self._forward.take_receipts(message.receipts)
            case PartialReply():
                self._uplink.answered()
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
                    self._roster.leases.end(update.id.node)
                    self._flushing.pace.saw_update(update.id.node, now_us)
            case Offer():
                self._intake.take_offer(peer, message)
            case BlobsWanted():
                self._relay.serve_again(message.digests)
            case NodeState():
                self._roster.take(peer, message, now_us)
            case ProbeAnswer():
                self._answers.take(peer, message, self._relay.units)
            case _:
                raise PeerError("malformed", f"{type(message).__name__} from {peer}")

    @property
    def _deadline_us(self) -> int:
        newest = self._relay.newest
        return 0 if newest is None else newest.deadline_us

    def _plan_flush(self) -> None:
        self._flushing.consider(uplink=self._uplink.up, deadline_us=self._deadline_us)

    def _undelivered(self, lost: Any, detail: str, retry_after_us: int) -> None:
        self._outlet.record("undelivered", reason=type(lost).__name__, detail=detail)
        if isinstance(lost, Partial):
            self._forward.undelivered(lost)
            self._flushing.hold_off(max(retry_after_us, self._uplink.backoff_us()))
        elif isinstance(lost, BlobsWanted):
            self._uplink.subscribe_later(retry_after_us)

    def _report(self) -> None:
        if self._uplink.up:
            counters = {"held": len(self._held.buffer), "leases": len(self._roster.leases)}
            report = FleetReport(
                gateway=self.gateway,
                boot=self.boot,
                nodes=self._roster.take_report(),
                counters={**self._meter(), **counters},
                values=self._answers.take_report(),
            )
            self._outlet.do(Send(names.AGGREGATOR, report))
        if len(self._roster) != self._announced_nodes:
            self._announce()

    def _announce(self) -> None:
        self._announced_nodes = len(self._roster)
        state = GatewayState(
            gateway=self.gateway,
            boot=self.boot,
            state="ready",
            nodes=self._announced_nodes,
            uplink=self._uplink.up,
        )
        self._outlet.do(Announce(names.gateway_state_channel(self.gateway), state))
