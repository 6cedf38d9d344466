"""What a run came to: figures as JSON, and as a table for people."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aggregator.status import Status
from hedgerow.up.law import Account
from hedgerow.up.picture import in_bytes
from hedgerow.up.poll import GATEWAY_DOWN, GATEWAY_UP, NODE_DOWN, NODE_UP, Point, Traffic

FLOAT_BYTES = 4
_ROWS = 40


@dataclass(frozen=True)
class Tier:
    """Bytes between two tiers beside those of FedAvg with the same number of updates."""

    up_bytes: int
    down_bytes: int
    fedavg_up_bytes: int
    fedavg_down_bytes: int


@dataclass(frozen=True)
class Costs:
    """What the run cost this machine, all sessions together; memory is this session's peak."""

    wall_s: float
    cpu_s: float
    peak_rss_bytes: int
    peak_rss_by_process: Mapping[str, int]


@dataclass(frozen=True)
class Report:
    """Everything that is told at the end. `training_memory` is empty where it was not measured."""

    done: str
    broker: str
    metric: str
    target: float | None
    before: float | None
    after: float | None
    best: float | None
    version: int
    updates_applied: int
    plan_parameters: int
    model_parameters: int
    staleness_histogram: Mapping[int, int]
    account: Account
    nodes_to_gateways: Tier
    gateways_to_aggregator: Tier
    training_memory: Mapping[str, int]
    restarts: Mapping[str, int]
    costs: Costs
    curve: list[Point]

    @property
    def target_met(self) -> bool:
        """Whether the target was reached; without one, whether training came to its limit."""
        return self.done == "target" if self.target is not None else bool(self.done)

    @property
    def law_holds(self) -> bool:
        """Whether every update is accounted for."""
        return not self.account.problems


def make_report(
    status: Status,
    account: Account,
    traffic: Traffic,
    curve: list[Point],
    *,
    broker: str,
    training_memory: Mapping[str, int],
    restarts: Mapping[str, int],
    costs: Costs,
) -> Report:
    """Put the figures together.

    FedAvg's bytes are computed, not measured: each applied update would carry the full model as float32 to
    the aggregator, after the full model came down, and gateways would pass both on.
    """
    values = _values(status)
    applied = sum(node.applied for node in account.nodes)
    full = applied * status.model_parameters * FLOAT_BYTES
    return Report(
        done=status.done,
        broker=broker,
        metric=status.metric,
        target=status.target,
        before=values[0] if values else None,
        after=values[-1] if values else None,
        best=max(values, default=None),
        version=status.version,
        updates_applied=applied,
        plan_parameters=status.plan_parameters,
        model_parameters=status.model_parameters,
        staleness_histogram=dict(sorted(status.staleness_histogram.items())),
        account=account,
        nodes_to_gateways=Tier(traffic.total(NODE_UP), traffic.total(NODE_DOWN), full, full),
        gateways_to_aggregator=Tier(
            traffic.total(GATEWAY_UP), traffic.total(GATEWAY_DOWN), full, full
        ),
        training_memory=training_memory,
        restarts=restarts,
        costs=costs,
        curve=curve,
    )


def as_json(report: Report) -> str:
    """Return the report as JSON text."""
    tables: dict[str, Any] = asdict(report)
    tables["target_met"], tables["law_holds"] = report.target_met, report.law_holds
    return json.dumps(tables, indent=2) + "\n"


def as_table(report: Report) -> RenderableType:
    """Return the report for people."""
    parts: list[RenderableType] = [_summary(report), _updates(report), _traffic(report)]
    histogram = "  ".join(f"{age}: {n}" for age, n in report.staleness_histogram.items())
    parts.append(Text(f"staleness of applied updates  {histogram or '-'}"))
    if report.account.problems:
        lines = "\n".join(f"  {problem}" for problem in report.account.problems)
        parts.append(Text(f"the conservation law is BROKEN:\n{lines}", style="bold red"))
    else:
        parts.append(
            Text("the conservation law holds: every update is accounted for", style="green")
        )
    return Group(*parts)


def _values(status: Status) -> list[float]:
    """Return the metric of every evaluated version, oldest first."""
    points = sorted(status.curve, key=lambda point: point.version)
    return [p.metrics[status.metric] for p in points if status.metric in p.metrics]


def _summary(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    goal = "" if report.target is None else f", target {report.target:g}"
    verdict = "" if report.target is None else f" {_verdict(report)}"
    table.add_row(
        report.metric, f"{_number(report.before)} -> {_number(report.after)}{goal}{verdict}"
    )
    table.add_row("versions", f"{report.version}, from {report.updates_applied} updates")
    share = report.plan_parameters / max(report.model_parameters, 1)
    table.add_row(
        "trained",
        f"{report.plan_parameters:,} of {report.model_parameters:,} parameters ({share:.1%})",
    )
    memory = report.training_memory
    if memory:
        part, full = memory["plan"], memory["full"]
        table.add_row(
            "training memory",
            f"{in_bytes(part)} peak against {in_bytes(full)} for the whole model ({_percent(part, full)})",
        )
    costs = report.costs
    table.add_row("time", f"{costs.wall_s:.1f} s, {costs.cpu_s:.1f} CPU-seconds")
    table.add_row("memory", f"{in_bytes(costs.peak_rss_bytes)} peak of all processes together")
    table.add_row("broker", report.broker)
    restarts = ", ".join(f"{name} {count}x" for name, count in sorted(report.restarts.items()))
    table.add_row("restarts", restarts or "none")
    return table


def _verdict(report: Report) -> str:
    if report.target_met:
        return "reached"
    return f"MISSED ({report.done})" if report.done else "not reached yet"


def _updates(report: Report) -> Table:
    columns = ("node", "issued", "applied", "rejected", "expired", "coalesced", "in outbox")
    table = Table(*columns, title="updates", title_justify="left")
    rows = [
        (n.node, n.issued, n.applied, n.rejected, n.expired, n.coalesced, n.outbox)
        for n in report.account.nodes
    ]
    for row in rows[:_ROWS]:
        table.add_row(*(str(cell) for cell in row))
    if len(rows) > _ROWS:
        table.add_row(f"and {len(rows) - _ROWS} more")
    table.add_section()
    table.add_row("all", *(str(total) for total in _totals(row[1:] for row in rows)))
    return table


def _totals(rows: Iterable[tuple[int, ...]]) -> list[int]:
    return [sum(column) for column in zip(*rows, strict=True)]


def _traffic(report: Report) -> Table:
    table = Table(
        "", "up", "FedAvg up", "", "down", "FedAvg down", "", title="bytes", title_justify="left"
    )
    tiers = {
        "nodes - gateways": report.nodes_to_gateways,
        "gateways - aggregator": report.gateways_to_aggregator,
    }
    for name, tier in tiers.items():
        table.add_row(
            name,
            in_bytes(tier.up_bytes),
            in_bytes(tier.fedavg_up_bytes),
            _percent(tier.up_bytes, tier.fedavg_up_bytes),
            in_bytes(tier.down_bytes),
            in_bytes(tier.fedavg_down_bytes),
            _percent(tier.down_bytes, tier.fedavg_down_bytes),
        )
    if report.updates_applied:
        per_update = report.nodes_to_gateways.up_bytes / report.updates_applied
        full = report.model_parameters * FLOAT_BYTES
        table.add_row(
            "per update", in_bytes(per_update), in_bytes(full), _percent(per_update, full)
        )
    return table


def _percent(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
