"""What the aggregator has seen of the fleet, for people: it decides nothing."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from aggregator.account import Account, account_of
from aggregator.rows import Snapshot
from aggregator.status import CurvePoint, GatewayView, NodeView
from hedgerow.core.messages import FleetReport, Header, NodeState
from hedgerow.core.versions import begins_life, is_provisional

_SECOND_US = 1_000_000
_CURVE_POINTS = 2000
_MAX_NODES = 65536


class RisingSum:
    """Adds up counters whose owner may restart from zero: a fall means a new life, not a correction."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._before: Counter[str] = Counter()

    def take(self, values: Mapping[str, int]) -> None:
        """Take the owner's counters as they stand."""
        for name, value in values.items():
            if value < self._last.get(name, 0):
                self._before[name] += self._last[name]
            self._last[name] = value

    def totals(self) -> dict[str, int]:
        """Return each counter over all lives."""
        return {name: self._before[name] + value for name, value in self._last.items()}


@dataclass(slots=True)
class _Node:
    state: NodeState
    gateway: str
    seen_us: int
    traffic: RisingSum = field(default_factory=RisingSum)


@dataclass(slots=True)
class _Gateway:
    connected: bool = False
    seen_us: int = -1
    traffic: RisingSum = field(default_factory=RisingSum)


class Observer:
    """Keeps the last word of every gateway and node, and the curve of evaluations."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._nodes: dict[str, _Node] = {}
        self._gateways: dict[str, _Gateway] = {}
        self._applied: Counter[str] = Counter()
        self._staleness: dict[str, int] = {}
        self.histogram: Counter[int] = Counter()
        applied_at: Counter[int] = Counter()
        for row in snapshot.ledger:
            self.settled([row.header], row.version - 1)
            applied_at[row.version] += 1
        self.curve: list[CurvePoint] = []
        for version, metrics in sorted(snapshot.metrics.items()):
            applied = sum(n for v, n in applied_at.items() if v <= version)
            self._add_point(CurvePoint(version, dict(metrics), applied, 0, 0.0))

    @property
    def updates_applied(self) -> int:
        """Updates in the ledger."""
        return self._applied.total()

    def account(self) -> Account:
        """Return the conservation law as it stands."""
        return account_of(
            (node.state for node in self._nodes.values()),
            (gateway.traffic.totals() for gateway in self._gateways.values()),
            self._applied,
        )

    def link(self, gateway: str, *, connected: bool) -> None:
        """A gateway's version stream opened or closed."""
        self._gateways.setdefault(gateway, _Gateway()).connected = connected

    def report(self, report: FleetReport, now_us: int) -> None:
        """Take a gateway's report of itself and of the nodes that changed."""
        seen = self._gateways.setdefault(report.gateway, _Gateway())
        seen.seen_us = now_us
        seen.traffic.take(report.counters)
        for state in report.nodes:
            node = self._nodes.get(state.node)
            if node is None:
                if len(self._nodes) >= _MAX_NODES:
                    continue
                node = self._nodes[state.node] = _Node(state, report.gateway, now_us)
            node.state, node.gateway, node.seen_us = state, report.gateway, now_us
            node.traffic.take(state.counters)

    def states(self) -> dict[str, str]:
        """Return the last state of every node that was ever reported."""
        return {name: node.state.state for name, node in self._nodes.items()}

    def settled(self, headers: Iterable[Header], version: int) -> None:
        """Updates were merged into the version after `version`.

        Those of an island's own versions have no age here, nor those of a former life of numbers.
        """
        for header in headers:
            self._applied[header.id.node] += 1
            base = header.base_version
            if is_provisional(base) or begins_life(version, base):
                continue
            staleness = version - base
            self._staleness[header.id.node] = staleness
            self.histogram[staleness] += 1

    def evaluated(self, version: int, metrics: Mapping[str, float], at_s: float) -> None:
        """A version was evaluated."""
        point = CurvePoint(version, dict(metrics), self.updates_applied, self.bytes_up, at_s)
        self._add_point(point)

    def _add_point(self, point: CurvePoint) -> None:
        self.curve.append(point)
        if len(self.curve) > _CURVE_POINTS:
            # The shape of a long run survives if every second point of its first half goes.
            half = _CURVE_POINTS // 2
            self.curve = self.curve[:half:2] + self.curve[half:]

    @property
    def bytes_up(self) -> int:
        """Bytes that nodes have sent, as last reported."""
        return sum(n.traffic.totals().get("mqtt_bytes_up", 0) for n in self._nodes.values())

    def gateways(self, now_us: int) -> list[GatewayView]:
        """Return the gateways by name."""
        homes = Counter(node.gateway for node in self._nodes.values())
        return [
            GatewayView(
                gateway=name,
                connected=seen.connected,
                seen_s=_ago_s(seen.seen_us, now_us),
                nodes=homes[name],
                counters=seen.traffic.totals(),
            )
            for name, seen in sorted(self._gateways.items())
        ]

    def nodes(self, now_us: int) -> list[NodeView]:
        """Return the nodes by name; their counters are sums over restarts where they restart at zero."""
        return [
            NodeView(
                state=node.state,
                gateway=node.gateway,
                seen_s=_ago_s(node.seen_us, now_us),
                applied=self._applied[name],
                staleness=self._staleness.get(name, -1),
                traffic={
                    counter: total
                    for counter, total in node.traffic.totals().items()
                    if counter.startswith("mqtt_")
                },
            )
            for name, node in sorted(self._nodes.items())
        ]


def _ago_s(seen_us: int, now_us: int) -> float:
    return -1.0 if seen_us < 0 else (now_us - seen_us) / _SECOND_US
