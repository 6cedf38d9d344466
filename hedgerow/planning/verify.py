"""Short trainings of the best plans, to see whether what they are worth on paper holds."""

from collections.abc import Sequence

from hedgerow.planning.oracle import feedback_bytes
from hedgerow.planning.report import Verified
from hedgerow.planning.workbench import Workbench
from hedgerow.runtime.ports import ComputeError

PASSES = 5
"""Passes over the sample; enough to tell plans apart, and seconds on a small model."""


def verified(bench: Workbench, names: Sequence[str], budget_bytes: int) -> Verified:
    """Train a plan from the parameters at hand within the budget, and evaluate it.

    All plans see the same examples in the same order. A training that fails is reported, not raised.
    """
    try:
        done, after = bench.train(names, PASSES, budget_bytes - feedback_bytes(bench, names))
    except ComputeError as error:
        return Verified(failed=str(error))
    assert done.execution is not None
    return Verified(
        metrics=bench.evaluate(after),
        peak_bytes=done.peak_bytes,
        execution=done.execution.in_words,
    )
