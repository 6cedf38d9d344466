"""Folds what is buffered into the next version: updates by the strategy, an island's contribution alone."""

from collections.abc import Sequence
from typing import Any

from aggregator.islands import merge_island
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

    def fold(
        self, entries: Sequence[Buffered], term: int, version: int | None = None
    ) -> CommitVersion:
        """Return the next version, to be made durable; it is not the newest one until then.

        Its number is the next one, or `version`; without entries only the number is new.
        """
        lineage = self._lineage
        params, self._state = step(self._strategy, self._state, self.params, entries, lineage)
        headers = tuple(header for entry in entries for header in entry.partial.headers)
        lineage.rulebook.observe(headers, lineage.version)
        ids = tuple(entry.partial.id for entry in entries)
        return CommitVersion(lineage.next(params, term, version), params, ids, headers)


def step(
    strategy: Strategy, state: Any, params: Vector, entries: Sequence[Buffered], lineage: Lineage
) -> tuple[Vector, Any]:
    """Return the parameters of the version after the lineage's newest, shape (P,), and the next state.

    `params` are the newest version's. The entries are those of one version, in the order of their merge: an
    island's contribution by itself, or any number of others; none where a version only has a new number.
    """
    if not entries:
        return params, state
    island = entries[0].partial.island
    if island is not None:
        return merge_island(params, entries[0].partial, island, lineage), state
    return strategy.apply(state, _merging_of(params, entries, lineage))


def _merging_of(params: Vector, entries: Sequence[Buffered], lineage: Lineage) -> Merging:
    """Return what a strategy folds into the version after the lineage's newest."""
    return Merging(
        params,
        lineage.context(),
        add(*(entry.sums for entry in entries)),
        tuple(one for entry in entries for one in entry.contributions),
    )
