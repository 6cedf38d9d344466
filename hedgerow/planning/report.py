"""What `hedgerow plan` found, as plain values for the table, the pictures and plan.json."""

from collections.abc import Mapping

import msgspec
from msgspec import Struct

from hedgerow.core.encodings import choose_encoding, encoded_bytes
from hedgerow.core.execution import Execution
from hedgerow.core.memory import training_bytes
from hedgerow.core.plan import Plan
from hedgerow.core.search import Candidate
from hedgerow.core.units import Unit
from hedgerow.planning.budgets import Budgets
from hedgerow.planning.workbench import Workbench


class Verified(Struct, frozen=True, kw_only=True):
    """A short training of a plan: the task's metrics after it, and its measured memory.

    `failed` says what went wrong, "" if nothing.
    """

    metrics: dict[str, float] = {}
    peak_bytes: int = 0
    execution: str = ""
    failed: str = ""


class Row(Struct, frozen=True, kw_only=True):
    """One plan: `model_bytes` by the memory model, `oracle_bytes` by tinygrad's planner.

    `value` is the units' share of all units' value.
    """

    units: list[str]
    depth: str
    execution: str
    model_bytes: int
    oracle_bytes: int
    params: int
    share: float
    update_bytes: int
    value: float
    verified: Verified | None = None


class StageRow(Struct, frozen=True, kw_only=True):
    """One stage: its units in order, and per example its activations and million operations.

    `units` pairs each unit with its size.
    """

    name: str
    units: list[tuple[str, int]]
    activation_bytes: int
    mflop: float


class PlanReport(Struct, frozen=True, kw_only=True):
    """All that was found. `plans` are the best of each depth, best first.

    `classes` are the plans by memory class, where such were asked for. `values` are the units' values, from
    `source` "proxy" or "prior". `full_bytes` is what the memory model says of training everything in one
    batch; `toml` are the lines to paste into the configuration; `search_s` is the time of the search itself,
    the planner's word included, `seconds` of everything.
    """

    config: str
    budget_bytes: int
    batch_size: int
    seed: int
    examples: int
    source: str
    groups: int
    values: dict[str, float]
    full_bytes: int
    plans: list[Row]
    classes: dict[str, Row]
    personal: list[str]
    stages: list[StageRow]
    toml: list[str]
    search_s: float
    seconds: float


def row_of(
    bench: Workbench,
    candidate: Candidate,
    values: Mapping[str, float],
    *,
    batch: int = 0,
    verified: Verified | None = None,
) -> Row:
    """Return a candidate, confirmed by the oracle for `batch` (0: the fleet's), as a row."""
    plan = Plan.of(bench.model.manifest, candidate.names)
    config = bench.config
    encoding, k = choose_encoding(plan, config.training.encoding, config.node.max_update_bytes)
    planned = training_bytes(
        bench.costs,
        candidate.names,
        candidate.execution,
        batch=batch or bench.batch,
        error_feedback=bench.error_feedback,
        personal=bench.personal,
    )
    total = sum(value for name, value in values.items() if name not in bench.personal)
    return Row(
        units=list(candidate.names),
        depth=bench.costs.stages[candidate.depth].name,
        execution=candidate.execution.in_words,
        model_bytes=planned,
        oracle_bytes=candidate.planned_bytes,
        params=plan.size,
        share=plan.share,
        update_bytes=encoded_bytes(encoding, plan, k),
        value=candidate.value / (total or 1.0),
        verified=verified,
    )


def stage_rows(bench: Workbench) -> list[StageRow]:
    """Return the model's stages."""
    return [
        StageRow(
            name=stage.name,
            units=[(unit.name, unit.size) for unit in units],
            activation_bytes=stage.output_bytes + stage.inner_bytes,
            mflop=stage.mflop,
        )
        for stage, units in zip(bench.costs.stages, bench.costs.stage_units, strict=True)
    ]


def full_bytes(bench: Workbench) -> int:
    """Return what the memory model says of training everything, a whole batch at a time."""
    everything = list(bench.model.manifest.by_name)
    return training_bytes(bench.costs, everything, Execution(bench.batch))


def toml_lines(bench: Workbench, names: list[str], budgets: Budgets) -> list[str]:
    """Return the [plan] table that trains these units, or has memory classes' plans searched."""
    lines = ["[plan]"]
    if budgets.classes:
        sizes = ", ".join(f"{name} = {size}" for name, size in budgets.classes.items())
        lines += [f"budget_bytes = {budgets.widest}", f"class_budgets = {{ {sizes} }}"]
    else:
        named = _shortest(bench, set(names))
        lines.append(f"units = {_quoted(named)}")
        if any(Unit(name, ()).part is not None for name in named):
            lines.append(f"groups = {bench.groups}")
    if bench.personal:
        lines.append(f"personal = {_quoted(bench.config.plan.personal)}")
    return lines


def _shortest(bench: Workbench, chosen: set[str]) -> list[str]:
    """Name whole layers and whole tensors instead of all their units."""
    named: list[str] = []
    for layer in bench.model.manifest.layers:
        units = [unit for unit in bench.model.manifest.units if unit.layer == layer]
        if all(unit.name in chosen for unit in units):
            named.append(layer)
            continue
        for tensor in dict.fromkeys(unit.tensor for unit in units):
            parts = [unit.name for unit in units if unit.tensor == tensor]
            inside = [name for name in parts if name in chosen]
            named += [tensor] if inside == parts else inside
    return named


def _quoted(names: list[str]) -> str:
    return msgspec.json.encode(names).decode().replace('","', '", "')


def as_json(report: PlanReport) -> str:
    """Return the report as indented JSON."""
    return msgspec.json.format(msgspec.json.encode(report).decode(), indent=2) + "\n"
