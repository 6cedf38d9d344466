"""Partials on their way into a version: being made durable, waiting for a merge, or in one."""

from collections import defaultdict
from dataclasses import dataclass

from aggregator.rows import CommitVersion
from hedgerow.core.messages import Header, Partial, Receipt, UpdateId
from hedgerow.core.partial import PartialAggregate
from hedgerow.core.seqset import KnownUpdates


@dataclass(frozen=True, slots=True)
class Buffered:
    """A partial with the sums already read from it, so that they are checked only once."""

    partial: Partial
    sums: PartialAggregate


class MergeBuffer:
    """Counts original updates, and knows every id that was ever accepted.

    The ids of the ledger are kept for ever; those on their way into it with the gateway that posted them.
    """

    def __init__(self, settled: KnownUpdates) -> None:
        self._settled = settled
        self._coming: dict[UpdateId, str] = {}
        self._accepting: dict[str, Buffered] = {}
        self._waiting: list[Buffered] = []

    def __len__(self) -> int:
        """Return how many original updates wait for a merge."""
        return sum(len(entry.partial.headers) for entry in self._waiting)

    def holds_partial(self, partial_id: str) -> bool:
        """Whether a partial of this id is being made durable or waits for a merge."""
        waiting = any(entry.partial.id == partial_id for entry in self._waiting)
        return waiting or partial_id in self._accepting

    def receipt(self, header: Header) -> Receipt | None:
        """Return the receipt of an update that is known already, else None."""
        if header.id in self._settled:
            return Receipt(header.id, "settled")
        if header.id in self._coming:
            return Receipt(header.id, "admitted")
        return None

    def accept(self, entry: Buffered) -> None:
        """Take a partial of unknown updates; it waits only once it is `durable`."""
        self._accepting[entry.partial.id] = entry
        self._coming.update((h.id, entry.partial.gateway) for h in entry.partial.headers)

    def durable(self, partial_id: str) -> None:
        """An accepted partial is on disk."""
        self._waiting.append(self._accepting.pop(partial_id))

    def drain(self) -> list[Buffered]:
        """Take everything that waits, in the order in which it became durable."""
        entries, self._waiting = self._waiting, []
        return entries

    def settle(self, commit: CommitVersion) -> dict[str, list[UpdateId]]:
        """A version is on disk: return its updates' ids by the gateway that posted them."""
        by_gateway: dict[str, list[UpdateId]] = defaultdict(list)
        for header in commit.headers:
            self._settled.add(header.id)
            by_gateway[self._coming.pop(header.id)].append(header.id)
        return by_gateway
