"""The picture of a soak: memory and open files of every process over time, by role."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_COLOURS = {
    "node": "tab:green",
    "gateway": "tab:orange",
    "aggregator": "tab:blue",
    "broker": "gray",
}
_COLUMNS = (
    (1, 1e6, "RSS, MB"),
    (2, 1.0, "open files"),
    (3, 1.0, "CPU, s"),
    (4, 1e6, "written, MB"),
)


def draw(lives: Iterable[Any], path: Path) -> None:
    """Write four panels as PNG; each line is one life of a process, a `Life`."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for axes, (column, unit, label) in zip(panels, _COLUMNS, strict=True):
        for life in lives:
            minutes = [row[0] / 60 for row in life.rows]
            values = [row[column] / unit for row in life.rows]
            axes.plot(minutes, values, color=_COLOURS[life.role], linewidth=0.6, alpha=0.7)
        axes.set_xlabel("minutes")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
    handles = [
        panels[0].plot([], [], color=colour, label=role)[0] for role, colour in _COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    figure.savefig(path, dpi=110)
