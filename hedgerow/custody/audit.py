"""`hedgerow audit`: every promise, checked from the files of a fleet that is stopped, or of a copy of one."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from hedgerow.core.errors import ConfigError
from hedgerow.custody.books import LedgerBook, NodeBook, read_ledger, read_node
from hedgerow.custody.folders import TierFolder, find_tier, lost_commits, refuse_in_use
from hedgerow.custody.law import PROMISES, Account, NodeAccount, Violation, check_books
from hedgerow.custody.replay import replay


@dataclass(frozen=True)
class Promise:
    """One promise: `name` is a key of PROMISES, `checked` says in words on what it was tried."""

    name: str
    says: str
    checked: str
    violations: list[str]

    @property
    def kept(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.violations


@dataclass(frozen=True)
class Audit:
    """What an audit found; `notes` say what could not be checked."""

    nodes: list[NodeAccount]
    promises: list[Promise]
    notes: list[str]

    @property
    def holds(self) -> bool:
        """Whether every promise is kept."""
        return all(promise.kept for promise in self.promises)


@dataclass(frozen=True)
class Fleet:
    """The folders of a fleet's tiers."""

    aggregator: TierFolder
    nodes: list[TierFolder]


def find_fleet(folders: Sequence[Path]) -> Fleet:
    """Return the tiers in these folders, and in the folders inside them.

    Raises ConfigError for a folder without any, without exactly one aggregator among them, or while a process
    is at work in one.
    """
    found: dict[Path, TierFolder] = {}
    for folder in folders:
        inside = _tiers(folder)
        if not inside:
            raise ConfigError(
                f"FOLDER: {folder} holds no ledger and no outbox; name a run's folder, or those given to"
                " `hedgerow node` and `hedgerow aggregator` as --dir"
            )
        found |= {tier.path.resolve(): tier for tier in inside}
    tiers = [tier for _, tier in sorted(found.items())]
    aggregators = [tier for tier in tiers if tier.role == "aggregator"]
    if len(aggregators) != 1:
        raise ConfigError(f"FOLDER: {len(aggregators)} aggregators' folders, an audit needs one")
    for tier in tiers:
        refuse_in_use(tier, "stop the fleet, or audit a copy that `hedgerow restore` makes")
    nodes = [tier for tier in tiers if tier.role == "node"]
    return Fleet(aggregators[0], nodes)


def _tiers(folder: Path) -> list[TierFolder]:
    own = find_tier(folder)
    if own is not None:
        return [own]
    inside = sorted(folder.iterdir()) if folder.is_dir() else []
    # What a backup was put back over is kept beside it under such a name.
    current = [path for path in inside if ".before-" not in path.name]
    return [tier for path in current if (tier := find_tier(path)) is not None]


def audit(fleet: Fleet, *, without: Collection[str] = (), replay_all: bool = False) -> Audit:
    """Check every promise. Raises CustodyError for a file that cannot be read at all."""
    ledger = read_ledger(fleet.aggregator.path)
    books = [book for tier in fleet.nodes for book in read_node(tier.path)]
    account = check_books(books, ledger, without)
    replayed = replay(ledger, everything=replay_all)
    checked = _checked(books, ledger) | {
        "C4": replayed.unchecked
        or f"versions {replayed.first} to {replayed.last}, {replayed.replayed} made anew"
    }
    violations = [*account.violations, *replayed.violations]
    promises = [
        Promise(name, says, checked[name], [v.text for v in violations if v.promise == name])
        for name, says in PROMISES.items()
    ]
    lost = [note for tier in (fleet.aggregator, *fleet.nodes) for note in lost_commits(tier)]
    return Audit(account.nodes, promises, [*lost, *_notes(account, books, ledger, without)])


def _checked(books: Sequence[NodeBook], ledger: LedgerBook) -> dict[str, str]:
    rows = [row for book in books for row in book.rows.values()]
    hashed = sum(bool(row.hash) for row in rows)
    return {
        "law": f"{len(books)} epochs of {len({book.node for book in books})} nodes",
        "C1": f"{len(ledger.rows)} rows, {len(ledger.waiting)} partials that wait",
        "C2": f"{sum(row.outcome == 'applied' for row in rows)} updates that nodes saw settled",
        "C3": f"{len(ledger.rows)} rows, {hashed} held updates by their content",
        "C6": f"{sum(bool(row.reason) for row in rows)} ends with a reason",
    }


def _notes(
    account: Account, books: Iterable[NodeBook], ledger: LedgerBook, without: Collection[str]
) -> list[str]:
    notes = [f"{book.name} ended: {book.ended}" for book in books if book.ended]
    for node in account.nodes:
        if node.forgotten:
            notes.append(
                f"{node.node}: {node.forgotten} updates were settled in a life of the aggregator that a"
                " backup ended; its model has forgotten them"
            )
        if node.unknown:
            notes.append(
                f"{node.node}: {node.unknown} rows of the ledger are from after the state to which its disk"
                " was put back"
            )
    for name in sorted(without):
        rows = sum(one.node == name for one in ledger.rows)
        notes.append(f"{name}: {rows} rows of the ledger, not checked against its books")
    return notes


def check_run(folder: Path, nodes: Iterable[str]) -> Account:
    """Check the law for the named nodes of a run that has stopped, without the replay.

    What cannot be read is a violation, too.
    """
    books, unread = [], []
    for node in nodes:
        try:
            books += read_node(folder / node)
        except Exception as error:  # noqa: BLE001 - whatever it is, the law cannot be shown to hold
            unread.append(Violation("law", f"{node}: its books cannot be read: {error!r}"))
    path = folder / "aggregator"
    try:
        ledger = read_ledger(path)
    except Exception as error:  # noqa: BLE001 - as above
        ledger = LedgerBook(path, {})
        unread.append(Violation("law", f"aggregator: its ledger cannot be read: {error!r}"))
    account = check_books(books, ledger)
    return Account(account.nodes, unread + account.violations)
