"""`hedgerow plan`: from a fleet's configuration and a budget to plans that fit."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from hedgerow.core.config import Config, Identifier
from hedgerow.core.errors import ConfigError
from hedgerow.core.search import NothingFitsError
from hedgerow.planning.budgets import Budgets, Tell
from hedgerow.planning.command import Options
from hedgerow.planning.picture import network_picture
from hedgerow.planning.plot import write_plot
from hedgerow.planning.report import PlanReport, as_json
from hedgerow.planning.sizes import in_kib, parse_size
from hedgerow.planning.table import classes_table, plans_table, verified_table
from hedgerow.runtime.cache import cache_folder
from hedgerow.runtime.compiler import prepare_tinygrad
from hedgerow.runtime.configfile import load_config

OK, NOTHING_FITS = 0, 1


def run_plan(options: Options) -> int:
    """Search, print and write; return the exit code. Raises ConfigError for bad input."""
    config = load_config(options.config)
    budgets = budgets_of(options, config)
    prepare_tinygrad(cache_folder())
    # tinygrad reads its environment when it is imported.
    from hedgerow.planning.planner import make_report  # noqa: PLC0415

    try:
        with _progress() as tell:
            report = make_report(options, config, budgets, tell)
    except NothingFitsError as error:
        sys.stderr.write(f"hedgerow: {error}\n")
        return NOTHING_FITS
    if options.json:
        sys.stdout.write(as_json(report))
    else:
        _print(report)
    if options.folder is not None:
        _write(report, options.folder)
    return OK


def budgets_of(options: Options, config: Config) -> Budgets:
    """Return the budgets of the command line, else of the configuration."""
    widest = config.plan.budget_bytes
    if options.budget is not None:
        widest = parse_size("--budget", options.budget)
    if not widest:
        raise ConfigError(
            "--budget: the configuration has no plan.budget_bytes; give one, such as --budget 256KiB"
        )
    classes = dict(config.plan.class_budgets)
    for text in options.classes:
        name, equals, size = text.partition("=")
        if not equals or not _is_identifier(name):
            raise ConfigError(f"--class: {text!r} is not like sensor=256KiB")
        classes[name] = parse_size(f"--class {name}", size)
    return Budgets(widest, classes)


def _is_identifier(name: str) -> bool:
    try:
        msgspec.convert(name, Identifier)
    except msgspec.ValidationError:
        return False
    return True


@contextmanager
def _progress() -> Iterator[Tell]:
    """Show a bar on a terminal while something is under way."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)

        def tell(what: str, done: int = 0, total: int = 0) -> None:
            progress.update(task, description=what, completed=done, total=total or None)

        yield tell


def _print(report: PlanReport) -> None:
    console = Console(soft_wrap=True, highlight=False)
    console.print(_summary(report))
    console.print(plans_table(report))
    for row in report.plans:
        if row.verified is not None and row.verified.failed:
            console.print(f"trained from {row.depth}: {row.verified.failed}")
    if report.classes:
        console.print(classes_table(report))
    verified = verified_table(report)
    if verified is not None:
        console.print(verified)
    console.print(network_picture(report, report.plans[0].units))
    # Square brackets are markup to rich, and a long line must stay one.
    console.print("\nfor the configuration:\n")
    console.print("\n".join(report.toml), markup=False)


def _summary(report: PlanReport) -> str:
    values = (
        f"squared gradients on {report.examples} training examples"
        if report.source == "proxy"
        else "the prior: late stages first"
    )
    return (
        f"values: {values}; searched in {report.search_s:.2f} s;"
        f" training everything at once would take {in_kib(report.full_bytes)}"
    )


def _write(report: PlanReport, folder: Path) -> None:
    """Write plan.json and plan.png; raises ConfigError where the disk refuses."""
    names: Sequence[str] = report.plans[0].units
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(as_json(report))
        write_plot(report, names, folder / "plan.png")
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error}") from error
    sys.stderr.write(f"wrote {folder / 'plan.json'} and {folder / 'plan.png'}\n")
