"""The plans as a table."""

from rich.box import SIMPLE_HEAD
from rich.table import Table

from hedgerow.planning.report import PlanReport, Row
from hedgerow.planning.sizes import in_kib

_CLASS = "memory class"


def plans_table(report: PlanReport) -> Table:
    """Return the best plan of each depth, best first."""
    title = f"plans within {in_kib(report.budget_bytes)}, batch {report.batch_size}"
    rows = [(str(rank), row) for rank, row in enumerate(report.plans, 1)]
    return _table(title, "rank", rows)


def classes_table(report: PlanReport) -> Table:
    """Return the plan of each memory class; each is a part of the wider ones."""
    return _table("plans of the memory classes", _CLASS, list(report.classes.items()))


def verified_table(report: PlanReport) -> Table | None:
    """Return what short trainings of the plans came to; None where there were none."""
    rows = {str(rank): row for rank, row in enumerate(report.plans, 1)} | report.classes
    metrics = _metrics(list(rows.values()))
    if not metrics:
        return None
    table = _narrow("after a short training of each, in the fastest way that fits")
    for name in ("plan", *metrics, "measured"):
        table.add_column(name, justify="left" if name == "plan" else "right", no_wrap=True)
    for name, row in rows.items():
        if row.verified is not None:
            table.add_row(name, *_verified(row, metrics))
    return table


def _narrow(title: str) -> Table:
    # A technician's terminal has 80 columns.
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))


def _table(title: str, first: str, rows: list[tuple[str, Row]]) -> Table:
    table = _narrow(title)
    table.add_column(first, no_wrap=True)
    table.add_column("trained\nfrom", no_wrap=True)
    table.add_column("step")
    for name in ("model\nsays", "planner\nsays", "para-\nmeters", "share", "update", "value"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, row in rows:
        table.add_row(name, *_cells(row))
    return table


def _metrics(rows: list[Row]) -> list[str]:
    """Return the names of the metrics of any row's verification; [""] if all have failed."""
    runs = [row.verified for row in rows if row.verified is not None]
    names = [name for run in runs for name in run.metrics]
    return list(dict.fromkeys(names)) or ([""] if runs else [])


def _cells(row: Row) -> list[str]:
    return [
        row.depth,
        row.execution,
        in_kib(row.model_bytes),
        in_kib(row.oracle_bytes),
        f"{row.params:,}",
        f"{row.share:.1%}",
        in_kib(row.update_bytes),
        f"{row.value:.1%}",
    ]


def _verified(row: Row, metrics: list[str]) -> list[str]:
    run = row.verified
    assert run is not None
    if run.failed:
        return ["failed", *[""] * len(metrics)]
    return [*(f"{run.metrics[name]:.4f}" for name in metrics), in_kib(run.peak_bytes)]
