"""How many steps a node takes where a training must end in time.

A node learns its pace from its last training: that one's time by its steps, with all that a training costs
besides. The first after a start is therefore a whole one, and where a fixed cost is large the following ones
come closer to the budget with each.
"""

from hedgerow.core.effects import Train, Trained


class TimeBudget:
    """Knows what a step took last, on this device and in this life of the process."""

    def __init__(self) -> None:
        self._step_us = 0.0

    def learn(self, took_us: int, steps: int) -> None:
        """Take what a training of so many steps took."""
        self._step_us = took_us / max(steps, 1)

    def max_steps(self, budget_us: int) -> int:
        """Return how many steps end within `budget_us`, at least one; 0 without a bound."""
        if not budget_us or not self._step_us:
            return 0
        return max(1, int(budget_us / self._step_us))


def examples_seen(job: Train, result: Trained) -> int:
    """Return n, what an update says of its examples: those that its training has looked at.

    All of the node's after a whole pass; less where the time budget ended the first pass early. Neither the
    number of passes nor that of further steps counts: kappa tells of those.
    """
    if not job.max_steps:
        return result.examples
    return min(result.examples, result.steps * job.batch_size)
