"""Tests of the model on the node's own examples: as it is published, and with the node's personal units.

They follow a training, hold up the next one, and their figures leave with the node's state: no examples do.
"""

from collections.abc import Mapping
from math import isfinite

from edge_node.personal import PersonalUnits
from edge_node.replica import Replica
from hedgerow.core.effects import Evaluate, Evaluated, JobFailed
from hedgerow.core.outlet import Outlet

GLOBAL, PERSONAL = "global", "personal"
"""First words of the metrics' names in a node's state."""

_MOST_METRICS = 16
_LONGEST_NAME = 48


class LocalTest:
    """Tests the adopted version, at most one in `every` (0: none, the node has no examples for it).

    `metrics` are the last test's, named "global NAME" and, where the version has personal units,
    "personal NAME".
    """

    def __init__(self, every: int, personal: PersonalUnits, outlet: Outlet) -> None:
        self.metrics: dict[str, float] = {}
        self._every = every
        self._personal = personal
        self._outlet = outlet
        self._tested: int | None = None
        self._under_way: dict[int, str] = {}
        self._found: dict[str, float] | None = None

    @property
    def busy(self) -> bool:
        """Whether a test is under way."""
        return bool(self._under_way)

    def __contains__(self, job: int) -> bool:
        return job in self._under_way

    def begin(self, replica: Replica) -> None:
        """Test the replica's version, if that is due."""
        base, params = replica.descriptor, replica.params
        if base is None or params is None or self.busy or not self._is_due(base.version):
            return
        self._tested = base.version
        self._found = {}
        asked = {GLOBAL: params}
        if base.personal:
            asked[PERSONAL] = self._personal.laid_over(params, base, replica.manifest)
        for kind, tested in asked.items():
            job = self._outlet.next_job()
            self._under_way[job] = kind
            self._outlet.do(Evaluate(job, base.version, tested))

    def _is_due(self, version: int) -> bool:
        # An island's numbers are far from the aggregator's: either is due after the other.
        far = self._tested is None or abs(version - self._tested) >= self._every
        return self._every > 0 and far

    def finished(self, result: Evaluated) -> None:
        """Take the metrics of one of the test's evaluations; all must succeed."""
        kind = self._under_way.pop(result.job)
        if self._found is None:
            return
        self._found.update({f"{kind} {name}": value for name, value in _bounded(result.metrics)})
        if not self.busy:
            self.metrics = self._found
            self._outlet.record("tested", version=result.version, metrics=dict(self._found))

    def failed(self, failed: JobFailed) -> None:
        """The device could not do it: the last test's metrics stay."""
        del self._under_way[failed.job]
        self._found = None
        self._outlet.record("test_failed", reason="compute", detail=failed.detail)


def _bounded(metrics: Mapping[str, float]) -> list[tuple[str, float]]:
    """Return what fits into a node's state: a user's task may measure anything."""
    fit = [(n, float(v)) for n, v in sorted(metrics.items()) if len(n) <= _LONGEST_NAME]
    return [(name, value) for name, value in fit if isfinite(value)][:_MOST_METRICS]
