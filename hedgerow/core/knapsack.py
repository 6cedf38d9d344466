"""The exact 0/1 knapsack: which items of most value fit, for real values and whole costs.

Items are taken up one by one, those of most value per cost first, and of all sets made so far only those are
kept that no other beats in cost and value at once (Nemhauser & Ullmann, 1969, "Discrete dynamic programming
and capital allocation"). Sets whose best conceivable completion (the rest taken in fractions: Dantzig, 1957,
"Discrete-variable extremum problems") is worth no more than a set already found are dropped. Costs are never
rounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST_SETS = 1 << 14
"""Bound of the sets kept at a time; 150 units of a model need a few hundred."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packed:
    """The chosen items' numbers, ascending, with their cost and value.

    `exact` is False where MOST_SETS was reached: the sets of the best prospects went on.
    """

    items: tuple[int, ...]
    cost: int
    value: float
    exact: bool = True


def pack(values: Sequence[float], costs: Sequence[int], capacity: int) -> Packed:
    """Return a set of items of the largest total value whose total cost is at most `capacity`.

    Values are finite, costs 0 or more; items of no value are left out. Equal input gives an equal result.
    Raises ValueError for other input.
    """
    items = _Items.of(values, costs, capacity)
    sets = _Sets.empty(len(items.order))
    best_value, best, exact = -1.0, sets.members[0], True
    for number in range(len(items.order) + 1):
        found, ends = items.filled(number, capacity - sets.costs)
        top = int((sets.values + found).argmax())
        if sets.values[top] + found[top] > best_value:
            best_value = float(sets.values[top] + found[top])
            best = sets.members[top].copy()
            best[number : ends[top]] = True
        bounds = sets.values + items.at_best(number, capacity - sets.costs)
        sets, whole = sets.promising(bounds, best_value)
        exact = exact and whole
        if number == len(items.order) or not len(sets.costs):
            break
        sets = sets.with_item(number, items.values[number], items.costs[number], capacity)
    chosen = tuple(sorted(items.order[i] for i in np.flatnonzero(best)))
    value = float(sum(values[i] for i in chosen))
    return Packed(chosen, sum(costs[i] for i in chosen), value, exact)


def upper_bound(values: Sequence[float], costs: Sequence[int], capacity: int) -> float:
    """Return a bound of what `pack` can reach: its value if items could be taken in fractions."""
    items = _Items.of(values, costs, capacity)
    return float(items.at_best(0, np.array([max(capacity, 0)], np.int64))[0])


@dataclass(frozen=True, slots=True)
class _Items:
    """The items that may be chosen, by falling value per cost, with running sums, shape (n + 1,)."""

    order: tuple[int, ...]
    values: Floats
    costs: Ints
    cost_sums: Ints
    value_sums: Floats

    @classmethod
    def of(cls, values: Sequence[float], costs: Sequence[int], capacity: int) -> "_Items":
        if len(values) != len(costs):
            raise ValueError(f"{len(values)} values and {len(costs)} costs; need as many")
        if not np.isfinite(np.asarray(values, np.float64)).all() or min(costs, default=0) < 0:
            raise ValueError("values must be finite and costs 0 or more")
        useful = [i for i in range(len(values)) if values[i] > 0 and costs[i] <= capacity]
        order = tuple(sorted(useful, key=lambda i: (-values[i] / max(costs[i], 1e-9), i)))
        own_values = np.array([values[i] for i in order], np.float64)
        own_costs = np.array([costs[i] for i in order], np.int64)
        return cls(
            order,
            own_values,
            own_costs,
            np.concatenate([[0], own_costs.cumsum()]).astype(np.int64),
            np.concatenate([[0.0], own_values.cumsum()]),
        )

    def filled(self, start: int, rooms: Ints) -> tuple[Floats, NDArray[np.intp]]:
        """Fill each room with items from `start` on up to the first that does not fit: values, ends."""
        ends = np.searchsorted(self.cost_sums, self.cost_sums[start] + rooms, side="right") - 1
        return self.value_sums[ends] - self.value_sums[start], ends

    def at_best(self, start: int, rooms: Ints) -> Floats:
        """Return the value of each room filled from `start` on, with a fraction of the last item."""
        found, ends = self.filled(start, rooms)
        following = np.minimum(ends + 1, len(self.order))
        cost = np.maximum(self.cost_sums[following] - self.cost_sums[ends], 1)
        left = self.cost_sums[start] + rooms - self.cost_sums[ends]
        more = (self.value_sums[following] - self.value_sums[ends]) * left / cost
        bounds: Floats = found + more
        return bounds


@dataclass(frozen=True, slots=True)
class _Sets:
    """Sets of items, by rising cost and value: `members`, shape (sets, n), says which items."""

    costs: Ints
    values: Floats
    members: NDArray[np.bool_]

    @classmethod
    def empty(cls, items: int) -> "_Sets":
        """Return the empty set alone."""
        return cls(np.zeros(1, np.int64), np.zeros(1), np.zeros((1, items), np.bool_))

    def with_item(self, number: int, value: float, cost: int, capacity: int) -> "_Sets":
        """Return the sets with and without one more item; where two cost alike, the worthier."""
        fits = np.flatnonzero(self.costs + cost <= capacity)
        costs = np.concatenate([self.costs, self.costs[fits] + cost])
        values = np.concatenate([self.values, self.values[fits] + value])
        members = np.concatenate([self.members, self.members[fits]])
        members[len(self.costs) :, number] = True
        order = np.lexsort((-values, costs))
        worth = values[order]
        beaten_by = np.concatenate([[-np.inf], np.maximum.accumulate(worth)[:-1]])
        return _Sets(costs, values, members).rows(order[worth > beaten_by])

    def promising(self, bounds: Floats, known: float) -> tuple["_Sets", bool]:
        """Drop the sets whose bound is not above `known`; say whether all others could be kept."""
        rows = np.flatnonzero(bounds > known * (1 + 1e-12))
        if len(rows) <= MOST_SETS:
            return self.rows(rows), True
        best = np.argsort(-bounds[rows], kind="stable")[:MOST_SETS]
        return self.rows(rows[np.sort(best)]), False

    def rows(self, rows: NDArray[np.intp]) -> "_Sets":
        """Return some of the sets."""
        return _Sets(self.costs[rows], self.values[rows], self.members[rows])
