"""What a struck fleet's disks say after everything has stopped; read by `hedgerow.custody` alone."""

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from hedgerow.custody.books import LedgerBook, NodeBook, read_ledger, read_node
from hedgerow.custody.law import Account, check_books
from hedgerow.custody.replay import replay
from tests.faults.fleet import AGGREGATOR, Fleet


@dataclass(frozen=True)
class Totals:
    """All nodes' updates. `lost` are those that no book and no ledger accounts for."""

    issued: int
    applied: int
    rejected: int
    expired: int
    coalesced: int
    outbox: int
    forgotten: int
    duplicates: int
    replayed: int

    @property
    def other_ends(self) -> int:
        """Refused, expired or coalesced, still held, or forgotten by an aggregator that was put back."""
        return self.rejected + self.expired + self.coalesced + self.outbox + self.forgotten

    @property
    def lost(self) -> int:
        return self.issued - self.applied - self.other_ends


def verify(fleet: Fleet) -> Totals:
    """Stop the fleet and check what is on its disks: the law, C1 to C4 and C6.

    Raises AssertionError naming what is wrong.
    """
    duplicates = fleet.duplicates
    fleet.stop()
    ledger = read_ledger(fleet.folder / AGGREGATOR)
    account = check_books(_books(fleet), ledger, fleet.strangers)
    replayed = replay(ledger, everything=True)
    broken = [str(one) for one in (*account.violations, *replayed.violations)]
    broken += _unknown_to_images(fleet, ledger)
    assert not broken, "\n".join(broken)
    totals = Totals(**_sums(account), duplicates=duplicates, replayed=replayed.replayed)
    assert totals.lost == 0, totals
    return totals


def _sums(account: Account) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for node in account.nodes:
        sums.update({name: n for name, n in asdict(node).items() if name != "node"})
    terms = ("issued", "applied", "rejected", "expired", "coalesced", "outbox", "forgotten")
    return {term: sums[term] for term in terms}


def _books(fleet: Fleet) -> list[NodeBook]:
    """Return the nodes' books, and of images kept aside the epochs that a node's disk has lost."""
    books = [book for node in fleet.nodes for book in read_node(fleet.folder / node)]
    names = {book.name for book in books}
    for book in _images(fleet.ended):
        if book.name not in names:
            names.add(book.name)
            books.append(book)
    return books


def _images(folders: list[Path]) -> list[NodeBook]:
    """Return the books of the images, those that have issued most first."""
    books = [book for folder in folders for book in read_node(folder)]
    return sorted(books, key=lambda book: -max(book.rows, default=0))


def _unknown_to_images(fleet: Fleet, ledger: LedgerBook) -> list[str]:
    """C3 over all lives of a disk: return rows that neither a node's books nor an image of them has."""
    images = [book for node in fleet.nodes for book in read_node(fleet.folder / node)]
    images += _images(fleet.ended)
    issued = {(book.node, book.epoch, seq) for book in images for seq in book.rows}
    rows = {
        (one.node, one.epoch, one.seq) for one in ledger.rows if one.node not in fleet.strangers
    }
    return [f"C3: {row} was never issued" for row in sorted(rows - issued)]
