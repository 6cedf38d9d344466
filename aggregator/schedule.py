"""When the fleet is asked what its units are worth, and when its plan is searched anew."""

from collections.abc import Mapping
from math import ceil

from hedgerow.core.config import PlanConfig
from hedgerow.core.rules import ProbeRequest

_LEAST_ANSWERS = 3
_PROGRESS = 0.001
"""An improvement by less than this share is none."""
_PATIENCE = 10
_TERM_BITS = 24


class Schedule:
    """Asks before a search is due, and calls it due when enough nodes have answered.

    `nodes` is the fleet's size. The first plan rests on no measurement: it is searched anew after
    `plan.warmup_versions`, because gradients of a model that knows nothing point to the wrong units. Later
    searches are due at multiples of `plan.replan_versions`, which a restart does not shift, and when the
    loss (or else `metric`) has not improved for `plan.stall_versions`.
    """

    def __init__(
        self, plan: PlanConfig, *, nodes: int, metric: str, version: int, term: int
    ) -> None:
        self.request: ProbeRequest | None = None
        self.needed = min(nodes, max(_LEAST_ANSWERS, ceil(plan.probe_share * nodes / 2)))
        self._plan = plan
        self._share = min(1.0, max(plan.probe_share, 2 * self.needed / nodes))
        self._metric = metric
        first = min(plan.warmup_versions, plan.replan_versions or plan.warmup_versions)
        self._searched = version >= max(first, 1)
        self._due = self._next_due(version) if self._searched else first
        self._number = term << _TERM_BITS
        self._opened = version
        self._best: float | None = None
        self._best_version = version

    def published(self, version: int) -> int | None:
        """A version is to be published: return the number of the round that it opens, if it opens one.

        A round that too few have answered for long is followed by one that asks others.
        """
        near = self._due is not None and version >= self._due - self._lead
        waited = version - self._opened >= max(self._plan.replan_versions, _PATIENCE)
        if self.request is not None and not waited:
            return None
        if self.request is None and not near and not self._stalled(version):
            return None
        self._number += 1
        self._opened = version
        plan = self._plan
        self.request = ProbeRequest(
            round=self._number, share=self._share, batches=plan.probe_batches
        )
        return self._number

    def reason(self, version: int, answers: int) -> str:
        """Return why a search is due now, with so many answers in the open round; "" while none is."""
        if self.request is None or answers < self.needed:
            return ""
        if self._due is not None and version >= self._due:
            return "interval" if self._searched else "first-values"
        return "stall" if self._stalled(version) else ""

    def decided(self, version: int) -> None:
        """A search is over, whatever came of it."""
        self.request = None
        self._searched = True
        self._due = self._next_due(version)
        self._best_version = version

    def evaluated(self, version: int, metrics: Mapping[str, float]) -> None:
        """Take a version's metrics."""
        score = -metrics["loss"] if "loss" in metrics else metrics.get(self._metric)
        if score is None:
            return
        if self._best is None or score > self._best + _PROGRESS * abs(self._best):
            self._best, self._best_version = score, max(version, self._best_version)

    @property
    def _lead(self) -> int:
        """How many versions before a search the fleet is asked: few before the first one."""
        soon = self._plan.replan_versions if self._searched else self._plan.warmup_versions
        return max(1, soon // 5)

    def _stalled(self, version: int) -> bool:
        bound = self._plan.stall_versions if self._plan.replan_versions else 0
        return 0 < bound <= version - self._best_version

    def _next_due(self, version: int) -> int | None:
        every = self._plan.replan_versions
        return (version // every + 1) * every if every else None
