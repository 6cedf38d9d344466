"""When a version is evaluated: the newest one, one at a time."""

from collections.abc import Mapping

from aggregator.observer import Observer
from aggregator.rows import Row, SaveMetrics
from hedgerow.core.effects import Evaluate, SetTimer
from hedgerow.core.outlet import Outlet, Saves
from hedgerow.core.units import Vector

EVALUATE_TIMER = "evaluate"
_RETRY_US = 10_000_000


class Evaluations:
    """Asks for evaluations; `evaluated_version` is -1 before the first."""

    def __init__(
        self, outlet: Outlet, saves: Saves[Row], observer: Observer, evaluated_version: int
    ) -> None:
        self._outlet = outlet
        self._saves = saves
        self._observer = observer
        self._evaluated_version = evaluated_version
        self._under_way = False

    def consider(self, newest: int, params: Vector) -> None:
        """Evaluate the newest version unless one is under way; merging may be faster and skip some."""
        if not self._under_way and newest > self._evaluated_version:
            self._under_way = True
            self._outlet.do(Evaluate(self._outlet.next_job(), newest, params))

    def done(self, version: int, metrics: Mapping[str, float], at_s: float) -> None:
        """A version's metrics are here, `at_s` seconds after the start: show and keep them."""
        self._under_way = False
        self._evaluated_version = version
        self._observer.evaluated(version, metrics, at_s)
        self._outlet.record("evaluated", version=version, metrics=dict(metrics))
        self._saves.save(SaveMetrics(version, metrics))

    def failed(self, detail: str) -> None:
        """An evaluation failed: the next one waits for the timer."""
        self._outlet.record("evaluation_failed", reason="compute", detail=detail)
        self._outlet.do(SetTimer(EVALUATE_TIMER, _RETRY_US))

    def retry(self) -> None:
        """The timer fired."""
        self._under_way = False
