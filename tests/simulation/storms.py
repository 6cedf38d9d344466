"""Random faults for a small fleet, all drawn from its seed: processes, links, brokers, disks and weather."""

import random
from collections import Counter
from collections.abc import Callable, Collection
from typing import Any

from msgspec.structs import replace

from hedgerow.core import names
from hedgerow.core.effects import LinkDown
from sims.clock import SECOND_US
from sims.faults import Faults
from sims.host import GatewayHost, NodeHost
from sims.links import LinkModel
from tests.simulation.fleets import SmallFleet, fair_link

LOSS, REPEAT, REORDER_US, SLOWEST_US = 0.08, 0.08, 300_000, 150_000
SAVE_FAILURES = 0.02
LONGEST_FAULT_US = 15 * SECOND_US
SIEGE_US = 20 * SECOND_US
"""So long one gateway's line to the aggregator is cut, while its nodes go on: its peers have to help."""
RATES = {
    "node": 6,
    "gateway": 3,
    "aggregator": 3,
    "half open": 6,
    "link": 2,
    "line": 3,
    "lines": 1,
    "stream": 2,
    "hold": 2,
    "broker": 1,
    "outage": 1,
    "siege": 2,
    "put back": 2,
}


class Storms:
    """Strikes one fleet; the first three strikes hit one process of each tier.

    `watch` is called every second of a storm. `crashes` counts processes that were alive and killed,
    `struck` all strikes by their kind. Kinds that are `spared` do not happen.
    """

    def __init__(
        self,
        fleet: SmallFleet,
        watch: Callable[[SmallFleet], None],
        *,
        spared: Collection[str] = (),
    ) -> None:
        self.crashes: Counter[str] = Counter()
        self.struck: Counter[str] = Counter()
        self._put_backs: Counter[str] = Counter()
        self._rates = {kind: rate for kind, rate in RATES.items() if kind not in spared}
        self._fleet = fleet
        self._loop = fleet.loop
        self._watch = watch
        self._faults = Faults(fleet)
        self._random = random.Random(f"{fleet.blueprint.seed}:storms")
        self._certain = ["node", "gateway", "aggregator"]
        self._hosts: list[NodeHost | GatewayHost] = [*fleet.nodes, *fleet.gateways]

    def rage(self, seconds: int) -> None:
        """Let faults happen for a while."""
        self._weather(self._foul_link)
        self._fleet.save_failure_rate = SAVE_FAILURES
        end_us = self._loop.now_us + seconds * SECOND_US

        def strike() -> None:
            if self._loop.now_us < end_us:
                self._strike()
                wait_us = self._random.randint(SECOND_US // 2, 3 * SECOND_US)
                self._loop.after_us(wait_us, strike)

        self._loop.after_us(0, strike)
        for _ in range(seconds):
            self._fleet.run(1)
            self._watch(self._fleet)

    def calm(self) -> None:
        """Let the last faults pass; every one of them ends by itself."""
        self._fleet.run(max(LONGEST_FAULT_US, SIEGE_US) / SECOND_US)
        self._weather(fair_link)
        self._fleet.save_failure_rate = 0.0

    def _weather(self, make: Callable[[], LinkModel]) -> None:
        for host in self._hosts:
            host.attachment.session.link = make()
        for gateway in self._fleet.gateways:
            gateway.line.link = make()

    def _foul_link(self) -> LinkModel:
        """Return a link of its own latency, on which messages are lost, repeated and overtaken."""
        link = fair_link(self._random.randint(500, SLOWEST_US))
        link.loss, link.repeat, link.reorder_us = LOSS, REPEAT, REORDER_US
        return link

    def _strike(self) -> None:
        kind = self._random.choices(list(self._rates), list(self._rates.values()))[0]
        if self._certain:
            kind = self._certain.pop()
        self.struck[kind] += 1
        for_us = self._random.randint(100_000, LONGEST_FAULT_US)
        if kind in ("node", "gateway", "aggregator"):
            self._crash(kind, for_us)
        elif kind in ("broker", "outage"):
            broker = self._random.choice(self._fleet.brokers)
            (self._faults.wipe if kind == "broker" else self._faults.partition)(broker, for_us)
        else:
            self._disturb(kind, for_us)

    def _crash(self, kind: str, for_us: int) -> None:
        fleet, faults = self._fleet, self._faults
        node, gateway = self._random.choice(fleet.nodes), self._random.choice(fleet.gateways)
        if kind == "node":
            self._crash_node(node, for_us)
        elif kind == "gateway":
            self.crashes[kind] += gateway.process.alive
            self._random.choice([faults.crash, faults.wipe])(gateway, for_us)
        else:
            self.crashes[kind] += fleet.aggregator.alive
            faults.crash(None, for_us)

    def _disturb(self, kind: str, for_us: int) -> None:
        """Strike a link, a line or a disk."""
        fleet, faults, chance = self._fleet, self._faults, self._random
        gateway, anyone = chance.choice(fleet.gateways), chance.choice(self._hosts)
        match kind:
            case "half open":
                self._half_open(anyone, for_us)
            case "link":
                faults.partition(chance.choice(fleet.nodes), for_us)
            case "line":
                faults.partition(gateway, for_us)
            case "lines":
                faults.partition(None, for_us)
            case "stream":
                fleet.uplinks.break_line(gateway.line)
            case "hold":
                faults.hold(anyone, for_us)
            case "siege":
                faults.partition(gateway, SIEGE_US - for_us)
            case "put back":
                node = chance.choice(fleet.nodes)
                image, life = node.disk.image(), self._put_backs[node.disk.node]
                self._loop.after_us(for_us, lambda: self._put_back(node, image, life))

    def _crash_node(self, node: NodeHost, for_us: int) -> None:
        """A node that starts again may find itself bound to another gateway."""
        self.crashes["node"] += node.process.alive
        if len(self._fleet.brokers) == 1:
            home = self._random.choice(["", "", "gw-1", "gw-2"])
            node.node_config = replace(node.node_config, home=home)
        self._faults.crash(node, for_us)

    def _put_back(self, node: NodeHost, image: dict[str, Any], life: int) -> None:
        """A node starts again from an older copy of its disk, made since the last time this happened."""
        if self._put_backs[node.disk.node] != life:
            return
        self._put_backs[node.disk.node] += 1
        self._faults.crash(node, SECOND_US)
        node.disk.put_back(image)
        self._fleet.watch.put_back(node.disk)

    def _half_open(self, host: NodeHost | GatewayHost, for_us: int) -> None:
        """Break a link; its process notices after a while, and connects again after a longer one."""
        attachment, process = host.attachment, host.process
        session = attachment.session
        if not session.connected:
            return
        session.reachable = False
        attachment.broker.disconnect(session)
        life = process.life

        def notice() -> None:
            if process.life == life and not session.connected:
                process.deliver(names.BROKER, LinkDown())

        self._loop.after_us(for_us // 2, notice)
        self._loop.after_us(for_us, attachment.heal)
