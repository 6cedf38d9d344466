"""The promises that need no parameters, checked from the nodes' and the aggregator's files.

For each node and epoch: issued = applied + rejected + expired + coalesced + (outbox not yet in the ledger),
where applied counts the ledger's rows. Both sides are read independently, update by update.

Two things are known to be unknowable, and are counted instead: what a node's books had forgotten when its
disk was put back (`unknown`: the ledger has it), and what an aggregator's ledger had forgotten when it was
put back (`forgotten`: the node saw it settled in a former life of version numbers).
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from hedgerow.core.messages import UpdateId
from hedgerow.core.versions import LIFE_VERSIONS, is_provisional
from hedgerow.custody.books import (
    APPLIED,
    ENDS,
    HELD,
    REASONED,
    Issued,
    LedgerBook,
    NodeBook,
    Settled,
    ids_of,
)

PROMISES = {
    "law": "issued = applied + rejected + expired + coalesced + in outbox",
    "C1": "each update is in the ledger at most once",
    "C2": "what a node saw settled is in the ledger",
    "C3": "every row of the ledger was issued by its node",
    "C4": "every version is the bit-exact replay of its merge inputs",
    "C6": "every end of an update has a reason",
}
FORK = "fork"


@dataclass(frozen=True)
class Violation:
    """One place where a promise is broken; `promise` is a key of PROMISES."""

    promise: str
    text: str

    def __str__(self) -> str:
        return f"{self.promise}: {self.text}"


@dataclass(frozen=True)
class NodeAccount:
    """One node's updates over all its epochs; `outbox` leaves out what the ledger holds already.

    `forgotten` were settled before the aggregator was put back to an older state; `unknown` are rows of the
    ledger from before this node was.
    """

    node: str
    issued: int
    applied: int
    rejected: int
    expired: int
    outbox: int
    coalesced: int = 0
    forgotten: int = 0
    unknown: int = 0


@dataclass(frozen=True)
class Account:
    """Every node's account, and where the promises are broken."""

    nodes: list[NodeAccount]
    violations: list[Violation]


def check_books(
    books: Iterable[NodeBook], ledger: LedgerBook, without: Collection[str] = ()
) -> Account:
    """Check the books of every node and epoch against the ledger.

    `without` names nodes whose books are lost or elsewhere: their rows are not held against anybody.
    """
    rows: dict[tuple[str, int], dict[int, Settled]] = defaultdict(dict)
    for one, settled in ledger.rows.items():
        rows[one.node, one.epoch][one.seq] = settled
    life = max(ledger.descriptors, default=0) // LIFE_VERSIONS + ledger.restored
    violations = [*_check_once(ledger)]
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for book in books:
        page = _Page(book, rows.pop((book.node, book.epoch), {}), life)
        violations += page.violations()
        sums[book.node].update(page.counts())
    for (node, epoch), seqs in sorted(rows.items()):
        if node in without:
            continue
        text = f"{node} epoch {epoch}: the ledger holds {len(seqs)} updates but the node has no such books"
        violations.append(Violation("C3", text))
    return Account([_account(node, n) for node, n in sorted(sums.items())], violations)


def _account(node: str, counts: Mapping[str, int]) -> NodeAccount:
    return NodeAccount(
        node=node,
        issued=counts["issued"],
        applied=counts["applied"],
        rejected=counts["rejected"],
        expired=counts["expired"],
        outbox=counts["outbox"],
        coalesced=counts["coalesced"],
        forgotten=counts["forgotten"],
        unknown=counts["unknown"],
    )


def _check_once(ledger: LedgerBook) -> Iterator[Violation]:
    """C1 beyond the ledger's own key: no update waits that is merged, and none is in two partials."""
    merged = [one for partials in ledger.merged.values() for one in ids_of(partials)]
    waiting = ids_of(ledger.waiting)
    for one, times in sorted(Counter(merged + waiting).items()):
        if times > 1:
            yield Violation("C1", f"{name_of(one)} is in {times} partial aggregates")
    for one in sorted(set(waiting) & ledger.rows.keys() - set(merged)):
        yield Violation("C1", f"{name_of(one)} is in the ledger and waits to be merged again")


class _Page:
    """One epoch's books beside the ledger's rows of it."""

    def __init__(self, book: NodeBook, rows: dict[int, Settled], life: int) -> None:
        self._book = book
        # The ledger's row of a fork is another update of that name.
        self._forks = {
            s for s, row in book.rows.items() if row.outcome in ENDS and row.reason == FORK
        }
        self._ledger = {seq: row for seq, row in rows.items() if seq not in self._forks}
        self._issued = max(book.rows, default=0)
        self._life = life
        self._unknown = {
            seq for seq in self._ledger if seq not in book.rows and seq >= 1 and book.ended
        }

    def counts(self) -> dict[str, int]:
        """Return the terms of the law."""
        ends = Counter(row.outcome for row in self._book.rows.values())
        held = {seq for seq, row in self._book.rows.items() if row.outcome == HELD}
        return {
            "issued": self._issued,
            "applied": len(self._ledger.keys() - self._unknown),
            **{end: ends[end] for end in ENDS},
            "outbox": len(held - self._ledger.keys()),
            "forgotten": len(self._forgotten),
            "unknown": len(self._unknown),
        }

    def violations(self) -> Iterator[Violation]:
        """Yield what is wrong, the sums first."""
        yield from self._check_sums()
        for seq, row in self._book.rows.items():
            yield from self._check_row(seq, row)
        invented = sorted(self._ledger.keys() - self._book.rows.keys() - self._unknown)
        if invented:
            text = (
                f"the ledger holds {len(invented)} updates that it never issued: {_some(invented)}"
            )
            yield self._violation("C3", text)
        for text in self._book.damaged:
            yield Violation("C3", text)

    def _check_sums(self) -> Iterator[Violation]:
        counts = self.counts()
        issued = counts.pop("issued")
        counts.pop("unknown")
        if issued != sum(counts.values()):
            terms = " + ".join(f"{term} {n}" for term, n in counts.items())
            yield self._violation("law", f"issued {issued} is not {sum(counts.values())} = {terms}")
        missing = sorted(set(range(1, issued + 1)) - self._book.rows.keys())
        if missing:
            yield self._violation("law", f"{len(missing)} updates left no trace: {_some(missing)}")

    def _check_row(self, seq: int, row: Issued) -> Iterator[Violation]:
        settled = self._ledger.get(seq)
        if row.outcome == APPLIED and settled is None and seq not in self._forgotten:
            yield self._violation("C2", f"counts seq {seq} as applied, the ledger does not have it")
        if row.outcome in ENDS and settled is not None:
            text = f"counts seq {seq} as {row.outcome} ({row.reason}), yet it is in the ledger"
            yield self._violation("C2", text)
        if row.outcome in REASONED and not row.reason:
            yield self._violation("C6", f"seq {seq} was {row.outcome} without a reason")
        if row.outcome not in (HELD, APPLIED, *ENDS):
            yield self._violation("C6", f"seq {seq} ended as {row.outcome!r}, which is no end")
        if settled is not None and not _same(row, settled):
            yield self._violation("C3", f"seq {seq} in the ledger is not the update that is held")

    @cached_property
    def _forgotten(self) -> set[int]:
        """What was settled in a life of the aggregator that a backup ended."""
        return {
            seq
            for seq, row in self._book.rows.items()
            if row.outcome == APPLIED
            and seq not in self._ledger
            and not is_provisional(row.base_version)
            and row.base_version // LIFE_VERSIONS < self._life
        }

    def _violation(self, promise: str, text: str) -> Violation:
        return Violation(promise, f"{self._book.name}: {text}")


def _same(row: Issued, settled: Settled) -> bool:
    """Whether a row of the ledger can be the update in the books; hash 0 says nothing."""
    header = settled.header
    known = row.hash and header.hash
    # An update that its node lost the row of is held with base version -1.
    base = row.base_version in (header.base_version, -1)
    return base and (not known or row.hash == header.hash)


def name_of(one: UpdateId) -> str:
    """Return an update's name for people."""
    return f"{one.node} epoch {one.epoch} seq {one.seq}"


def _some(seqs: list[int]) -> str:
    return ", ".join(str(seq) for seq in seqs[:5])
