"""What is measured while a fleet runs, and what it came to."""

import resource
import time
from collections import Counter
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from msgspec import to_builtins

from hedgerow.core.names import peer_id
from hedgerow.core.versions import is_provisional
from sims.clock import SECOND_US
from sims.fleet import Fleet
from sims.host import NodeHost
from sims.result import CurvePoint, NodeTrack, StrategyResult

_DECILE = 10
_ANSWERS = "partial_answered"
"""Counted by reason, too, but nothing is lost by them."""
_SETTINGS = ("plan", "training", "staleness", "aggregation", "gateway", "node")


class Meter:
    """Keeps the curve of one run; `evaluated` is the fleet's listener."""

    def __init__(self, metric: str, target: float) -> None:
        self.curve: list[CurvePoint] = []
        self.fleet: Fleet | None = None
        self._metric = metric
        self._target = target
        self._began_s = (time.perf_counter(), time.process_time())

    @property
    def reached(self) -> CurvePoint | None:
        """The first point at or above the target, None before."""
        return next((point for point in self.curve if point.value >= self._target), None)

    def evaluated(self, now_us: int, version: int, metrics: Mapping[str, float]) -> None:
        """Take an evaluation of a version as of a virtual time."""
        fleet = self.fleet
        assert fleet is not None
        for node in fleet.nodes:
            node.settle_radio()
        sessions = [node.attachment.session for node in fleet.nodes]
        self.curve.append(
            CurvePoint(
                t_s=now_us / SECOND_US,
                version=version,
                value=float(metrics[self._metric]),
                updates=len(fleet.ledger.ledger),
                uplink_bytes=sum(session.bytes_up for session in sessions),
                downlink_bytes=sum(session.bytes_down for session in sessions),
                energy_j=sum(node.device.power.spent_j for node in fleet.nodes),
            )
        )

    def finish(
        self, node_values: list[float], peak_bytes: int, personal_values: list[float]
    ) -> StrategyResult:
        """Evaluate the newest version and return all figures.

        `node_values` are per node, or empty, `personal_values` the same with its own units.
        """
        fleet = self.fleet
        assert fleet is not None
        for node in fleet.nodes:
            node.finish()
        version = fleet.ledger.version
        self.evaluated(
            fleet.loop.now_us, version, fleet.compute.evaluate(fleet.ledger.params[version])
        )
        last, reached = self.curve[-1], self.reached
        books = _books(fleet)
        wall_s, cpu_s = self._began_s
        lines = fleet.uplinks.lines.values()
        return StrategyResult(
            time_to_target_s=None if reached is None else reached.t_s,
            final_accuracy=last.value,
            best_accuracy=max(point.value for point in self.curve),
            uplink_bytes=last.uplink_bytes,
            downlink_bytes=last.downlink_bytes,
            gateway_uplink_bytes=sum(line.bytes_up for line in lines),
            gateway_downlink_bytes=sum(line.bytes_down for line in lines),
            peak_training_bytes=peak_bytes,
            energy_j=last.energy_j,
            updates_applied=len(fleet.ledger.ledger),
            versions=fleet.ledger.version,
            drops=drops(fleet),
            wall_s=time.perf_counter() - wall_s,
            cpu_s=time.process_time() - cpu_s,
            issued=books["issued"],
            rejected=books["rejected"],
            expired=books["expired"],
            waiting=books["waiting"],
            plan_parameters=trained_parameters(fleet),
            model_parameters=fleet.compute.manifest.size,
            settings=_settings(fleet),
            staleness_histogram=_staleness(fleet),
            worst_decile=_worst_decile(node_values),
            mean_node_value=fmean(node_values) if node_values else None,
            personal_worst_decile=_worst_decile(personal_values),
            mean_personal_value=fmean(personal_values) if personal_values else None,
            curve=self.curve,
            nodes=_tracks(fleet, node_values, personal_values),
            trace_hash=fleet.trace_hash,
            virtual_s=fleet.loop.now_us / SECOND_US,
            peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            phases_cpu_s=dict(fleet.stopwatch.cpu_s),
            violations=fleet.watch.violations,
        )


def trained_parameters(fleet: Fleet) -> int:
    """Return how many parameters the newest version's widest plan trains."""
    units = fleet.compute.manifest.by_name
    return sum(units[name].size for name in fleet.ledger.descriptors[fleet.ledger.version].plan)


def _worst_decile(values: list[float]) -> float | None:
    """Return the mean of the worst tenth, of one value at least."""
    worst = sorted(values)[: max(1, len(values) // _DECILE)]
    return fmean(worst) if worst else None


def drops(fleet: Fleet) -> dict[str, int]:
    """Return what was lost or refused anywhere, by reason."""
    out: Counter[str] = Counter()
    for process in fleet.processes:
        events = process.recorder.events.items()
        out.update({e: n for e, n in events if " " in e and not e.startswith(_ANSWERS)})
    for seen in (*(broker.seen for broker in fleet.brokers), fleet.uplinks.seen):
        out.update({f"network {e}": n for e, n in seen.items() if not e.startswith("answer")})
    return {event: amount for event, amount in sorted(out.items()) if amount}


def _books(fleet: Fleet) -> dict[str, int]:
    disks = [node.disk for node in fleet.nodes]
    ends: Counter[str] = sum((disk.outcomes for disk in disks), Counter())
    lost = {outcome: ends[outcome] for outcome in ("rejected", "expired", "coalesced")}
    issued = len(fleet.watch.issued)
    return {
        "issued": issued,
        **lost,
        "waiting": issued - len(fleet.watch.applied) - sum(lost.values()),
    }


def _settings(fleet: Fleet) -> dict[str, Any]:
    tables: dict[str, Any] = to_builtins(fleet.config)
    return {name: tables[name] for name in _SETTINGS}


def _staleness(fleet: Fleet) -> dict[int, int]:
    ledger = fleet.ledger.ledger.values()
    rows = [row for row in ledger if not is_provisional(row.header.base_version)]
    ages = Counter(row.version - 1 - row.header.base_version for row in rows)
    return dict(sorted(ages.items()))


def _tracks(
    fleet: Fleet, node_values: list[float], personal_values: list[float]
) -> list[NodeTrack]:
    none = [None] * len(fleet.nodes)
    rows = zip(fleet.nodes, node_values or none, personal_values or none, strict=True)
    return [_track(fleet, *row) for row in rows]


def _track(fleet: Fleet, node: NodeHost, value: float | None, personal: float | None) -> NodeTrack:
    name = peer_id(node.process.name)
    return NodeTrack(
        node=name,
        device=node.device.kind,
        applied=fleet.watch.applied_by_node[name],
        trained=[(a / SECOND_US, b / SECOND_US) for a, b in node.trained],
        away=[(a / SECOND_US, b / SECOND_US) for a, b in node.away],
        value=value,
        personal=personal,
    )
