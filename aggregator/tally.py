"""How many updates each version has settled: what the cloud has learned since some version."""

from array import array
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable

from aggregator.rows import LedgerRow


class Tally:
    """Counts of settled updates by version: 16 bytes for each version that settled any."""

    def __init__(self) -> None:
        self._versions = array("q")
        self._sums = array("q")

    @classmethod
    def of(cls, rows: Iterable[LedgerRow]) -> "Tally":
        """Return the tally of a ledger."""
        tally = cls()
        for version, count in sorted(Counter(row.version for row in rows).items()):
            tally.add(version, count)
        return tally

    def add(self, version: int, count: int) -> None:
        """A version newer than all before settled `count` updates."""
        if count:
            self._versions.append(version)
            self._sums.append(self._up_to(len(self._sums)) + count)

    def between(self, after: int, through: int) -> int:
        """Return how many updates the versions in (after, through] settled."""
        first, last = (bisect_right(self._versions, version) for version in (after, through))
        return self._up_to(last) - self._up_to(first)

    def _up_to(self, place: int) -> int:
        return self._sums[place - 1] if place else 0
