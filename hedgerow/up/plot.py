"""The picture file of a run."""

from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hedgerow.up.report import Report

_MEGA = 1e6


def write_plot(report: Report, path: Path) -> None:
    """Write four panels as PNG: the metric over versions and over bytes, staleness, updates per node."""
    mpl.use("Agg")
    figure = Figure(figsize=(11, 8), layout="constrained")
    panels = figure.subplots(2, 2)
    points = report.curve
    values = [point.value for point in points]
    _curve(panels[0][0], report, [float(point.version) for point in points], values, "version")
    # Nodes report now and then, so that several versions may show the same bytes: the last one counts.
    by_bytes = {point.bytes_up / _MEGA: point.value for point in points}
    _curve(panels[0][1], report, list(by_bytes), list(by_bytes.values()), "MB sent by all nodes")
    _staleness(panels[1][0], report)
    _updates(panels[1][1], report)
    figure.savefig(path, dpi=110)


def _curve(axes: Axes, report: Report, x: list[float], values: list[float], label: str) -> None:
    axes.plot(x, values, marker=".", linewidth=1.2)
    if report.target is not None:
        axes.axhline(report.target, color="gray", linestyle="--", linewidth=0.8)
    axes.set_xlabel(label)
    axes.set_ylabel(report.metric)
    axes.grid(alpha=0.3)


def _staleness(axes: Axes, report: Report) -> None:
    histogram = report.staleness_histogram
    axes.bar(list(histogram), list(histogram.values()))
    axes.set_xlabel("staleness, versions")
    axes.set_ylabel("applied updates")


def _updates(axes: Axes, report: Report) -> None:
    nodes = report.account.nodes
    positions = range(len(nodes))
    base = [0] * len(nodes)
    for fate in ("applied", "rejected", "expired", "outbox"):
        heights = [getattr(node, fate) for node in nodes]
        axes.bar(positions, heights, bottom=base, label=fate)
        base = [low + height for low, height in zip(base, heights, strict=True)]
    axes.set_xticks(list(positions), [node.node for node in nodes], rotation=90, fontsize=7)
    axes.set_ylabel("updates issued")
    axes.legend(fontsize=8, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
