"""When training ends."""

from collections.abc import Mapping

from hedgerow.core.config import StopConfig
from hedgerow.core.versions import LIFE_VERSIONS


class StopRule:
    """Decides from evaluations alone; `done` is "" while training goes on, else why it ended."""

    def __init__(self, stop: StopConfig) -> None:
        self.done = ""
        self.verifying = False
        self._stop = stop

    def evaluated(self, version: int, metrics: Mapping[str, float], newest: int) -> bool:
        """Take a version's metrics while `newest` is the newest version, merged or being merged.

        Returns True when training ends now. An evaluation may end after its version was followed by
        others: when it reached the target, `verifying` pauses merging until the newest one is evaluated
        too, so that what is served in the end is what was measured.
        """
        target = self._stop.target
        value = metrics.get(self._stop.metric, float("-inf"))
        reached = target is not None and value >= target
        self.verifying = reached and version < newest
        if reached and version == newest:
            return self.close("target")
        return self._is_last(version) and self.close("max-versions")

    def may_merge(self, newest: int) -> bool:
        """Whether a version after `newest` is wanted."""
        return not self.done and not self.verifying and not self._is_last(newest)

    def evaluation_failed(self) -> None:
        """Nothing was measured: merging does not wait for it."""
        self.verifying = False

    def _is_last(self, version: int) -> bool:
        """Whether a version is the last that was asked for; in a new life of numbers the count goes on."""
        return version % LIFE_VERSIONS >= self._stop.max_versions

    def close(self, why: str) -> bool:
        """End training for a reason; True when it was still going on."""
        if self.done:
            return False
        self.done = why
        return True
