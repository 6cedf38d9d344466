"""The table and the picture of the comparison of plans."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from matplotlib.figure import Figure

from bench.plan_choices import CHOICES

Figures = Mapping[str, Any]
Rows = Mapping[str, Mapping[str, Sequence[Figures]]]
"""By model and plan, the figures of each seed."""

_HEAD = (
    "plan",
    "accuracy %",
    "memory kB",
    "of plain %",
    "planned kB",
    "computed",
    "trained",
    "up kB/node",
    "down kB/node",
    "CPU s",
)


def as_markdown(bases: Mapping[str, Figures], rows: Rows) -> str:
    """Return the table of each model, with what budgets are shares of above it."""
    return "\n".join(line for model in rows for line in _model(model, bases[model], rows[model]))


def _model(model: str, base: Figures, plans: Mapping[str, Sequence[Figures]]) -> Iterator[str]:
    some = next(iter(plans.values()))
    seeds = max(len(cells) for cells in plans.values())
    yield f"## {model}"
    yield ""
    yield (
        f"{base['parameters']:,} parameters, batch {base['batch']}; {some[0]['updates']} updates from"
        f" {_spread([100 * cell['first']['accuracy'] for cell in some])} % accuracy; {seeds} seeds, mean +-"
        f" standard deviation. A plain step of all: {base['plain_bytes'] / 1e3:,.1f} kB, one example at a"
        f" time {base['plain_single_bytes'] / 1e3:,.1f} kB."
    )
    yield ""
    yield f"| {' | '.join(_HEAD)} |"
    yield f"|{'---|' * len(_HEAD)}"
    for plan, cells in plans.items():
        yield f"| {' | '.join(_row(plan, cells, base))} |"
    yield ""


def _row(plan: str, cells: Sequence[Figures], base: Figures) -> Iterator[str]:
    def each(key: str, scale: float = 1.0) -> str:
        return _spread([cell[key] * scale for cell in cells])

    yield CHOICES[plan].title
    yield _spread([100 * cell["metrics"]["accuracy"] for cell in cells])
    yield each("peak_bytes", 1e-3)
    yield each("peak_bytes", 100 / base["plain_bytes"])
    yield each("planned_bytes", 1e-3)
    yield "; ".join(dict.fromkeys(cell["execution"] for cell in cells))
    yield each("parameters", 100 / base["parameters"]) + " %"
    yield each("uplink_bytes", 1e-3)
    yield each("downlink_bytes", 1e-3)
    yield each("cpu_s")


def _spread(values: Sequence[float]) -> str:
    """Return mean and deviation, without the latter where there is none."""
    spread = stdev(values) if len(values) > 1 else 0.0
    digits = 0 if mean(values) >= 1000 else 1
    text = f"{mean(values):,.{digits}f}"
    return text if spread < 0.05 else f"{text} +- {spread:,.{digits}f}"


def plot(bases: Mapping[str, Figures], rows: Rows, file: Path) -> None:
    """Draw accuracy over memory for each model, and write the picture."""
    figure = Figure(figsize=(4.2 * max(1, len(rows)), 3.8), layout="constrained")
    for number, (model, plans) in enumerate(rows.items()):
        axes = figure.add_subplot(1, len(rows), number + 1)
        for plan, cells in plans.items():
            share = [100 * cell["peak_bytes"] / bases[model]["plain_bytes"] for cell in cells]
            accuracy = [100 * cell["metrics"]["accuracy"] for cell in cells]
            axes.errorbar(
                mean(share),
                mean(accuracy),
                yerr=stdev(accuracy) if len(accuracy) > 1 else 0.0,
                fmt="o",
                label=CHOICES[plan].title,
            )
        axes.set_title(model)
        axes.set_xlabel("training memory, % of a plain step")
        axes.set_ylabel("accuracy %" if number == 0 else "")
        axes.grid(visible=True, alpha=0.3)
    if rows:
        figure.axes[0].legend(fontsize=7)
    figure.savefig(file, dpi=110)
