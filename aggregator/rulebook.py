"""The rules of the next version: configured ones, and those that follow what was merged lately."""

from collections import deque
from collections.abc import Iterable
from statistics import median

from hedgerow.core.config import Config
from hedgerow.core.errors import ConfigError
from hedgerow.core.messages import Header
from hedgerow.core.partial import fixed_point_scale
from hedgerow.core.rules import Rules
from hedgerow.core.staleness import law_of

_KAPPAS_KEPT = 256
_STALENESS_SMOOTHING = 0.95


class Rulebook:
    """Learns from merged updates: `mean_staleness` is smoothed, in versions.

    Raises ConfigError when the configured weights leave the fixed point no precision.
    """

    def __init__(self, config: Config) -> None:
        self.mean_staleness = 0.0
        self._config = config
        self._kappas: deque[float] = deque(maxlen=_KAPPAS_KEPT)
        try:
            fixed_point_scale(self.rules())
        except ValueError as error:
            raise ConfigError(f"aggregation: {error}") from error

    def observe(self, headers: Iterable[Header], version: int) -> None:
        """Learn from updates merged into the version after `version`: their staleness and kappa.

        An island's updates teach nothing: they came at once, however old, or of versions of its own.
        """
        for header in headers:
            staleness = version - header.base_version
            if not 0 <= staleness <= self._config.staleness.tau_max:
                continue
            kept = _STALENESS_SMOOTHING * self.mean_staleness
            self.mean_staleness = kept + (1 - _STALENESS_SMOOTHING) * staleness
            if 0 < header.kappa < float("inf"):
                self._kappas.append(header.kappa)

    def rules(self) -> Rules:
        """Return the rules to publish with the next version."""
        aggregation = self._config.aggregation
        return Rules(
            staleness=law_of(self._config.staleness, self.mean_staleness),
            clip_norm=self._config.training.clip_norm,
            example_exponent=aggregation.example_exponent,
            example_cap=aggregation.example_cap,
            variance=aggregation.variance,
            kappa_ref=median(self._kappas) if self._kappas else 0.0,
            server_learning_rate=aggregation.learning_rate or self._automatic_rate(),
            count_max=aggregation.count_max,
            least_island_weight=self._config.island.least_weight,
        )

    def _automatic_rate(self) -> float:
        """Return 1 / (1 + tau / 2), tau being the mean staleness.

        About tau merges share one origin, and the half-life law damps each to a half: so the steps of one
        origin add up to tau / (2 + tau) of a whole one. Whole steps were measured to overshoot and swing.
        """
        return 1 / (1 + self.mean_staleness / 2)
