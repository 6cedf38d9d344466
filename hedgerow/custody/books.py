"""What nodes and the aggregator wrote down, read from their files as they lie there.

Nothing of the tiers' own code is used, so that a fault in it cannot hide itself: only the format of the
tables and `hedgerow.core`'s messages.
"""

import math
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from hedgerow.core.codec import decode
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Descriptor, Header, Partial, Update, UpdateId
from hedgerow.custody.errors import CustodyError
from hedgerow.custody.folders import LEDGER, OUTBOX, columns, is_restored, open_read_only

T = TypeVar("T", Descriptor, Partial, Update)

HELD, APPLIED = "", "applied"
ENDS = ("rejected", "expired", "coalesced")
"""How an update ends without being applied by itself."""

REASONED = ("rejected", "expired")
"""Ends that need a reason; a coalesced update is in another one."""


@dataclass(frozen=True, slots=True)
class Issued:
    """One update in its node's books; `outcome` is "" while it is held, `hash` 0 once its body is gone."""

    base_version: int
    outcome: str = HELD
    reason: str = ""
    hash: int = 0


@dataclass(frozen=True)
class NodeBook:
    """One node's updates of one epoch by seq; `damaged` says which of its bodies are not what they should be.

    `ended` says why the node took a new epoch after this one, "" for the current one. Then its disk had lost
    or was put back before some of its updates, so that others may know more of them than these books.
    """

    node: str
    epoch: int
    rows: dict[int, Issued]
    ended: str = ""
    damaged: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The book's name for people."""
        return f"{self.node} epoch {self.epoch}"


@dataclass(frozen=True, slots=True)
class Settled:
    """One row of the ledger: what the update's header said, and the version it was merged into."""

    header: Header
    version: int


@dataclass(frozen=True)
class LedgerBook:
    """The aggregator's ledger; `merged` are the kept merge inputs by version, in the order of their merge.

    `files` are the names of versions' parameter files; `damaged` says what could not be read. `restored` is
    True until the aggregator has begun a new life of version numbers after a backup was put back.
    """

    folder: Path
    rows: dict[UpdateId, Settled]
    descriptors: dict[int, Descriptor] = field(default_factory=dict)
    files: dict[int, str] = field(default_factory=dict)
    merged: dict[int, list[Partial]] = field(default_factory=dict)
    waiting: list[Partial] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    restored: bool = False


def read_node(folder: Path) -> list[NodeBook]:
    """Return a node's books, one for each epoch. Raises CustodyError for a file that is none."""
    path = folder / OUTBOX
    try:
        with closing(open_read_only(path)) as connection:
            return _node_books(connection)
    except sqlite3.Error as error:
        raise CustodyError(f"{path}: cannot be read: {error}") from error


def _node_books(connection: sqlite3.Connection) -> list[NodeBook]:
    identity = connection.execute("SELECT node, epoch FROM identity").fetchone()
    if identity is None:
        return []
    node, first = identity
    ended = {first: ""} | dict(_epochs(connection))
    rows: dict[int, dict[int, Issued]] = {epoch: {} for epoch in ended}
    damaged: dict[int, list[str]] = defaultdict(list)
    for row in _all(connection, "SELECT * FROM issued ORDER BY seq"):
        # The first release had one epoch, its number in `identity` only.
        epoch, seq, body = row.get("epoch", first), row["seq"], row["body"]
        update = _message(body, row.get("checksum"), Update) if body else None
        if body and (update is None or update.id != UpdateId(node, epoch, seq)):
            damaged[epoch].append(f"{node} epoch {epoch} seq {seq}: its body is damaged")
        content = 0 if update is None else update.hash
        issued = Issued(row["base_version"], row["outcome"], row["reason"], content)
        rows.setdefault(epoch, {})[seq] = issued
    return [
        NodeBook(node, epoch, of_epoch, ended.get(epoch, ""), tuple(damaged[epoch]))
        for epoch, of_epoch in rows.items()
    ]


def _all(connection: sqlite3.Connection, query: str) -> Iterator[dict[str, Any]]:
    """Yield rows by column name: an older release has fewer columns."""
    cursor = connection.execute(query)
    names = [column[0] for column in cursor.description]
    for row in cursor:
        yield dict(zip(names, row, strict=True))


def _epochs(connection: sqlite3.Connection) -> Iterable[tuple[int, str]]:
    """Return every epoch and why it ended; a backup put back ends the current one at the next start."""
    found = []
    if columns(connection, "epoch"):
        found = connection.execute("SELECT epoch, ended FROM epoch ORDER BY number").fetchall()
    if found and is_restored(connection):
        found[-1] = (found[-1][0], found[-1][1] or "restored")
    return found


def read_ledger(folder: Path) -> LedgerBook:
    """Return the ledger in `folder`. Raises CustodyError for a file that is none."""
    path = folder / LEDGER
    try:
        with closing(open_read_only(path)) as connection:
            return _ledger_book(connection, folder)
    except sqlite3.Error as error:
        raise CustodyError(f"{path}: cannot be read: {error}") from error


def _ledger_book(connection: sqlite3.Connection, folder: Path) -> LedgerBook:
    book = LedgerBook(folder, _settled(connection), restored=is_restored(connection))
    for row in _all(connection, "SELECT * FROM versions ORDER BY version"):
        version, descriptor = (
            row["version"],
            _message(row["descriptor"], row.get("crc"), Descriptor),
        )
        if descriptor is None or descriptor.version != version:
            book.damaged.append(f"the descriptor of version {version} is damaged")
        else:
            book.descriptors[version], book.files[version] = descriptor, row["file"]
    order = "ORDER BY merged_version, merge_order, position"
    for row in _all(connection, f"SELECT * FROM partials {order}"):  # noqa: S608
        partial = _message(row["body"], row.get("crc"), Partial)
        if partial is None or partial.id != row["id"]:
            book.damaged.append(f"partial {row['id']} is damaged")
        elif row["merged_version"] is None:
            book.waiting.append(partial)
        else:
            book.merged.setdefault(row["merged_version"], []).append(partial)
    return book


def _message(body: bytes, crc: int | None, kind: type[T]) -> T | None:
    """Return the message in a body; None where it is another, or not what was written."""
    if crc is not None and crc32(body) != crc:
        return None
    try:
        message = decode(body, len(body))
    except PeerError:
        return None
    return message if isinstance(message, kind) else None


def _settled(connection: sqlite3.Connection) -> dict[UpdateId, Settled]:
    out = {}
    for row in _all(connection, "SELECT * FROM ledger ORDER BY rowid"):
        update_id = UpdateId(row["node"], row["epoch"], row["seq"])
        kappa = math.nan if row["kappa"] is None else row["kappa"]
        header = Header(
            update_id, row["base_version"], row["examples"], kappa, hash=row.get("hash", 0)
        )
        out[update_id] = Settled(header, row["version"])
    return out


def ids_of(partials: Iterable[Partial]) -> list[UpdateId]:
    """Return the ids of all updates in partial aggregates."""
    return [header.id for partial in partials for header in partial.headers]
