"""`python -m bench.plans`: plans compared on four models by accuracy, training memory and bytes.

Every cell (model, plan, seed) is a simulated fleet of the deployed code that starts from the same warm start
and ends after the same number of updates. Cells are kept in the folder, so an interrupted run goes on.
Memory shares are of a usual training step of the whole model: one gradient of a whole batch.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.children import output_of
from bench.measure import BenchError, machine
from bench.plan_choices import CHOICES
from bench.plan_table import as_markdown, plot

UPDATES: Mapping[str, int] = {
    "mlp_digits": 300,
    "cnn1d_watch": 250,
    "cnn_fashion": 300,
    "mobilenet_cifar": 300,
}
"""The models, and after how many updates their fleets end."""
QUICK_UPDATES = 20
_BOUND_S = 3600.0
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Cell:
    """One child process's work; `plan` "basis" is the measurement that budgets are shares of."""

    model: str
    plan: str
    seed: int
    updates: int
    plain_bytes: int = 0

    @property
    def file_name(self) -> str:
        """Where its figures are kept."""
        return f"{self.model}-{self.plan}-{self.seed}-{self.updates}.json"

    @property
    def arguments(self) -> list[str]:
        """The child's command line."""
        numbers = {"seed": self.seed, "updates": self.updates, "plain-bytes": self.plain_bytes}
        flags = [word for key, value in numbers.items() for word in (f"--{key}", str(value))]
        return ["--model", self.model, "--plan", self.plan, *flags]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is not done, and write table, JSON and picture; return 1 where a cell failed."""
    options = _parser().parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    seeds = options.seeds[:1] if options.quick else options.seeds
    run = partial(_figures, options.folder)
    updates = {
        model: QUICK_UPDATES if options.quick else UPDATES[model] for model in options.models
    }
    with ThreadPoolExecutor(options.jobs) as pool:
        bases = dict(
            zip(
                options.models,
                pool.map(run, [Cell(m, "basis", seeds[0], updates[m]) for m in options.models]),
                strict=True,
            )
        )
        cells = [
            Cell(model, plan, seed, updates[model], found["plain_bytes"])
            for model, found in bases.items()
            if found is not None
            for seed in seeds
            for plan in options.plans
        ]
        figures = list(pool.map(run, cells))
    done = [(c, found) for c, found in zip(cells, figures, strict=True) if found is not None]
    _write(options.folder, {m: b for m, b in bases.items() if b is not None}, done)
    return int(None in figures or None in bases.values())


def _figures(folder: Path, cell: Cell) -> Figures | None:
    """Return a cell's figures, from its file where it is done; None where it failed."""
    file = folder / cell.file_name
    if not file.exists():
        _say(f"{cell.model}, {cell.plan}, seed {cell.seed}")
        command = [sys.executable, "-m", "bench.plan_cells", *cell.arguments]
        try:
            text = output_of(file.stem, command, os.environ, _BOUND_S)
        except BenchError as error:
            _say(str(error))
            return None
        fresh = file.with_suffix(".tmp")
        fresh.write_text(json.dumps(json.loads(text), indent=1) + "\n")
        fresh.replace(file)
    found: Figures = json.loads(file.read_text())
    return found


def _write(
    folder: Path, bases: Mapping[str, Figures], done: Sequence[tuple[Cell, Figures]]
) -> None:
    rows: dict[str, dict[str, list[Figures]]] = {}
    for cell, figures in done:
        rows.setdefault(cell.model, {}).setdefault(cell.plan, []).append(figures)
    table = as_markdown(bases, rows)
    (folder / "plans.md").write_text(table)
    document = {"machine": machine(), "bases": bases, "cells": rows}
    (folder / "plans.json").write_text(json.dumps(document, indent=1) + "\n")
    plot(bases, rows, folder / "plans.png")
    print(table)
    _say(f"written to {folder}/plans.md, plans.json and plans.png")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.plans", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=UPDATES, default=list(UPDATES))
    parser.add_argument("--plans", nargs="+", choices=CHOICES, default=list(CHOICES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time (%(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("runs/plans"))
    parser.add_argument("--quick", action="store_true", help="one seed and few updates")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
