"""The parts of a gateway, made and joined."""

import random
from collections.abc import Callable, Mapping

from gateway.announcing import Announcer
from gateway.answers import Answers
from gateway.carrying import Carrier
from gateway.flushing import Flushing
from gateway.forward import Forwarder
from gateway.held import HeldUpdates
from gateway.intake import Intake
from gateway.peers import Peers
from gateway.relay import Relay
from gateway.reporting import Reporter
from gateway.roster import Roster
from gateway.rows import Spooled
from gateway.siteislands import SiteIslands
from gateway.spooling import Spooling
from gateway.supply import Supply
from gateway.uplink import Uplink
from gateway.way import Way
from hedgerow.core.config import GatewayConfig, IslandConfig
from hedgerow.core.outlet import Outlet

_SECOND_US = 1_000_000


class Parts:
    """What a gateway consists of; all of them put their effects into `outlet`."""

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
        spooled: Spooled,
        island: IslandConfig,
    ) -> None:
        outlet = self.outlet = Outlet()
        self.held = HeldUpdates(config.held_updates, config.held_bytes)
        found = self.held.take_up(spooled.updates)
        spool_after_us = round(config.spool_after_s * _SECOND_US)
        self.spooling = Spooling(spool_after_us, self.held, found, outlet)
        self.supply = Supply(model, outlet)
        self.relay = Relay(gateway, model, chunk_bytes, self.supply, outlet)
        self.roster = Roster(gateway, outlet)
        self.answers = Answers(model, outlet)
        self.uplink = Uplink(gateway, outlet, rng)
        self.peers = Peers(gateway, boot, config.peers, outlet)
        self.way = Way(gateway, packet_bytes, outlet, rng)
        self.carrier = Carrier(
            gateway, model, config.relay_bytes, packet_bytes, self.peers, outlet, rng
        )
        self.announcer = Announcer(gateway, boot, outlet)
        self.intake = Intake(self.held, self.relay, outlet, max_held_bytes=config.held_bytes)
        self.forward = Forwarder(
            self.held, self.relay, self.way, outlet, gateway=gateway, boot=boot
        )
        self.islands = SiteIslands(
            gateway,
            island,
            self.held,
            self.relay,
            self.forward,
            outlet,
            rows=spooled.island,
            post_again=self.forward.post_again,
        )
        self.flushing = Flushing(config, self.held, self.roster.leases, self.forward, outlet)

    def reporter(self, gateway: str, boot: int, meter: Callable[[], Mapping[str, int]]) -> Reporter:
        """Return what reports on these parts; `meter` reads the process's counters."""
        return Reporter(
            gateway,
            boot,
            meter,
            self.outlet,
            held=self.held,
            roster=self.roster,
            answers=self.answers,
            carrier=self.carrier,
            spooling=self.spooling,
        )
