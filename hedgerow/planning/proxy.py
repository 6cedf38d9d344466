"""Values of units from a sample of the training data."""

from collections.abc import Mapping

from hedgerow.core.errors import ConfigError
from hedgerow.planning.budgets import Tell
from hedgerow.planning.workbench import MOST_PARTS, Workbench
from hedgerow.runtime.ports import ComputeError


def proxy_values(bench: Workbench, tell: Tell) -> Mapping[str, float]:
    """Return each unit's mean squared gradient norm at the parameters at hand, over about the whole sample.

    This is what a step along the unit's gradient gains per learning rate, to first order. The batches are
    drawn in several parts, so that the progress can be shown. Raises ConfigError where gradients are not
    finite.
    """
    batches = max(bench.examples // bench.batch, 1)
    parts = min(MOST_PARTS, batches)
    sums: dict[str, float] = {}
    for part in range(parts):
        tell("taking gradients of the sample", part, parts)
        count = batches * (part + 1) // parts - batches * part // parts
        try:
            squares = bench.probe(count, part)
        except ComputeError as error:
            raise ConfigError(f"--values proxy: {error}; or use --values prior") from error
        for name, square in squares.items():
            sums[name] = sums.get(name, 0.0) + square * count
    return {name: total / batches for name, total in sums.items()}
