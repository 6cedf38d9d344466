"""What each encoding of updates costs and saves: bytes of an update, and how well the fleet learns.

`python -m bench.payload` simulates the fleet of bench/configs/payload.toml with every encoding, and those
that feed their error back once more without that, over several seeds. All nodes train for the same virtual
time, so the figures of one seed differ by the encoding alone.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import blas  # noqa: F401 - first: it must come before numpy
from bench.measure import Row, machine
from bench.report import SCHEMA, write_json
from hedgerow.core import encodings
from hedgerow.core.encodings import FED_BACK, FINEST_FIRST, encoded_bytes
from hedgerow.core.messages import Encoding
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.core.units import Manifest
from sims.result import StrategyResult
from sims.run import run_strategy
from sims.scenario import Scenario
from sims.scenariofile import load_scenario, with_overrides
from sims.traces import Traces

FIGURE = "payload"
SCENARIO = Path(__file__).with_name("configs") / "payload.toml"
SEEDS = (1, 2, 3)
_QUICK_S = 3.0
_FILE_WIDTH = 140
MANIFEST = Manifest.of(
    {
        "hidden.0.weight": (64, 64),
        "hidden.0.bias": (64,),
        "output.weight": (10, 64),
        "output.bias": (10,),
    }
)


@dataclass(frozen=True, slots=True)
class Case:
    """One encoding, with error feedback where it has that, or once without."""

    encoding: Encoding
    feedback: bool

    @property
    def name(self) -> str:
        """What the table calls it."""
        return f"{self.encoding} + feedback" if self.feedback else self.encoding

    def changes(self, seed: int) -> dict[str, object]:
        """Return what is different from the scenario file, by dotted key."""
        return {"scenario.seed": seed, "training.encoding": self.encoding}


CASES = tuple(
    Case(encoding, feedback)
    for encoding in FINEST_FIRST
    for feedback in ((True, False) if encoding in FED_BACK else (False,))
)


@contextmanager
def _feedback(*, wanted: bool) -> Iterator[None]:
    """Let nodes feed their error back, which they always do, or not, which only a comparison wants."""
    usual = encodings.FED_BACK
    try:
        encodings.FED_BACK = usual if wanted else frozenset()
        yield
    finally:
        encodings.FED_BACK = usual


def run(case: Case, scenario: Scenario, seed: int) -> StrategyResult:
    """Simulate one fleet."""
    with _feedback(wanted=case.feedback):
        changed = with_overrides(scenario, case.changes(seed))
        return run_strategy(changed, changed.scenario.strategies[0], traces=Traces(None))


def rows_of(case: Case, plan: Plan, results: Sequence[StrategyResult]) -> list[Row]:
    """Return an encoding's figures, one value for each seed."""

    def row(what: str, unit: str, value: Callable[[StrategyResult], float]) -> Row:
        return Row(FIGURE, f"{case.name}: {what}", unit, tuple(map(value, results)))

    payload = float(encoded_bytes(case.encoding, plan))
    rows = [
        Row(FIGURE, f"{case.name}: payload and scales", "bytes", (payload,)),
        row("uplink per update", "bytes", lambda r: r.uplink_bytes / r.updates_applied),
        row("final accuracy", "%", lambda r: 100 * r.final_accuracy),
    ]
    # Infinity is no JSON: a target that one seed missed has no figure.
    if all(result.time_to_target_s is not None for result in results):
        rows.append(row("time to target", "virtual s", lambda r: r.time_to_target_s or 0.0))
    return rows


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Print one line for each encoding."""
    table = Table(title="hedgerow bench: payload")
    table.add_column("encoding", no_wrap=True)
    columns = ("payload and scales", "uplink per update", "final accuracy", "time to target")
    for column in columns:
        table.add_column(column, justify="right")
    by_case: dict[str, dict[str, Row]] = {}
    for row in rows:
        case, what = row.what.split(": ")
        by_case.setdefault(case, {})[what] = row
    for case, found in by_case.items():
        table.add_row(case, *(_cell(found.get(column)) for column in columns))
    console.print(table)


def _cell(row: Row | None) -> str:
    if row is None:
        return "missed"
    mean = sum(row.values) / len(row.values)
    spread = f" ({min(row.values):,.1f}..{max(row.values):,.1f})" if len(row.values) > 1 else ""
    return f"{mean:,.1f}{spread} {row.unit}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every encoding and seed, print the table, write the JSON."""
    options = _parser().parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)
    progress = Console(stderr=True)
    scenario = load_scenario(SCENARIO)
    if options.quick:
        scenario = with_overrides(scenario, {"scenario.duration_s": _QUICK_S})
    plan = choose_plan(MANIFEST, preset="all")
    about, rows = machine(), []
    for case in [c for c in CASES if not options.only or c.name in options.only]:
        results = []
        for seed in options.seed[:1] if options.quick else options.seed:
            progress.print(f"{case.name}, seed {seed}", markup=False)
            results.append(run(case, scenario, seed))
        rows += rows_of(case, plan, results)
    document = {"schema": SCHEMA, "quick": options.quick, "machine": about}
    write_json({**document, "rows": [row.as_dict() for row in rows]}, options.json)
    print_table(rows, console)
    console.print(f"written to {options.json}", markup=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.payload", description=__doc__)
    parser.add_argument(
        "--json", type=Path, default=Path("runs/bench-payload.json"), metavar="FILE"
    )
    parser.add_argument("--seed", type=int, nargs="+", default=list(SEEDS), metavar="N")
    parser.add_argument("--quick", action="store_true", help="a smoke test: some virtual seconds")
    names = [case.name for case in CASES]
    parser.add_argument(
        "--only", action="append", choices=names, metavar="NAME", help=", ".join(names)
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
