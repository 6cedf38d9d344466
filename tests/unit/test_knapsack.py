"""The knapsack is exact: no set of items that fits is worth more."""

import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.core import knapsack
from hedgerow.core.knapsack import pack, upper_bound
from tests.unit.strategies import LAW

NUMBERS = st.one_of(
    st.floats(0, 1e6, allow_nan=False, width=32), st.sampled_from([-1.0, 0.0, 1.0, 1.0, 2.0])
)
ITEMS = st.lists(st.tuples(NUMBERS, st.integers(0, 40)), max_size=11)


def best_by_trying_all(items: list[tuple[float, int]], capacity: int) -> float:
    return max(
        sum(value for value, _ in chosen)
        for size in range(len(items) + 1)
        for chosen in combinations(items, size)
        if sum(cost for _, cost in chosen) <= max(capacity, 0)
    )


@LAW
@given(ITEMS, st.integers(-1, 200))
def test_nothing_that_fits_is_worth_more(items: list[tuple[float, int]], capacity: int) -> None:
    values, costs = [v for v, _ in items], [c for _, c in items]
    found = pack(values, costs, capacity)
    assert found.exact
    assert list(found.items) == sorted(set(found.items))
    assert found.cost == sum(costs[item] for item in found.items) <= max(capacity, 0)
    assert found.value == pytest.approx(sum(values[item] for item in found.items))
    assert found.value == pytest.approx(best_by_trying_all(items, capacity), rel=1e-9)
    assert upper_bound(values, costs, capacity) >= found.value * (1 - 1e-9)
    assert pack(values, costs, capacity) == found


def model_like(units: int, seed: int) -> tuple[list[float], list[int]]:
    """Return layers of four groups of equal size each, and values of many orders of magnitude."""
    rng = random.Random(f"{seed}:model")
    sizes = [rng.randint(16, 20_000) for _ in range(units // 4)]
    return [rng.lognormvariate(0, 2) for _ in range(len(sizes) * 4)], [4 * s for s in sizes * 4]


@pytest.mark.parametrize("seed", range(4))
def test_a_model_of_150_units_is_solved_exactly(seed: int) -> None:
    values, costs = model_like(152, seed)
    found = pack(values, costs, sum(costs) // 5)
    assert found.exact
    # Greedy by density is a lower bound, the fractions' bound an upper one.
    left, greedy = sum(costs) // 5, 0.0
    for item in sorted(range(len(values)), key=lambda i: -values[i] / costs[i]):
        if costs[item] <= left:
            left, greedy = left - costs[item], greedy + values[item]
    assert greedy <= found.value * (1 + 1e-9)
    assert found.value <= upper_bound(values, costs, sum(costs) // 5) * (1 + 1e-9)


def test_costs_are_not_rounded() -> None:
    big = 1 << 40
    assert pack([1.0, 1.0], [big, big + 1], 2 * big).items == (0,)
    assert pack([1.0, 1.0], [big, big + 1], 2 * big + 1).items == (0, 1)


def test_what_costs_nothing_is_taken_and_what_is_worth_nothing_is_left() -> None:
    assert pack([0.5, 0.0, -1.0], [0, 0, 0], 0).items == (0,)
    assert pack([], [], 10).items == ()


def test_too_many_sets_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random("3:hard")
    costs = [2 * rng.randint(1 << 20, 1 << 21) for _ in range(30)]
    values = [float(cost) for cost in costs]
    monkeypatch.setattr(knapsack, "MOST_SETS", 4)
    capacity = sum(costs) // 2 | 1
    found = pack(values, costs, capacity)
    assert not found.exact
    assert 0.9 * capacity < found.cost <= capacity


@pytest.mark.parametrize(
    ("values", "costs"), [([1.0], []), ([float("nan")], [1]), ([1.0, 2.0], [1, -1])]
)
def test_nonsense_is_refused(values: list[float], costs: list[int]) -> None:
    with pytest.raises(ValueError, match=r"values|need as many"):
        pack(values, costs, 10)
