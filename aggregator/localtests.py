"""What the nodes' tests on their own examples come to: how the model serves them, and the worst off."""

from collections.abc import Iterable
from statistics import fmean

from aggregator.status import LocalMetric
from hedgerow.core.configrules import FALLING
from hedgerow.core.messages import NodeState

_DECILE = 10
_MOST = 32
"""Metrics told apart: names come from the nodes, so their number must have a bound."""

_LARGEST = 1e30
"""Above this a sum over nodes might overflow, which would raise."""


def local_metrics(states: Iterable[NodeState]) -> list[LocalMetric]:
    """Return mean and worst decile over the nodes of each metric that they have reported, sorted by name.

    The worst decile is the mean of the worst tenth of the nodes, of one at least; losses and errors are worst
    where they are highest.
    """
    found: dict[tuple[str, str], list[float]] = {}
    for state in states:
        for name, value in sorted(state.metrics.items()):
            kind, _, metric = name.partition(" ")
            key = (metric, kind)
            if abs(value) <= _LARGEST and (key in found or len(found) < _MOST):
                found.setdefault(key, []).append(value)
    return [
        LocalMetric(metric, kind, fmean(values), _worst_decile(metric, values), len(values))
        for (metric, kind), values in sorted(found.items())
    ]


def _worst_decile(metric: str, values: list[float]) -> float:
    worst_first = sorted(values, reverse=metric in FALLING)
    return fmean(worst_first[: max(1, len(values) // _DECILE)])
