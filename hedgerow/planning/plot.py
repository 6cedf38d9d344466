"""The network as a picture file: what is trained, what it is worth, and where memory goes."""

from collections.abc import Collection
from math import log10
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hedgerow.planning.report import PlanReport

_TRAINED, _PERSONAL, _FROZEN = "#2a9d5c", "#a05fb5", "#d5d8dc"
_ROW_INCHES, _MARGIN_INCHES = 0.3, 1.6
_KIB = 1024


def write_plot(report: PlanReport, trained: Collection[str], path: Path) -> None:
    """Write two panels, one row per stage: its units by size, and its activations. PNG or SVG by the name."""
    mpl.use("Agg")
    height = _MARGIN_INCHES + _ROW_INCHES * len(report.stages)
    figure = Figure(figsize=(11, height), layout="constrained")
    units, activations = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    _draw_units(units, report, frozenset(trained))
    _draw_activations(activations, report, frozenset(trained))
    figure.suptitle(_title(report), fontsize=10)
    figure.savefig(path, dpi=110)


def _title(report: PlanReport) -> str:
    best = report.plans[0]
    return (
        f"{best.share:.1%} of the parameters in {best.oracle_bytes / _KIB:.0f} KiB,"
        f" {best.execution}; training everything: {report.full_bytes / _KIB:.0f} KiB"
    )


def _draw_units(axes: Axes, report: PlanReport, chosen: frozenset[str]) -> None:
    """Draw each unit as a box as wide as the logarithm of its size."""
    for row, stage in enumerate(report.stages):
        left = 0.0
        for name, size in stage.units:
            width = log10(size + 1)
            color = _color(name, chosen, report.personal)
            axes.barh(row, width, left=left, height=0.7, color=color, edgecolor="white")
            left += width
    axes.set_yticks(range(len(report.stages)), [stage.name for stage in report.stages], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("units, by the logarithm of their sizes")
    kinds = [("trained", _TRAINED), ("frozen", _FROZEN)]
    if report.personal:
        kinds.append(("personal", _PERSONAL))
    for label, color in kinds:
        axes.barh(0, 0, color=color, label=label)
    axes.legend(fontsize=8, ncols=len(kinds), loc="lower right", bbox_to_anchor=(1.0, 1.0))


def _color(name: str, chosen: frozenset[str], personal: Collection[str]) -> str:
    if name in chosen:
        return _TRAINED
    return _PERSONAL if name in personal else _FROZEN


def _draw_activations(axes: Axes, report: PlanReport, chosen: frozenset[str]) -> None:
    """Draw what each stage's outputs take for one example; those of frozen stages are not kept."""
    kept = False
    for row, stage in enumerate(report.stages):
        kept = kept or any(name in chosen or name in report.personal for name, _ in stage.units)
        color = _TRAINED if kept else _FROZEN
        axes.barh(row, stage.activation_bytes / _KIB, height=0.7, color=color)
    axes.set_xlabel("activations per example, KiB")
    axes.grid(axis="x", alpha=0.3)
