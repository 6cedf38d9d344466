"""What happens to a fleet: processes killed, links cut, messages held back, disks lost."""

import random
import re
from collections.abc import Callable, Sequence
from typing import Any

from hedgerow.core.errors import ConfigError
from sims.broker import Broker
from sims.clock import SECOND_US
from sims.draws import draw
from sims.fleet import Fleet
from sims.host import Attachment, GatewayHost, NodeHost
from sims.scenario import FaultTable
from sims.traces import Traces

Target = NodeHost | GatewayHost | Broker | None
"""None is the aggregator."""

_TARGET = re.compile(
    r"(?:random:(?P<any>node|gw|broker)|(?P<kind>node|gw|broker)-(?P<number>\d+))\Z"
)
_WIPEABLE = ("gw", "broker")


class Faults:
    """Strikes one fleet; each method begins a fault that ends by itself after `for_us`, 0 meaning never."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._loop = fleet.loop

    def crash(self, target: Target, for_us: int) -> None:
        """Kill a process, and start it again later."""
        if isinstance(target, NodeHost):
            target.struck = True
            target.refresh()
            self._after(for_us, lambda: self._stand_up(target))
        elif isinstance(target, Broker):
            self.wipe(target, for_us)
        else:
            process = self._fleet.aggregator if target is None else target.process
            process.kill()
            self._after(for_us, process.start)

    def _stand_up(self, node: NodeHost) -> None:
        node.struck = False
        node.refresh()

    def partition(self, target: Target, for_us: int) -> None:
        """Cut a node's link, a gateway's line to the aggregator, all lines, or all links of a broker."""
        if isinstance(target, NodeHost):
            target.attachment.cut()
            self._after(for_us, target.attachment.heal)
        elif isinstance(target, Broker):
            target.alive = False
            self._break_sessions(target, for_us)
        else:
            lines = [g.line for g in self._fleet.gateways if target in (None, g)]
            for line in lines:
                line.cut = True
                self._fleet.uplinks.break_line(line)
                self._after(for_us, lambda line=line: setattr(line, "cut", False))  # type: ignore[misc]

    def hold(self, target: Target, for_us: int) -> None:
        """Keep back what is sent over a broker, by one or by all, then let it arrive all at once.

        The aggregator sends nothing over brokers: as the target it stands for all gateways.
        """
        if isinstance(target, Broker):
            held = self._there(target)
        else:
            hosts = self._fleet.gateways if target is None else [target]
            held = [host.attachment for host in hosts]
        for attachment in held:
            attachment.hold()
            self._after(for_us, attachment.release)

    def wipe(self, target: Target, for_us: int) -> None:
        """Kill a broker and its retained messages; or a gateway, and delete its disk."""
        if isinstance(target, Broker):
            target.alive = False
            self._break_sessions(target, for_us)
            target.wipe()
        else:
            if isinstance(target, GatewayHost):
                target.disk.wipe()
            self.crash(target, for_us)

    def _break_sessions(self, broker: Broker, for_us: int) -> None:
        broken = self._there(broker)
        for attachment in broken:
            attachment.cut()

        def heal() -> None:
            broker.alive = True
            for attachment in broken:
                attachment.heal()
            for attachment in self._there(broker):
                # Who came meanwhile could not connect either.
                attachment.connect_soon()

        self._after(for_us, heal)

    def _there(self, broker: Broker) -> list[Attachment]:
        fleet = self._fleet
        everybody = [h.attachment for h in fleet.gateways] + [h.attachment for h in fleet.nodes]
        return [attachment for attachment in everybody if attachment.broker is broker]

    def _after(self, for_us: int, call: Callable[[], Any]) -> None:
        if for_us > 0:
            self._loop.after_us(for_us, call)


def schedule(fleet: Fleet, tables: Sequence[FaultTable], traces: Traces, seed: int) -> None:
    """Plan a scenario's faults; raises ConfigError for a target that the fleet does not have."""
    for number, table in enumerate(tables):
        _Plan(fleet, table, traces, random.Random(f"{seed}:fault:{number}"), number)


class _Plan:
    """One entry of [[faults]]: once at `at_s`, or again and again."""

    def __init__(
        self, fleet: Fleet, table: FaultTable, traces: Traces, rng: random.Random, number: int
    ) -> None:
        self._fleet = fleet
        self._table = table
        self._traces = traces
        self._random = rng
        self._faults = Faults(fleet)
        self._key = f"faults[{number}].target"
        self._target()
        fleet.loop.at_us(round(table.at_s * SECOND_US), self._strike)

    def _strike(self) -> None:
        table, loop = self._table, self._fleet.loop
        if table.until_s and loop.now_us > table.until_s * SECOND_US:
            return
        for_us = round(draw(table.for_s, self._random, self._traces) * SECOND_US)
        getattr(self._faults, table.what)(self._target(), for_us)
        if table.every_s > 0:
            wait_s = self._random.expovariate(1 / table.every_s)
            loop.after_us(round(wait_s * SECOND_US) + 1, self._strike)

    def _target(self) -> Target:
        """Return whom the fault strikes; a random one is drawn anew each time."""
        name = self._table.target
        match = _TARGET.fullmatch(name)
        if match is None and name != "aggregator":
            raise ConfigError(
                f"{self._key}: {name!r} must be aggregator, node-N, gw-N, broker-N,"
                " random:node, random:gw or random:broker"
            )
        kind = (match["any"] or match["kind"]) if match else name
        if self._table.what == "wipe" and kind not in _WIPEABLE:
            raise ConfigError(
                f"{self._key}: {name!r} cannot be wiped, only gateways and brokers can;"
                " use what = 'crash'"
            )
        if match is None:
            return None
        fleet = self._fleet
        tiers: dict[str, Sequence[Any]]
        tiers = {"node": fleet.nodes, "gw": fleet.gateways, "broker": fleet.brokers}
        if match["any"]:
            return self._random.choice(tiers[kind])  # type: ignore[no-any-return]
        return self._numbered(kind, int(match["number"]), tiers[kind])  # type: ignore[no-any-return]

    def _numbered(self, kind: str, number: int, tier: Sequence[Any]) -> Any:
        if not 1 <= number <= len(tier):
            raise ConfigError(
                f"{self._key}: {self._table.target!r} does not exist; the fleet has"
                f" {kind}-1 to {kind}-{len(tier)}"
            )
        return tier[number - 1]
