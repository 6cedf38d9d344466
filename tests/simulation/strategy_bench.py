"""A fleet's view of one strategy: a small model, its rules, updates, and what the aggregator hands over."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hedgerow.core.config import Config
from hedgerow.core.configcheck import parse_config
from hedgerow.core.merge import MergeContext
from hedgerow.core.messages import Header, UpdateId
from hedgerow.core.partial import (
    PartialAggregate,
    add,
    contribution,
    example_weight,
    fixed_point_scale,
    frame_for,
)
from hedgerow.core.plan import Plan
from hedgerow.core.rules import Rules
from hedgerow.core.staleness import law_of
from hedgerow.core.strategy import Contribution, Merging, Strategy
from hedgerow.core.units import Manifest, Vector

LAW = settings(max_examples=60, deadline=None)

MANIFEST = Manifest.of({"a.weight": (2, 2), "a.bias": (2,), "b.weight": (2, 1), "b.bias": (1,)})
WHOLE = Plan.of(MANIFEST, MANIFEST.by_name)
LAST = Plan.of(MANIFEST, ["b.weight", "b.bias"])
SCENARIO: dict[str, dict[str, Any]] = {
    "fleet": {"nodes": 20},
    "data": {"source": "digits"},
    "plan": {"preset": "biases+last"},
    "staleness": {"half_life": 5.0, "tau_max": 6},
    "aggregation": {"buffer_size": 7},
}

Numbers = NDArray[np.float64]


def configured(strategy: Strategy, **changes: dict[str, Any]) -> Config:
    """A scenario's configuration with a strategy's settings, and a user's own `changes` on top."""
    tables = {name: dict(table) for name, table in SCENARIO.items()}
    for layer in (strategy.settings, changes):
        for name, table in layer.items():
            tables[name] = dict(table) if name == "plan" else {**tables.get(name, {}), **table}
    return parse_config(tables)


def rules_of(config: Config) -> Rules:
    aggregation = config.aggregation
    return Rules(
        staleness=law_of(config.staleness, mean_staleness=0.0),
        clip_norm=config.training.clip_norm,
        example_exponent=aggregation.example_exponent,
        example_cap=aggregation.example_cap,
        variance=aggregation.variance,
        kappa_ref=1.0,
        server_learning_rate=aggregation.learning_rate or 1.0,
        count_max=aggregation.count_max,
    )


@dataclass(frozen=True)
class Sent:
    """One update as its node sent it."""

    node: int
    age: int
    examples: int
    kappa: float
    delta: Vector
    plan: Plan = WHOLE


def pushed(node: int, value: float, plan: Plan = WHOLE, age: int = 0) -> Sent:
    return Sent(node, age, 1, 1.0, np.full(plan.size, value, np.float32), plan)


def merging_of(
    strategy: Strategy, rules: Rules, params: Vector, version: int, sent: Sequence[Sent]
) -> Merging:
    """What the aggregator hands to a strategy: sums as gateways make them, or the updates one by one."""
    plans = {plan.plan_id: plan for plan in (WHOLE, LAST)}
    rate = rules.server_learning_rate
    context = MergeContext(MANIFEST, version, rules.staleness, plans, lambda _: rules, rate)
    ones = tuple(_contribution(s, version, seq) for seq, s in enumerate(sent))
    if strategy.individual:
        return Merging(params, context, {}, ones)
    return Merging(params, context, add(*(_summed(one, rules, version) for one in ones)))


def _contribution(s: Sent, version: int, seq: int) -> Contribution:
    header = Header(UpdateId(f"n{s.node}", 1, seq), version - s.age, s.examples, s.kappa)
    return Contribution(header, s.plan, s.delta)


def _summed(one: Contribution, rules: Rules, version: int) -> PartialAggregate:
    frame = frame_for(rules, one.header.base_version, rules, version)
    return contribution(one.header, one.delta, one.plan, rules, frame)


def quantum(rules: Rules, sent: Iterable[Sent]) -> float:
    """How far integer sums may be from exact ones: half a step per update, over the sum of the weights."""
    weights = [example_weight(s.examples, rules) for s in sent]
    return 0.5 * len(weights) / fixed_point_scale(rules) / sum(weights) + 1e-5


values = st.floats(-1, 1, width=32)


def vectors(size: int) -> st.SearchStrategy[Vector]:
    return st.lists(values, min_size=size, max_size=size).map(lambda v: np.array(v, np.float32))


@st.composite
def buffers(draw: st.DrawFn, max_age: int = 6, *, plan: Plan = WHOLE, most: int = 6) -> list[Sent]:
    one = st.builds(
        Sent,
        node=st.integers(0, 4),
        age=st.integers(0, max_age),
        examples=st.integers(1, 1024),
        kappa=st.floats(0.1, 10),
        delta=vectors(plan.size),
        plan=st.just(plan),
    )
    return draw(st.lists(one, min_size=1, max_size=most))


models = vectors(MANIFEST.size)


def exact(vector: Vector) -> Numbers:
    return vector.astype(np.float64)


def apply_once(strategy: Strategy, merging: Merging) -> Vector:
    return strategy.apply(strategy.init(merging.params), merging)[0]
