"""What each unit is worth to train, from the nodes' answers to probes.

A unit's value is the mean over nodes of its mean squared gradient norm |g_u|^2, as in ElasticTrainer (2023)
and MCUNetV3 (2022). Gradients shrink as a model learns and not every node can probe every unit, so a former
round counts half as much as the one after it.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from hedgerow.core.messages import UnitValues

ROUNDS_KEPT = 3
LARGEST_VALUE = 1e30
"""Above this a training has diverged, and a sum over nodes might overflow."""

_MAX_NODES = 8192
_FORMER_ROUND = 0.5


@dataclass(slots=True)
class _Round:
    nodes: set[str] = field(default_factory=set)
    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)


class ValueBook:
    """Keeps the sums of the newest rounds; each node counts once per round."""

    def __init__(self, units: Iterable[str]) -> None:
        self._units = frozenset(units)
        self._rounds: dict[int, _Round] = {}

    def open(self, number: int) -> None:
        """Begin a round; numbers grow. The oldest round beyond three is forgotten."""
        self._rounds[number] = _Round()
        while len(self._rounds) > ROUNDS_KEPT:
            del self._rounds[min(self._rounds)]

    def answers(self, number: int) -> int:
        """Return how many nodes have answered in a round."""
        return len(self._rounds[number].nodes) if number in self._rounds else 0

    def take(self, answer: UnitValues) -> str:
        """Take a node's answer; return "" or why it was refused."""
        found = self._rounds.get(answer.round)
        if found is None:
            return "unknown-round"
        if answer.node in found.nodes:
            return "repeated"
        if len(found.nodes) >= _MAX_NODES:
            return "full"
        if not answer.values or not self._units >= answer.values.keys():
            return "shape"
        if not all(_is_sound(value) for value in answer.values.values()):
            return "not-finite"
        found.nodes.add(answer.node)
        for unit, value in answer.values.items():
            found.sums[unit] = found.sums.get(unit, 0.0) + value
            found.counts[unit] = found.counts.get(unit, 0) + 1
        return ""

    def means(self) -> dict[str, float]:
        """Return the mean value of each unit that was ever probed, newer rounds counting more."""
        totals: dict[str, float] = {}
        weights: dict[str, float] = {}
        for age, number in enumerate(sorted(self._rounds, reverse=True)):
            found, weight = self._rounds[number], _FORMER_ROUND**age
            for unit, total in found.sums.items():
                totals[unit] = totals.get(unit, 0.0) + weight * total
                weights[unit] = weights.get(unit, 0.0) + weight * found.counts[unit]
        return {unit: totals[unit] / weights[unit] for unit in sorted(totals)}


def _is_sound(value: float) -> bool:
    return math.isfinite(value) and 0 <= value <= LARGEST_VALUE
