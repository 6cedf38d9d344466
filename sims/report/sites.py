"""What each site's nodes had over time, as a table for the terminal: one row per virtual day."""

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich import box
from rich.console import RenderableType
from rich.table import Table

from sims.report import text
from sims.result import CurvePoint, Report, SiteCurve, SitePoint, StrategyResult

_DAY_S = 86_400.0
PROVISIONAL = "*"

P = TypeVar("P", CurvePoint, SitePoint)


def site_tables(reports: Sequence[Report]) -> list[RenderableType]:
    """Return a table for each strategy and seed whose sites were watched."""
    return [
        _table(f"{name}, seed {report.seed}", report.metric, result)
        for report in reports
        for name, result in report.strategies.items()
        if result.sites
    ]


def _table(who: str, metric: str, result: StrategyResult) -> Table:
    title = (
        f"{who}: {metric} of what each site's nodes have ({PROVISIONAL} an island's), the same on their"
        " own examples, and updates in their outboxes"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("day", justify="right")
    table.add_column("cloud", justify="right")
    for curve in result.sites:
        for column in (curve.site, "own", "waiting"):
            table.add_column(column, justify="right")
    for day in range(1, round(result.virtual_s / _DAY_S) + 1):
        table.add_row(*_row(day, metric, result))
    return table


def _row(day: int, metric: str, result: StrategyResult) -> Iterable[str]:
    yield str(day)
    cloud = _at(result.curve, day)
    yield text.NONE if cloud is None else text.metric_text(metric, cloud.value)
    for curve in result.sites:
        yield from _site(curve, day, metric)


def _site(curve: SiteCurve, day: int, metric: str) -> tuple[str, str, str]:
    point = _at(curve.points, day)
    if point is None:
        return text.NONE, text.NONE, text.NONE
    mark = PROVISIONAL if point.provisional else ""
    shown = text.metric_text(metric, point.value)
    return mark + shown, text.metric_text(metric, point.own), str(point.in_outboxes)


def _at(points: Sequence[P], day: int) -> P | None:
    """Return the last point of a day, or before it."""
    before = [point for point in points if point.t_s <= day * _DAY_S]
    return before[-1] if before else None
