"""The figures of all strategies side by side, and their table for the terminal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from textwrap import wrap

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from sims.report import text
from sims.report.sites import site_tables
from sims.result import Report, StrategyResult

Value = Callable[[StrategyResult, Report], float | None]
_DAY_S = 86_400.0
_BITS = 8
_TITLE = 8


@dataclass(frozen=True, slots=True)
class Column:
    """One figure. `best` is +1 where the highest is best, -1 for the lowest, 0 where neither is.

    `bounded` tells that a value is only a lower bound.
    """

    title: str
    help: str
    value: Value
    show: Callable[[float], str]
    best: int = -1
    bounded: Callable[[StrategyResult, Report], bool] = lambda _result, _report: False


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure as it is shown; `spread` is the range over the seeds, "" for one seed."""

    text: str
    spread: str = ""
    best: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """One strategy's figures."""

    name: str
    cells: list[Cell]


def learnt(metric: str, *, personal: bool = False) -> list[Column]:
    """Return the columns about what was learnt; `metric` names the values.

    With `personal` one more says what each node's own units make of it.
    """

    def show(value: float) -> str:
        return text.metric_text(metric, value)

    return [
        Column(
            "time to target",
            "Virtual time until the model first reached the target at an evaluation.",
            lambda result, _: result.time_to_target_s,
            text.span,
        ),
        Column(
            "sooner than fedavg",
            "How much less time than fedavg it took to the target; negative is later. With ≥ fedavg had not"
            " reached the target when its run ended, so that it is at least that much.",
            _sooner,
            text.percent,
            best=1,
            bounded=_is_bound,
        ),
        Column(
            f"final {metric}",
            f"The {metric} of the last version, on held-out data.",
            lambda result, _: result.final_accuracy,
            show,
            best=1,
        ),
        Column(
            f"best {metric}",
            f"The highest {metric} of any evaluation.",
            lambda result, _: result.best_accuracy,
            show,
            best=1,
        ),
        Column(
            "worst decile",
            f"Mean {metric} of the worst tenth of the nodes, each on its own examples: fairness.",
            lambda result, _: result.worst_decile,
            show,
            best=1,
        ),
        *[_own_units(metric, show)] * personal,
        Column(
            "updates",
            "Updates that went into the model. More is not better by itself.",
            lambda result, _: result.updates_applied,
            text.number,
            best=0,
        ),
        Column(
            "versions",
            "Merges: how often the model changed.",
            lambda result, _: result.versions,
            text.number,
            best=0,
        ),
        Column(
            "mean staleness",
            "Versions that were made between the start of a training and its use, on average.",
            lambda result, _: mean_staleness(result),
            lambda value: f"{value:.1f}",
        ),
    ]


def _own_units(metric: str, show: Callable[[float], str]) -> Column:
    return Column(
        "own units",
        f"Mean {metric} over the nodes, each on its own examples, with the units it keeps to itself.",
        lambda result, _: result.mean_personal_value,
        show,
        best=1,
    )


COST = [
    Column(
        "uplink",
        "Bytes all nodes sent to their brokers over the whole run, envelopes included.",
        lambda result, _: result.uplink_bytes,
        text.size,
    ),
    Column(
        "downlink",
        "Bytes all nodes received over the whole run, envelopes included.",
        lambda result, _: result.downlink_bytes,
        text.size,
    ),
    Column(
        "bytes to target",
        "Up and down between nodes and brokers until the target was reached.",
        lambda result, _: text.bytes_to_target(result),
        text.size,
    ),
    Column(
        "training memory",
        "Peak memory that one training needs on a node.",
        lambda result, _: result.peak_training_bytes,
        text.size,
    ),
    Column(
        "energy",
        "What all nodes together spent on training and radio, without idling: modelled, not measured.",
        lambda result, _: result.energy_j,
        text.energy,
    ),
    Column(
        "CPU seconds",
        "What simulating it cost on the machine that ran it.",
        lambda result, _: result.cpu_s,
        text.number,
    ),
]

SIZING = [
    Column(
        "node up",
        "Bytes one node sends per virtual day, on average: its data plan.",
        lambda result, report: _per_node_day(result.uplink_bytes, result, report),
        text.size,
    ),
    Column(
        "node down",
        "Bytes one node receives per virtual day, on average.",
        lambda result, report: _per_node_day(result.downlink_bytes, result, report),
        text.size,
    ),
    Column(
        "node energy",
        "What training and radio cost one node per virtual day, on average; add its idling for a battery.",
        lambda result, report: _per_node_day(result.energy_j, result, report),
        text.energy,
    ),
    Column(
        "node updates",
        "Updates of one node that were used per virtual day, on average.",
        lambda result, report: _per_node_day(result.updates_applied, result, report),
        text.number,
        best=0,
    ),
    Column(
        "gateway up",
        "Mean rate from one gateway to the aggregator.",
        lambda result, report: _gateway_rate(result.gateway_uplink_bytes, result, report),
        text.rate,
    ),
    Column(
        "gateway down",
        "Mean rate from the aggregator to one gateway.",
        lambda result, report: _gateway_rate(result.gateway_downlink_bytes, result, report),
        text.rate,
    ),
]


def has_personal(reports: Sequence[Report]) -> bool:
    """Whether nodes kept units to themselves under any strategy."""
    results = (result for report in reports for result in report.strategies.values())
    return any(result.mean_personal_value is not None for result in results)


def mean_staleness(result: StrategyResult) -> float | None:
    """Return the mean staleness of the applied updates, in versions; None without any."""
    histogram = result.staleness_histogram
    count = sum(histogram.values())
    return sum(age * n for age, n in histogram.items()) / count if count else None


def _sooner(result: StrategyResult, report: Report) -> float | None:
    base = report.strategies.get(text.FEDAVG)
    if base is None or base is result or result.time_to_target_s is None:
        return None
    base_s = base.virtual_s if base.time_to_target_s is None else base.time_to_target_s
    less = 1 - result.time_to_target_s / base_s if base_s else None
    # A baseline that was given less time than this one took says nothing.
    return None if less is not None and less < 0 and base.time_to_target_s is None else less


def _is_bound(_result: StrategyResult, report: Report) -> bool:
    base = report.strategies.get(text.FEDAVG)
    return base is not None and base.time_to_target_s is None


def _per_node_day(total: float, result: StrategyResult, report: Report) -> float | None:
    days = result.virtual_s / _DAY_S
    return total / report.nodes / days if report.nodes and days else None


def _gateway_rate(total: float, result: StrategyResult, report: Report) -> float | None:
    busy_s = result.virtual_s * report.gateways
    return _BITS * total / busy_s if busy_s else None


@dataclass(frozen=True, slots=True)
class _Figure:
    """One figure of one strategy over the seeds; `missing` counts the seeds without it."""

    values: list[float]
    missing: int
    bounded: bool

    @property
    def mean(self) -> float:
        return fmean(self.values)


def tabulate(reports: Sequence[Report], columns: Sequence[Column]) -> list[Row]:
    """Return one row per strategy; of several seeds the mean of those that have the figure."""
    there = text.names(reports)
    by_column = [_cells([_figure(reports, name, c) for name in there], c) for c in columns]
    return [Row(name, [cells[i] for cells in by_column]) for i, name in enumerate(there)]


def _figure(reports: Sequence[Report], name: str, column: Column) -> _Figure:
    having = [(r.strategies[name], r) for r in reports if name in r.strategies]
    found = [column.value(result, report) for result, report in having]
    values = [value for value in found if value is not None and math.isfinite(value)]
    bounded = bool(values) and any(column.bounded(*pair) for pair in having)
    return _Figure(values, len(having) - len(values), bounded)


def _cells(figures: list[_Figure], column: Column) -> list[Cell]:
    shown = [_shown(figure, column) for figure in figures]
    # A figure that some seeds lack is the mean of the lucky ones: it wins only where all lack some.
    ranks = [(f.missing, -column.best * f.mean, i) for i, f in enumerate(figures) if f.values]
    first = min(ranks)[2] if column.best and len(ranks) > 1 else None
    return [
        Cell(
            said,
            _spread(figure, column),
            best=first is not None
            and (figure.missing, said) == (figures[first].missing, shown[first]),
        )
        for figure, said in zip(figures, shown, strict=True)
    ]


def _shown(figure: _Figure, column: Column) -> str:
    if not figure.values:
        return text.NONE
    return ("≥ " if figure.bounded else "") + column.show(figure.mean)


def _spread(figure: _Figure, column: Column) -> str:
    seeds = len(figure.values) + figure.missing
    if seeds <= 1 or not figure.values:
        return ""
    low, high = column.show(min(figure.values)), column.show(max(figure.values))
    within = low if low == high else f"{low} to {high}"
    return f"{within}, {len(figure.values)} of {seeds}" if figure.missing else within


def as_table(reports: Report | Sequence[Report]) -> RenderableType:
    """Return what came out for the terminal, at least 100 columns wide: one row per strategy.

    It is two tables, what was learnt and what it cost, because one would be too wide. The best figure of a
    column is bold, where there is a best. Of several seeds of one scenario it shows the means.
    """
    several = [reports] if isinstance(reports, Report) else list(reports)
    head = several[0]
    goal = text.goal_text(head.metric, head.target)
    seeds = ", ".join(str(report.seed) for report in several)
    title = (
        f"{head.scenario}: {text.plural(head.nodes, 'node')},"
        f" {text.plural(head.gateways, 'gateway')}, target {head.metric} {goal}, seed {seeds}"
    )
    return Group(
        Text(title, style="bold"),
        _rich(several, learnt(head.metric, personal=has_personal(several))),
        _rich(several, COST),
        *site_tables(several),
        Text(text.verdict(several)),
        _promises(several),
    )


def _rich(reports: Sequence[Report], columns: Sequence[Column]) -> Table:
    rows = tabulate(reports, columns)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1), pad_edge=False)
    table.add_column("strategy", vertical="bottom", overflow="fold")
    for index, column in enumerate(columns):
        widest = max((len(row.cells[index].text) for row in rows), default=0)
        # Left to rich, figures would be cut before titles are wrapped.
        title = "\n".join(wrap(column.title, max(widest, _TITLE), break_long_words=False))
        table.add_column(title, justify="right", vertical="bottom", no_wrap=True)
    for row in rows:
        cells = [Text(cell.text, style="bold" if cell.best else "") for cell in row.cells]
        table.add_row(Text(row.name), *cells)
    return table


def broken_promises(reports: Sequence[Report]) -> list[tuple[str, str]]:
    """Return who broke which promise: strategy (and its seed where there are several), and what."""
    return [
        (f"{name}, seed {report.seed}" if len(reports) > 1 else name, violation)
        for report in reports
        for name, result in report.strategies.items()
        for violation in result.violations
    ]


def _promises(reports: Sequence[Report]) -> Text:
    broken = broken_promises(reports)
    if not broken:
        return Text("all promises held", style="green")
    lines = "".join(f"\n  {who}: {what}" for who, what in broken)
    return Text(f"{text.plural(len(broken), 'promise')} BROKEN:{lines}", style="bold red")
