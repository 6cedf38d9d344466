"""`python -m bench.plan_memory`: measured against modelled training memory, four models and three budgets.

The plan of each budget is searched as `hedgerow plan` does, and one step of it is trained. Beside the
measured peak stand what tinygrad's planner says beforehand (the oracle) and what the analytic memory model
says, on which the search rests. Ends with 1 where either differs from the measured peak by more than BOUND.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.plans import UPDATES
from hedgerow.runtime.cache import cache_folder
from hedgerow.runtime.compiler import prepare_tinygrad

SHARES = (0.5, 0.2, 0.1)
BOUND = 0.15


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print the table, write the JSON; return 1 where a figure is off."""
    options = _parser().parse_args(arguments)
    prepare_tinygrad(cache_folder())
    rows = [row for model in options.models for row in _measured(model)]
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(rows, indent=1) + "\n")
    Console().print(_table(rows))
    off = [row for row in rows if max(abs(row[of] - 1) for of in ("oracle", "analytic")) > BOUND]
    for row in off:
        sys.stderr.write(f"{row['model']} at {row['share']:.0%} differs by more than {BOUND:.0%}\n")
    return int(bool(off))


def _measured(model: str) -> Iterator[dict[str, Any]]:
    # tinygrad reads its environment when it is imported, after `prepare_tinygrad`.
    from bench.plan_cells import Subject, basis  # noqa: PLC0415
    from bench.plan_choices import searched  # noqa: PLC0415
    from hedgerow.core.memory import training_bytes  # noqa: PLC0415
    from hedgerow.core.search import NothingFitsError  # noqa: PLC0415

    subject = Subject(model, 1)
    plain_bytes, values = basis(subject)["plain_bytes"], subject.values()
    for share in SHARES:
        budget_bytes = round(share * plain_bytes)
        try:
            found = searched(subject.question(values, budget_bytes))
        except NothingFitsError as error:
            sys.stderr.write(f"{model} at {share:.0%}: {error}\n")
            continue
        step = subject.step(found.names, 0, found.execution)
        analytic_bytes = training_bytes(
            subject.world.costs(),
            found.names,
            found.execution,
            batch=subject.training.batch_size,
        )
        yield {
            "model": model,
            "share": share,
            "budget_bytes": budget_bytes,
            "execution": step.execution.in_words if step.execution else "",
            "measured_bytes": step.peak_bytes,
            "oracle_bytes": step.planned_bytes,
            "analytic_bytes": analytic_bytes,
            "oracle": step.planned_bytes / step.peak_bytes,
            "analytic": analytic_bytes / step.peak_bytes,
        }


def _table(rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title="training memory, modelled and measured")
    for name in ("model", "budget kB", "computed", "measured kB", "oracle", "analytic"):
        table.add_column(name, justify="left" if name in ("model", "computed") else "right")
    for row in rows:
        table.add_row(
            row["model"],
            f"{row['budget_bytes'] / 1e3:,.1f}",
            row["execution"],
            f"{row['measured_bytes'] / 1e3:,.1f}",
            f"{row['oracle']:.3f}",
            f"{row['analytic']:.3f}",
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.plan_memory", description=__doc__)
    parser.add_argument("--models", nargs="+", choices=list(UPDATES), default=list(UPDATES))
    parser.add_argument("--json", type=Path, default=Path("runs/plan_memory.json"))
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
