"""Partials on their way into a version: being made durable, waiting for a merge, or in one."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from aggregator.rows import CommitVersion, LedgerRow
from hedgerow.core.messages import Header, Partial, Receipt, UpdateId
from hedgerow.core.partial import PartialAggregate
from hedgerow.core.seqset import KnownUpdates
from hedgerow.core.strategy import Contribution
from hedgerow.core.versions import is_provisional

_HASHES_KEPT = 1 << 16
"""Newest updates whose content's hash is kept in memory, about 16 MB; of older ones a fork is not seen."""


@dataclass(frozen=True, slots=True)
class Buffered:
    """A partial with the sums already read from it, so that they are checked only once.

    `contributions` are its updates one by one, where the strategy asks for them.
    """

    partial: Partial
    sums: PartialAggregate
    contributions: tuple[Contribution, ...] = ()


class MergeBuffer:
    """Counts original updates, and knows every id that was ever accepted.

    The ids of the ledger are kept for ever; those on their way into it with their owners: the gateways that
    handed them over, for themselves or for a peer, and so must hear when they are settled.
    """

    def __init__(self, ledger: Sequence[LedgerRow]) -> None:
        self._settled = KnownUpdates(row.header.id for row in ledger)
        self._hashes: dict[UpdateId, int] = {}
        self._coming: dict[UpdateId, set[str]] = {}
        self._accepting: dict[str, Buffered] = {}
        self._waiting: dict[str, Buffered] = {}
        self._islands: dict[str, Buffered] = {}
        self._merging: dict[str, Buffered] = {}
        self._remember(row.header for row in ledger[-_HASHES_KEPT:])

    def __len__(self) -> int:
        """Return how many original updates wait for a merge; those of islands wait for none."""
        return sum(len(entry.partial.headers) for entry in self._waiting.values())

    @property
    def held(self) -> int:
        """How many original updates are not merged durably yet."""
        return len(self._coming)

    def count_since(self, version: int) -> int:
        """Return how many of those that wait were trained from `version` or a later one."""
        headers = (h for entry in self._waiting.values() for h in entry.partial.headers)
        return sum(header.base_version >= version for header in headers)

    def holds(self, partial_id: str) -> bool:
        """Whether a partial of this id has not been merged durably yet."""
        return any(partial_id in part for part in self._parts)

    @property
    def is_saving(self) -> bool:
        """Whether any partial is on its way to the disk."""
        return bool(self._accepting)

    def is_accepting(self, partial_id: str) -> bool:
        """Whether a partial of this id is on its way to the disk."""
        return partial_id in self._accepting

    def is_accepting_any(self, headers: Iterable[Header]) -> bool:
        """Whether any of these updates is in a partial on its way to the disk."""
        ids = {header.id for header in headers}
        return any(
            header.id in ids
            for entry in self._accepting.values()
            for header in entry.partial.headers
        )

    def oldest_base(self, default: int) -> int:
        """Return the oldest base version of anything held here, `default` when there is nothing older."""
        partials = [entry.partial for part in self._parts for entry in part.values()]
        bases = [h.base_version for p in partials for h in p.headers]
        bases += [p.island.base_version for p in partials if p.island is not None]
        return min((base for base in bases if not is_provisional(base)), default=default)

    def receipt(self, header: Header, owner: str) -> Receipt | None:
        """Return the receipt of a known update, else None; `owner` will hear of its settling, too.

        An update of a known id with another content is rejected as a fork; the receipt says which content.
        """
        update_id = header.id
        if update_id not in self._settled and update_id not in self._coming:
            return None
        ours = self._hashes.get(update_id, 0)
        if ours and header.hash and ours != header.hash:
            return Receipt(update_id, "rejected", "fork", header.hash)
        if update_id in self._settled:
            return Receipt(update_id, "settled", hash=ours)
        self._coming[update_id].add(owner)
        return Receipt(update_id, "admitted")

    def accept(self, entry: Buffered, owner: str) -> None:
        """Take a partial of unknown updates; it waits only once it is `durable`."""
        self._accepting[entry.partial.id] = entry
        self._coming.update((h.id, {owner}) for h in entry.partial.headers)
        self._remember(entry.partial.headers)

    def durable(self, partial_id: str) -> None:
        """An accepted partial is on disk."""
        entry = self._accepting.pop(partial_id)
        waiting = self._waiting if entry.partial.island is None else self._islands
        waiting[partial_id] = entry

    def drain(self) -> list[Buffered]:
        """Take everything that waits, in the order in which it became durable, into a merge."""
        self._merging, self._waiting = self._waiting, {}
        return list(self._merging.values())

    def drain_island(self) -> list[Buffered]:
        """Take the contribution of the island that has waited longest into a merge; [] without any."""
        for partial_id in self._islands:
            self._merging = {partial_id: self._islands.pop(partial_id)}
            return list(self._merging.values())
        return []

    def settle(self, commit: CommitVersion) -> dict[str, list[Receipt]]:
        """The merge is on disk: return its updates' receipts by the gateways that must hear of it."""
        self._merging = {}
        by_gateway: dict[str, list[Receipt]] = defaultdict(list)
        for header in commit.headers:
            self._settled.add(header.id)
            for gateway in sorted(self._coming.pop(header.id)):
                receipt = Receipt(header.id, "settled", hash=header.hash)
                by_gateway[gateway].append(receipt)
        return by_gateway

    @property
    def _parts(self) -> tuple[dict[str, Buffered], ...]:
        return (self._accepting, self._waiting, self._islands, self._merging)

    def _remember(self, headers: Iterable[Header]) -> None:
        for header in headers:
            if header.hash:
                self._hashes[header.id] = header.hash
        while len(self._hashes) > _HASHES_KEPT:
            del self._hashes[next(iter(self._hashes))]
