"""The conservation law, checked from disk after everything has stopped.

For each node and epoch: issued = applied + rejected + expired + (outbox not yet in the ledger), where
applied counts the ledger's rows. The node's own books and the aggregator's ledger are read independently.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aggregator.ledger import read_ledger
from edge_node.outbox import read_books
from edge_node.rows import Books
from hedgerow.core.messages import UpdateId

_EXAMPLES = 5


@dataclass(frozen=True)
class NodeAccount:
    """One node's updates over all its epochs; `outbox` leaves out what the ledger holds already."""

    node: str
    issued: int
    applied: int
    rejected: int
    expired: int
    outbox: int


@dataclass(frozen=True)
class Account:
    """Every node's account and, as sentences, where the law does not hold."""

    nodes: list[NodeAccount]
    problems: list[str]


def check_run(folder: Path, nodes: Iterable[str]) -> Account:
    """Read the books of the named nodes and the ledger below `folder`, and check them.

    What cannot be read is a problem, too.
    """
    books: list[Books] = []
    unread = []
    for node in nodes:
        try:
            books.append(read_books(folder / node))
        except Exception as error:  # noqa: BLE001 - whatever it is, the law cannot be shown to hold
            unread.append(f"{node}: its books cannot be read: {error!r}")
    try:
        ledger = [row.header.id for row in read_ledger(folder / "aggregator")]
    except Exception as error:  # noqa: BLE001 - as above
        ledger = []
        unread.append(f"aggregator: its ledger cannot be read: {error!r}")
    account = check_books(books, ledger)
    return Account(account.nodes, unread + account.problems)


def check_books(books: Iterable[Books], ledger: Iterable[UpdateId]) -> Account:
    """Check the books of every node and epoch against the ledger's rows.

    Held are: the law; each update is in the ledger at most once (C1); what a node counts as applied is in
    the ledger (C2); every row of the ledger was issued (C3).
    """
    times = Counter(ledger)
    problems = [f"{_name(one)} is in the ledger {n} times" for one, n in times.items() if n > 1]
    rows: dict[tuple[str, int], set[int]] = defaultdict(set)
    for one in times:
        rows[one.node, one.epoch].add(one.seq)
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for book in books:
        applied = rows.pop((book.node, book.epoch), set())
        problems += _check_book(book, applied)
        sums[book.node].update(
            issued=book.issued,
            applied=len(applied),
            rejected=sum(book.rejected.values()),
            expired=book.expired,
            outbox=len(set(book.outbox) - applied),
        )
    for (node, epoch), seqs in rows.items():
        problems.append(
            f"{node} epoch {epoch}: the ledger holds {len(seqs)} updates but the node has no such books"
        )
    nodes = [
        NodeAccount(
            node=node,
            issued=n["issued"],
            applied=n["applied"],
            rejected=n["rejected"],
            expired=n["expired"],
            outbox=n["outbox"],
        )
        for node, n in sorted(sums.items())
    ]
    return Account(nodes, problems)


def _check_book(book: Books, applied: set[int]) -> list[str]:
    """Return what is wrong between one epoch's books and the seqs that the ledger holds of it."""
    who = f"{book.node} epoch {book.epoch}"
    problems = []
    held = set(book.outbox)
    rejected, waiting = sum(book.rejected.values()), len(held - applied)
    accounted = len(applied) + rejected + book.expired + waiting
    if book.issued != accounted:
        problems.append(
            f"{who}: issued {book.issued} is not {accounted} = applied {len(applied)} + rejected"
            f" {rejected} + expired {book.expired} + in outbox {waiting}"
        )
    # What the ledger holds and the outbox no longer does, the node must have seen settled.
    if book.applied != len(applied - held):
        problems.append(
            f"{who}: counts {book.applied} updates as applied, but of the ledger's {len(applied)}"
            f" {len(applied & held)} are still in its outbox"
        )
    invented = sorted(seq for seq in applied | held if not 1 <= seq <= book.issued)
    if invented:
        some = ", ".join(str(seq) for seq in invented[:_EXAMPLES])
        problems.append(
            f"{who}: issued {book.issued} updates, but {len(invented)} are not of these: {some}"
        )
    return problems


def _name(one: UpdateId) -> str:
    return f"{one.node} epoch {one.epoch} seq {one.seq}"
