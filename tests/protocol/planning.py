"""Costs and configurations under which the small model of the scenarios is planned."""

from math import ceil
from typing import Any

from aggregator.lineage import Lineage
from aggregator.planner import KEPT, Planner
from hedgerow.core.config import Config
from hedgerow.core.costs import ModelCosts, StageCost
from hedgerow.core.messages import FleetReport, UnitValues, Update
from hedgerow.core.plan import Plan
from hedgerow.core.planbook import PlanSet
from hedgerow.core.quantize import encode_delta
from tests.protocol.scenarios import (
    MANIFEST,
    MODEL,
    PLAN,
    WHOLE,
    delta_of,
    make_config,
    make_update,
    params_of,
)

COSTS = ModelCosts(
    MANIFEST,
    (
        StageCost("body", ("body",), 12, 16, 16, 1e-5),
        StageCost("head", ("head",), 16, 8, 8, 1e-5),
    ),
    example_bytes=12,
    target_bytes=4,
)
EVEN = dict.fromkeys(MANIFEST.by_name, 1.0)
BODY = {**EVEN, "body.weight": 50.0}
HEAD = {**EVEN, "head.weight": 50.0}
BUDGET = 100_000
"""Enough for all of it."""
SMALL = Plan.of(MANIFEST, ["head.bias"])


def plan_sections(budget_bytes: int = BUDGET, nodes: int = 4, **plan: Any) -> dict[str, Any]:
    """Return the sections of a fleet whose plan is searched."""
    plan = {
        "budget_bytes": budget_bytes,
        "replan_versions": 5,
        "warmup_versions": 0,
        "stall_versions": 0,
        **plan,
    }
    return {
        "plan": plan,
        "fleet": {"nodes": nodes, "model": MODEL},
        "training": {"batch_size": 4},
    }


def planned_config(budget_bytes: int = BUDGET, nodes: int = 4, **plan: Any) -> Config:
    """Return the configuration of a fleet whose plan is searched."""
    return make_config(**plan_sections(budget_bytes, nodes, **plan))


def least_bytes(*names: str) -> int:
    """Return the smallest budget that is searched for a plan of just these units."""
    plan = PlanSet(Plan.of(MANIFEST, names))
    for budget_bytes in range(1, BUDGET):
        planner = Planner(planned_config(budget_bytes), COSTS, version=0, term=1)
        if planner.planned_bytes(plan, "default"):
            return ceil(budget_bytes / KEPT)
    raise AssertionError(f"{names} fit no budget")


def report_of(number: int, values: dict[str, float], nodes: int = 3) -> FleetReport:
    """Return a gateway's report with so many nodes' answers to a round."""
    told = [UnitValues(f"node-{n + 1}", number, values) for n in range(nodes)]
    return FleetReport(gateway="gw-1", boot=1, nodes=[], values=told)


def update_of(plan: Plan, seq: int = 1, base: int = 0, node: str = "node-1") -> Update:
    """Return a well-formed update under a plan."""
    encoded = encode_delta(delta_of(plan=plan), plan, "int8", 10.0)
    return make_update(
        seq,
        base,
        node,
        plan_id=plan.plan_id,
        scales=encoded.scales,
        payload=encoded.payload,
    )


def replanned(versions: int = 1) -> Lineage:
    """Return a lineage whose version 0 trains PLAN, the small ones SMALL, and whose later ones WHOLE."""
    config = make_config(plan={"class_budgets": {"small": 500}})
    lineage = Lineage(config, PlanSet(PLAN, {"small": SMALL}))
    lineage.add(lineage.first(params_of(0), 1))
    lineage.planned = PlanSet(WHOLE)
    for version in range(1, versions):
        lineage.add(lineage.next(params_of(version), 1))
    return lineage
