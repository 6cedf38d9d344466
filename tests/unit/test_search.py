"""The search returns the best plan that fits, and says so when none does."""

from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedgerow.core.config import PlanConfig
from hedgerow.core.costs import ModelCosts, StageCost
from hedgerow.core.errors import ConfigError
from hedgerow.core.execution import Execution, executions
from hedgerow.core.memory import training_bytes
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.core.search import (
    WORTH,
    Candidate,
    filled_values,
    first_plan,
    nested_plans,
    prior_values,
    search,
)
from hedgerow.core.units import Manifest, cut

BATCH = 4


def model(*widths: int, groups: int = 2) -> ModelCosts:
    """Return the costs of a chain of linear layers."""
    units: dict[str, tuple[int, ...]] = {}
    stages = []
    for number, (inputs, outputs) in enumerate(pairwise(widths)):
        name = f"layer{number}"
        units |= cut(f"{name}.weight", (outputs, inputs), groups) | {f"{name}.bias": (outputs,)}
        stages.append(StageCost(name, (name,), 4 * inputs, 4 * outputs, 8 * outputs, 0.1))
    return ModelCosts(Manifest.of(units), tuple(stages), 4 * widths[0], 4)


CHAIN = model(24, 16, 12, 4)
NAMES = tuple(CHAIN.manifest.by_name)
FULL = training_bytes(CHAIN, NAMES, Execution(BATCH))


def best_by_trying_all(
    costs: ModelCosts, values: dict[str, float], budget: int, *, error_feedback: bool = False
) -> float:
    """Return the most value of any set of units that fits in any execution."""
    best = 0.0
    for size in range(1, len(values) + 1):
        for names in combinations(values, size):
            depth = min(costs.stage_of(name) for name in names)
            for way in executions(BATCH, len(costs.stages) - depth):
                needed = training_bytes(
                    costs, names, way, batch=BATCH, error_feedback=error_feedback
                )
                if needed <= budget:
                    best = max(best, sum(values[name] for name in names))
    return best


values_of_chain = st.fixed_dictionaries(
    {name: st.floats(2.0**-10, 1024, width=32) for name in NAMES}
)


@settings(max_examples=40, deadline=None)
@given(values=values_of_chain, budget=st.integers(FULL // 4, FULL), error_feedback=st.booleans())
def test_no_other_plan_that_fits_is_worth_more(
    values: dict[str, float], budget: int, *, error_feedback: bool
) -> None:
    best = best_by_trying_all(CHAIN, values, budget, error_feedback=error_feedback)
    if not best:
        with pytest.raises(ConfigError, match=r"plan\.budget_bytes"):
            search(CHAIN, values, budget, BATCH, error_feedback=error_feedback)
        return
    found = search(CHAIN, values, budget, BATCH, error_feedback=error_feedback)
    # A faster execution may give up a hundredth of the value, no more.
    assert WORTH * best * (1 - 1e-9) <= found[0].value <= best * (1 + 1e-9)
    assert [c.value for c in found] == sorted((c.value for c in found), reverse=True)
    assert len({c.depth for c in found}) == len(found)
    for candidate in found:
        assert_fits(CHAIN, candidate, budget, error_feedback=error_feedback)


def assert_fits(
    costs: ModelCosts, candidate: Candidate, budget: int, *, error_feedback: bool = False
) -> None:
    planned = training_bytes(
        costs, candidate.names, candidate.execution, batch=BATCH, error_feedback=error_feedback
    )
    assert planned == candidate.planned_bytes <= budget
    assert min(costs.stage_of(name) for name in candidate.names) == candidate.depth
    plan = Plan.of(costs.manifest, candidate.names)
    assert plan.names == candidate.names
    assert plan.share == pytest.approx(candidate.share)


@settings(max_examples=30, deadline=None)
@given(values_of_chain, st.lists(st.integers(FULL // 2, FULL), min_size=1, max_size=4))
def test_plans_of_memory_classes_are_nested(values: dict[str, float], sizes: list[int]) -> None:
    budgets = {f"class-{number}": size for number, size in enumerate(sizes)}
    found = nested_plans(CHAIN, values, budgets, BATCH)
    assert set(found) == set(budgets)
    widest_first = sorted(found, key=lambda name: (-budgets[name], name))
    for wider, narrower in pairwise(widest_first):
        assert set(found[narrower].names) <= set(found[wider].names)
    for name, candidate in found.items():
        assert_fits(CHAIN, candidate, budgets[name])
    assert found == nested_plans(CHAIN, values, dict(reversed(budgets.items())), BATCH)


def even(costs: ModelCosts) -> dict[str, float]:
    return dict.fromkeys(costs.manifest.by_name, 1.0)


def test_a_budget_for_all_trains_all_in_the_fastest_way() -> None:
    best = search(CHAIN, even(CHAIN), FULL, BATCH)[0]
    assert best.names == NAMES
    assert best.execution == Execution(BATCH)
    assert (best.share, best.depth) == (1.0, 0)


def test_of_plans_worth_enough_the_fastest_comes_first() -> None:
    values = {name: 1.0 if CHAIN.stage_of(name) == 2 else 0.1 for name in NAMES}
    total, last = sum(values.values()), sum(v for v in values.values() if v == 1)
    most, *_ = search(CHAIN, values, FULL, BATCH)
    assert most.value == pytest.approx(total)
    for enough, depth in ((last / total - 0.01, 2), (last / total + 0.01, 1)):
        fast, *others = search(CHAIN, values, FULL, BATCH, enough=enough)
        assert fast.depth == depth
        assert most.names in [other.names for other in others]
    plans = nested_plans(CHAIN, values, {"a": FULL}, BATCH, enough=0.5)
    assert plans["a"].depth == 2


def test_too_small_a_budget_names_the_smallest_that_would_do() -> None:
    with pytest.raises(ConfigError, match="smallest budget") as caught:
        search(CHAIN, even(CHAIN), 100, BATCH)
    smallest = int(str(caught.value).split()[-2])
    assert len(search(CHAIN, even(CHAIN), smallest, BATCH)[0].names) >= 1
    with pytest.raises(ConfigError):
        search(CHAIN, even(CHAIN), smallest - 1, BATCH)


def test_a_memory_class_that_nothing_fits_is_named() -> None:
    with pytest.raises(ConfigError, match=r"memory class 'tiny': .*smallest budget"):
        nested_plans(CHAIN, even(CHAIN), {"pi": FULL, "tiny": 99}, BATCH)


def test_error_feedback_costs_a_second_copy() -> None:
    plain = search(CHAIN, even(CHAIN), FULL, BATCH)[0]
    with_it = search(CHAIN, even(CHAIN), FULL + 4 * CHAIN.manifest.size, BATCH, error_feedback=True)
    assert with_it[0].names == plain.names
    assert with_it[0].planned_bytes == plain.planned_bytes + 4 * CHAIN.manifest.size


def test_units_of_the_wider_plan_only() -> None:
    wide = Plan.of(CHAIN.manifest, ["layer1", "layer2.bias"])
    found = search(CHAIN, even(CHAIN), FULL, BATCH, nested_in=wide)
    assert all(set(candidate.names) <= set(wide.names) for candidate in found)
    assert found[0].names == wide.names


def test_personal_units_are_counted_and_never_chosen() -> None:
    personal = ("layer1.bias",)
    found = search(CHAIN, even(CHAIN), FULL, BATCH, personal=personal)
    assert found[0].names == tuple(name for name in NAMES if name not in personal)
    # They are trained in any case, so no training begins after them.
    assert {candidate.depth for candidate in found} == {0, 1}
    last = next(c for c in found if c.depth == 1)
    assert last.planned_bytes == training_bytes(
        CHAIN, last.names, last.execution, batch=BATCH, personal=personal
    )
    with pytest.raises(ConfigError, match=r"plan\.personal"):
        search(CHAIN, even(CHAIN), FULL, BATCH, personal=NAMES)


def test_the_oracle_has_the_last_word() -> None:
    def oracle(names: Sequence[str], execution: Execution, batch: int) -> int:
        return training_bytes(CHAIN, names, execution, batch=batch) + 333

    budget = FULL * 3 // 4
    found = search(CHAIN, even(CHAIN), budget, BATCH, oracle=oracle)
    expected = search(CHAIN, even(CHAIN), budget - 333, BATCH)
    assert found[0].names == expected[0].names
    assert found[0].planned_bytes == expected[0].planned_bytes + 333 <= budget
    assert all(candidate.confirmed for candidate in found)
    assert not any(candidate.confirmed for candidate in expected)


def test_what_the_memory_model_feared_too_much_is_won_back() -> None:
    def oracle(names: Sequence[str], execution: Execution, batch: int) -> int:
        return training_bytes(CHAIN, names, execution, batch=batch) - 500

    # By the memory model not even the leanest execution has room for all units.
    ways = executions(BATCH, len(CHAIN.stages))
    budget = min(training_bytes(CHAIN, NAMES, way, batch=BATCH) for way in ways) - 500
    feared = search(CHAIN, even(CHAIN), budget, BATCH)
    found = search(CHAIN, even(CHAIN), budget, BATCH, oracle=oracle)
    assert found[0].names == NAMES
    assert found[0].planned_bytes <= budget
    assert feared[0].value < found[0].value


def test_where_the_oracle_refuses_everything_nothing_fits() -> None:
    with pytest.raises(ConfigError, match="smallest budget"):
        search(CHAIN, even(CHAIN), FULL, BATCH, oracle=lambda *_: FULL + 1_000_000)


def test_the_prior_takes_the_last_layers_that_fit() -> None:
    values = prior_values(CHAIN)
    for budget in range(FULL // 2, FULL, 200):
        names = search(CHAIN, values, budget, BATCH, top=1)[0].names
        by_size = training_bytes(CHAIN, ["layer2.weight", "layer2.bias"], Execution(1), batch=BATCH)
        if by_size <= budget:
            assert {"layer2.weight", "layer2.bias"} <= set(names)


def test_missing_values_are_filled_at_the_same_scale() -> None:
    prior = prior_values(CHAIN)
    known = {name: 1000 * prior[name] for name in NAMES[:3]}
    filled = filled_values(CHAIN, known)
    assert filled == pytest.approx({name: 1000 * prior[name] for name in NAMES})
    assert filled_values(CHAIN, {}) == prior


def test_the_first_plan_is_the_operators_or_a_searched_one() -> None:
    manifest = CHAIN.manifest
    own = first_plan(manifest, PlanConfig(last_layers=1))
    assert own == choose_plan(manifest, last_layers=1)
    config = PlanConfig(budget_bytes=FULL * 3 // 4, personal=["layer2"])
    found = first_plan(manifest, config, CHAIN, BATCH)
    assert not set(found.names) & {"layer2.weight", "layer2.bias"}
    with pytest.raises(ConfigError, match="costs of this model are not known"):
        first_plan(manifest, config)
