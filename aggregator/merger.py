"""Folds what is buffered into the next version, by the strategy."""

from collections.abc import Sequence

from aggregator.lineage import Lineage
from aggregator.mergebuffer import Buffered
from aggregator.rows import CommitVersion
from hedgerow.core.partial import add
from hedgerow.core.strategy import Merging, Strategy
from hedgerow.core.units import Vector


class Merger:
    """Keeps the newest parameters, shape (P,), and the strategy's state.

    The state starts anew with the process; only strategies without one replay over restarts.
    """

    def __init__(self, strategy: Strategy, params: Vector, lineage: Lineage) -> None:
        self.params = params
        self._strategy = strategy
        self._state = strategy.init(params)
        self._lineage = lineage

    def fold(self, entries: Sequence[Buffered], term: int) -> CommitVersion:
        """Return the next version, to be made durable; it is not the newest one until then."""
        lineage = self._lineage
        merging = merging_of(self.params, entries, lineage)
        params, self._state = self._strategy.apply(self._state, merging)
        headers = tuple(header for entry in entries for header in entry.partial.headers)
        lineage.rulebook.observe(headers, lineage.version)
        ids = tuple(entry.partial.id for entry in entries)
        return CommitVersion(lineage.next(params, term), params, ids, headers)


def merging_of(params: Vector, entries: Sequence[Buffered], lineage: Lineage) -> Merging:
    """Return what a strategy folds into the version after the lineage's newest."""
    return Merging(
        params,
        lineage.context(),
        add(*(entry.sums for entry in entries)),
        tuple(one for entry in entries for one in entry.contributions),
    )
