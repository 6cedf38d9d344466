"""The page about a simulation: one file of HTML, with everything in it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from aggregator.web.words import problem
from hedgerow.core.errors import ConfigError
from sims.report import text
from sims.report.table import (
    COST,
    SIZING,
    Column,
    Row,
    broken_promises,
    has_personal,
    learnt,
    tabulate,
)
from sims.result import NodeTrack, Report, StrategyResult

MAX_ROWS = 60
"""Nodes in a timeline."""

TRACK_LIMIT = 400
"""Spans that a `NodeTrack` holds at most."""

_NETWORK = {
    "network lost": "Messages lost on a link; what matters is sent again",
    "network repeated": "Messages that arrived more than once",
    "network sent offline": "Messages sent while the sender had no link",
    "network receiver offline": "Messages to someone who had no link",
    "network post undelivered": "Requests of gateways that did not get through",
    "network aggregator unreachable": "Requests while the aggregator was down or cut off",
}

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    firm=lambda said: re.sub(r"(\d) (?=\S)", "\\1\N{NO-BREAK SPACE}", said),
    span=text.span,
    size=text.size,
    number=text.number,
    percent=text.percent,
)
_ENVIRONMENT.globals.update(plural=text.plural)


@dataclass(frozen=True, slots=True)
class Grid:
    """A table of the page: its columns, with what they mean, and a row per strategy."""

    columns: Sequence[Column]
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Timeline:
    """When the nodes of one strategy trained; `cut` of the `shown` rows are not drawn to their end."""

    name: str
    svg: Markup
    shown: int
    nodes: int
    cut: int


@dataclass(frozen=True, slots=True)
class Drop:
    """Why something was lost or refused, and how often per strategy."""

    reason: str
    why: str
    counts: list[int]


def write_page(reports: Report | Sequence[Report], path: Path) -> None:
    """Write the page of one report, or of several seeds of one scenario.

    Raises:
        ConfigError: there is no report, or they are of different scenarios.
    """
    several = [reports] if isinstance(reports, Report) else list(reports)
    _check(several)
    path.write_text(render_page(several), encoding="utf-8")


def _check(reports: Sequence[Report]) -> None:
    if not reports or not all(report.strategies for report in reports):
        raise ConfigError("reports: one without a strategy, or none at all; run a scenario first")
    kinds = {(r.scenario, r.metric, r.target, r.nodes, r.gateways) for r in reports}
    if len(kinds) > 1:
        told = "; ".join(" ".join(map(str, kind)) for kind in sorted(kinds))
        raise ConfigError(
            f"reports: scenario, metric, target, nodes and gateways differ ({told});"
            " give the seeds of one scenario"
        )


def render_page(reports: Sequence[Report]) -> str:
    """Return the page as HTML; `reports` are seeds of one scenario, each with a strategy."""
    # matplotlib takes a second to load: only those who want a page wait for it.
    from sims.report import plots  # noqa: PLC0415

    there = text.names(reports)
    head = reports[0]
    looks = text.styles(there)
    columns = learnt(head.metric, personal=has_personal(reports))
    return _ENVIRONMENT.get_template("report.html").render(
        head=head,
        reports=reports,
        goal=text.goal_text(head.metric, head.target),
        verdict=text.verdict(reports),
        broken=broken_promises(reports),
        styles=looks,
        plots={name: Markup(svg) for name, svg in plots.draw(reports).items()},  # noqa: S704 - ours
        timelines=[_timeline(head.strategies[name], looks[name]) for name in _watched(head)],
        learnt=Grid(columns, tabulate(reports, columns)),
        cost=Grid(COST, tabulate(reports, COST)),
        sizing=Grid(SIZING, tabulate(reports, SIZING)),
        fates=[(name, fates(text.results(reports, name))) for name in there],
        drops=drops(reports),
        settings={name: settings(text.results(reports, name)[0].settings) for name in there},
        first={name: text.results(reports, name)[0] for name in there},
        phases={name: _phases(text.results(reports, name)[0]) for name in there},
    )


def _watched(report: Report) -> list[str]:
    """Return the strategies whose nodes are shown: the first, the baseline and ours."""
    there = list(report.strategies)
    wanted = dict.fromkeys([there[0], text.FEDAVG, text.OURS])
    return [name for name in wanted if name in there and report.strategies[name].nodes]


def _timeline(result: StrategyResult, style: text.Style) -> Timeline:
    from sims.report import plots  # noqa: PLC0415 - as above

    rows = picked(result.nodes)
    cut = sum(max(len(node.trained), len(node.away)) >= TRACK_LIMIT for node in rows)
    svg = plots.timeline(rows, result.virtual_s, style)
    return Timeline(style.name, Markup(svg), len(rows), len(result.nodes), cut)  # noqa: S704 - ours


def picked(nodes: Sequence[NodeTrack]) -> list[NodeTrack]:
    """Return at most `MAX_ROWS` nodes, evenly from all kinds of devices, grouped by kind."""
    grouped = sorted(nodes, key=lambda node: node.device)
    count = min(len(grouped), MAX_ROWS)
    return [grouped[i * len(grouped) // count] for i in range(count)]


def fates(found: Sequence[StrategyResult]) -> list[tuple[str, int]]:
    """Return what became of the updates, all seeds together; the first is the sum of the others."""
    fields = {
        "issued": "issued",
        "applied": "updates_applied",
        "rejected": "rejected",
        "expired": "expired",
        "coalesced": "coalesced",
        "waiting": "waiting",
    }
    return [(name, sum(getattr(r, field) for r in found)) for name, field in fields.items()]


def drops(reports: Sequence[Report]) -> list[Drop]:
    """Return what was lost or refused, all seeds together, the most frequent reason first."""
    there = text.names(reports)
    reasons = {
        reason for r in reports for result in r.strategies.values() for reason in result.drops
    }
    found = [
        Drop(reason, _why(reason), [_dropped(reports, name, reason) for name in there])
        for reason in sorted(reasons)
    ]
    return sorted((d for d in found if any(d.counts)), key=lambda d: (-sum(d.counts), d.reason))


def _dropped(reports: Sequence[Report], name: str, reason: str) -> int:
    return sum(result.drops.get(reason, 0) for result in text.results(reports, name))


def _why(reason: str) -> str:
    """Return an event with its reason ("update_rejected stale") in words; "" where its name says it all."""
    said = problem(reason.replace(" ", ":", 1))
    if said is None:
        return _NETWORK.get(reason, "")
    return f"{said[0]}: {said[1]}" if said[1] else said[0]


def settings(tables: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested settings as dotted keys and values, in their order."""
    found: list[tuple[str, str]] = []
    for key, value in tables.items():
        if isinstance(value, dict) and value:
            found += settings(value, f"{prefix}{key}.")
        else:
            found.append((f"{prefix}{key}", json.dumps(value, ensure_ascii=False, default=str)))
    return found


def _phases(result: StrategyResult) -> list[tuple[str, float]]:
    return sorted(result.phases_cpu_s.items(), key=lambda phase: (-phase[1], phase[0]))
