"""The command line of `hedgerow plan`, and what it means."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

# Whoever asks another command for --help must not wait for numpy: the work is imported when it is done.

_EXIT_CODES = (
    "exit codes: 0 ok, 1 nothing fits the budget, 2 bad usage or configuration, 130 interrupted"
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line. `budget` and `classes` ("NAME=SIZE") are as written; None leaves the config's."""

    config: str
    budget: str | None = None
    classes: Sequence[str] = ()
    values: Literal["proxy", "prior"] = "proxy"
    examples: int = 256
    model: Path | None = None
    verify: bool = False
    json: bool = False
    folder: Path | None = None
    seed: int | None = None


class AddCommand(Protocol):
    """Adds a command to the command line and returns its parser."""

    def __call__(
        self, name: str, summary: str, example: str, exit_codes: str
    ) -> argparse.ArgumentParser:
        """Add a command, with a sentence and an example for its help."""


def add_plan_command(add: AddCommand) -> None:
    """Add `plan`."""
    plan = add(
        "plan",
        "find the units worth training within a memory budget",
        "hedgerow plan configs/demo.toml --budget 96KiB --verify\n"
        "         hedgerow plan fleet.toml --budget 1MiB --class sensor=256KiB --out plans/fleet",
        _EXIT_CODES,
    )
    plan.add_argument("config", help=".toml or .json file, or the name of a packaged one (demo)")
    plan.add_argument(
        "--budget",
        metavar="SIZE",
        help="memory that a training may take, such as 256KiB (default: plan.budget_bytes)",
    )
    plan.add_argument(
        "--class",
        dest="classes",
        action="append",
        default=[],
        metavar="NAME=SIZE",
        help="another budget for a memory class; its plan is a part of the wider ones (repeatable)",
    )
    plan.add_argument(
        "--values",
        choices=("proxy", "prior"),
        default="proxy",
        help="what a unit is worth: its squared gradient on training examples, or its place alone",
    )
    plan.add_argument(
        "--examples", type=int, default=256, metavar="N", help="training examples to look at (256)"
    )
    plan.add_argument(
        "--model", type=Path, metavar="FILE", help="parameters as .safetensors (default: initial)"
    )
    plan.add_argument(
        "--verify", action="store_true", help="train the best plans for a short while and compare"
    )
    plan.add_argument("--json", action="store_true", help="print JSON instead of tables")
    plan.add_argument(
        "--out", dest="folder", type=Path, metavar="FOLDER", help="write plan.json and plan.png"
    )
    plan.add_argument("--seed", type=int, metavar="N", help="seed (default: fleet.seed)")
    plan.set_defaults(run=_plan)


def _plan(parsed: argparse.Namespace) -> int:
    from hedgerow.planning.run import run_plan  # noqa: PLC0415 - see above

    return run_plan(
        Options(**{name: value for name, value in vars(parsed).items() if name != "run"})
    )
