"""Which updates are known: an exact set of ids whose memory follows the gaps, not the history.

A node numbers its updates 1, 2, 3, ... within an epoch, so what is known of it is a few ranges, however
long it has been running. No window or cache would do: a repeat may come back after months.
"""

from bisect import bisect_right
from collections.abc import Iterable

from hedgerow.core.messages import UpdateId


class SeqSet:
    """A set of non-negative integers kept as sorted, disjoint, non-touching ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def __contains__(self, seq: int) -> bool:
        at = bisect_right(self._starts, seq) - 1
        return at >= 0 and seq <= self._ends[at]

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """The ranges, both ends included."""
        return list(zip(self._starts, self._ends, strict=True))

    def add(self, seq: int) -> None:
        """Add one number; adding it again changes nothing."""
        if seq in self:
            return
        at = bisect_right(self._starts, seq)
        joins_left = at > 0 and self._ends[at - 1] == seq - 1
        joins_right = at < len(self._starts) and self._starts[at] == seq + 1
        if joins_left and joins_right:
            self._ends[at - 1] = self._ends[at]
            del self._starts[at], self._ends[at]
        elif joins_left:
            self._ends[at - 1] = seq
        elif joins_right:
            self._starts[at] = seq
        else:
            self._starts.insert(at, seq)
            self._ends.insert(at, seq)


class KnownUpdates:
    """The set of update ids in the ledger or on their way into it."""

    def __init__(self, ids: Iterable[UpdateId] = ()) -> None:
        self._seqs: dict[tuple[str, int], SeqSet] = {}
        for update_id in ids:
            self.add(update_id)

    def __contains__(self, update_id: UpdateId) -> bool:
        seqs = self._seqs.get((update_id.node, update_id.epoch))
        return seqs is not None and update_id.seq in seqs

    def add(self, update_id: UpdateId) -> None:
        """Add one id."""
        self._seqs.setdefault((update_id.node, update_id.epoch), SeqSet()).add(update_id.seq)
