"""The search of `hedgerow plan`: values, plans, the oracle's word on them, and short trainings."""

import time
from collections.abc import Mapping, Sequence

from hedgerow.core.config import Config
from hedgerow.core.execution import Execution
from hedgerow.core.search import Candidate, Oracle, nested_plans, prior_values, search
from hedgerow.planning.budgets import Budgets, Tell
from hedgerow.planning.command import Options
from hedgerow.planning.oracle import oracle_of
from hedgerow.planning.proxy import proxy_values
from hedgerow.planning.report import (
    PlanReport,
    Row,
    full_bytes,
    row_of,
    stage_rows,
    toml_lines,
)
from hedgerow.planning.verify import verified
from hedgerow.planning.workbench import Workbench, open_workbench
from hedgerow.runtime.cache import cache_folder


def make_report(options: Options, config: Config, budgets: Budgets, tell: Tell) -> PlanReport:
    """Return what was found. Call `prepare_tinygrad` first, and stay in one thread.

    Raises ConfigError for what does not fit the model, NothingFitsError where no plan fits the budget.
    """
    started_s = time.monotonic()
    bench = open_workbench(
        config,
        seed=config.fleet.seed if options.seed is None else options.seed,
        examples=options.examples,
        model_file=options.model,
        jit_folder=cache_folder() / "jit",
        tell=tell,
    )
    # What cannot fit is said before anything is compiled.
    _search(bench, prior_values(bench.costs), budgets, None)
    values = _values(bench, options, tell)
    oracle = _told(oracle_of(bench), tell)
    searched_s = time.monotonic()
    best = _search(bench, values, budgets, oracle)
    classes = _classes(bench, values, budgets, oracle)
    search_s = time.monotonic() - searched_s
    rows = _rows(bench, best, values, budgets, tell, verify=options.verify)
    return PlanReport(
        config=options.config,
        budget_bytes=budgets.widest,
        batch_size=bench.batch,
        seed=bench.seed,
        examples=bench.examples,
        source=options.values,
        groups=bench.groups,
        values=dict(values),
        full_bytes=full_bytes(bench),
        plans=rows,
        classes={
            name: row_of(bench, found, values, batch=bench.batch_of(name))
            for name, found in classes.items()
        },
        personal=list(bench.personal),
        stages=stage_rows(bench),
        toml=toml_lines(bench, rows[0].units, budgets),
        search_s=search_s,
        seconds=time.monotonic() - started_s,
    )


def _values(bench: Workbench, options: Options, tell: Tell) -> Mapping[str, float]:
    if options.values == "prior":
        return prior_values(bench.costs)
    return proxy_values(bench, tell)


def _told(oracle: Oracle, tell: Tell) -> Oracle:
    """Return the same oracle, which shows that it is at work."""

    def told(names: Sequence[str], execution: Execution, batch: int) -> int:
        tell("asking tinygrad's memory planner")
        return oracle(names, execution, batch)

    return told


def _search(
    bench: Workbench, values: Mapping[str, float], budgets: Budgets, oracle: Oracle | None
) -> list[Candidate]:
    return search(
        bench.costs,
        values,
        budgets.widest,
        bench.batch,
        error_feedback=bench.error_feedback,
        personal=bench.personal,
        enough=bench.config.plan.enough_value,
        oracle=oracle,
    )


def _classes(
    bench: Workbench, values: Mapping[str, float], budgets: Budgets, oracle: Oracle
) -> Mapping[str, Candidate]:
    """Return the plans of the memory classes and of all other nodes, each inside the wider ones."""
    if not budgets.classes:
        return {}
    everybody = {"default": budgets.widest, **budgets.classes}
    return nested_plans(
        bench.costs,
        values,
        everybody,
        bench.batch,
        batches={name: bench.batch_of(name) for name in everybody},
        error_feedback=bench.error_feedback,
        personal=bench.personal,
        enough=bench.config.plan.enough_value,
        oracle=oracle,
    )


def _rows(
    bench: Workbench,
    best: list[Candidate],
    values: Mapping[str, float],
    budgets: Budgets,
    tell: Tell,
    *,
    verify: bool,
) -> list[Row]:
    rows = []
    for number, candidate in enumerate(best):
        run = None
        if verify:
            tell("training the best plans", number, len(best))
            run = verified(bench, candidate.names, budgets.widest)
        rows.append(row_of(bench, candidate, values, verified=run))
    return rows
