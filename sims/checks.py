"""The promises of the protocol, watched while a fleet runs: C1 to C6 of docs/how-it-works.md.

Every row that becomes durable and every receipt that is sent passes here, and costs a constant time. C4, that
each version is the replay of its inputs, is checked whenever the aggregator drops inputs, and at the end.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from aggregator.intake import read_partial
from aggregator.lineage import Lineage
from aggregator.merger import step
from aggregator.rows import AcceptPartial, CommitVersion, DropPartials
from edge_node.rows import CloseUpdate, PutUpdate
from hedgerow.core.codec import decode, encode
from hedgerow.core.messages import Descriptor, Header, Partial, Receipts, UpdateId
from hedgerow.core.strategy import Strategy
from hedgerow.core.units import Vector
from sims.disks import LedgerDisk, NodeDisk
from sims.putback import Forgotten

_MOST_KEPT = 20


class ViolationError(AssertionError):
    """A promise of the protocol is broken."""


class Watch:
    """Keeps what was issued, applied and settled, and says at once what does not fit.

    With `strict`, the first violation is raised; otherwise violations are collected, at most twenty.
    """

    def __init__(self, *, strict: bool = True) -> None:
        self.strict = strict
        self.violations: list[str] = []
        self.issued: dict[UpdateId, int] = {}
        self.applied: set[UpdateId] = set()
        self.ended: dict[UpdateId, str] = {}
        self.applied_by_node: Counter[str] = Counter()
        self.versions: set[int] = {0}
        self.waiting: set[str] = set()
        self.forgotten = Forgotten()

    def broken(self, text: str) -> None:
        """Take a violation."""
        if self.strict:
            raise ViolationError(text)
        if len(self.violations) < _MOST_KEPT:
            self.violations.append(text)

    def node_rows(self, rows: Iterable[Any]) -> None:
        """A node's rows became durable."""
        for row in rows:
            match row:
                case PutUpdate(update_id, base_version):
                    if update_id in self.issued:
                        self.broken(f"C1: {update_id} was issued twice")
                    self.issued[update_id] = base_version
                    self.applied_by_node[update_id.node] += self.forgotten.issue(row)
                case CloseUpdate(update_id):
                    self._close(update_id, row)

    def put_back(self, disk: NodeDisk) -> None:
        """A node's disk is what it was before: what it does not know any more is not of its books."""
        own = [i for i in self.issued if i.node == disk.node]
        gone = [i for i in own if i.seq > disk.issued_in[i.epoch]]
        self.forgotten.forget(self.issued, gone)
        applied = [i for i in gone if i in self.applied and i not in self.forgotten.applied]
        self.forgotten.applied.update(applied)
        self.applied_by_node[disk.node] -= len(applied)
        for update_id in [*gone, *disk.outbox]:
            self.ended.pop(update_id, None)

    def _is_applied(self, update_id: UpdateId) -> bool:
        """Whether the ledger holds the update that the node's books know by this id."""
        return update_id in self.applied and update_id not in self.forgotten.applied

    def _close(self, update_id: UpdateId, row: CloseUpdate) -> None:
        if update_id not in self.issued or update_id in self.ended:
            self.broken(f"C6: {update_id} ended twice, or before it was issued")
        self.ended[update_id] = row.outcome
        in_ledger = self._is_applied(update_id)
        if row.outcome == "applied" and not in_ledger:
            self.broken(f"C2: {update_id} is believed applied, but is not in the ledger")
        # A twin that was never offered may be dropped, although it is the same update to the bit.
        twin = row.outcome in ("expired", "coalesced") and update_id in self.forgotten.base_versions
        if in_ledger and twin:
            self.forgotten.applied.add(update_id)
            self.applied_by_node[update_id.node] -= 1
        elif row.outcome != "applied" and in_ledger:
            self.broken(f"C6: {update_id} is {row.outcome}, yet in the ledger")
        if row.outcome == "rejected" and not row.reason:
            self.broken(f"C6: {update_id} is rejected without a reason")

    def accept(self, partial: Partial) -> None:
        """A partial became durable: it waits for a merge."""
        if partial.id in self.waiting:
            self.broken(f"C1: partial {partial.id} is accepted, but is waiting already")
        self.waiting.add(partial.id)

    def commit(self, row: CommitVersion) -> None:
        """A version and its ledger rows became durable."""
        version = row.descriptor.version
        if version in self.versions:
            self.broken(f"C4: version {version} was given out twice")
        self.versions.add(version)
        for name in row.partial_ids:
            if name not in self.waiting:
                self.broken(f"C4: version {version} merges partial {name}, which is not on disk")
            self.waiting.discard(name)
        self.ledger(row.headers)

    def ledger(self, headers: Sequence[Header]) -> None:
        """Ledger rows became durable."""
        for header in headers:
            if header.id in self.applied:
                self.broken(f"C1: {header.id} is applied twice")
            self.applied.add(header.id)
            self.forgotten.ledger[header.id] = header.hash
            if self.forgotten.is_one(header, self.ended.get(header.id, "")):
                self.forgotten.applied.add(header.id)
                continue
            if self.issued.get(header.id) != header.base_version:
                self.broken(f"C3: {header.id} of version {header.base_version} was never issued so")
            if self.ended.get(header.id, "applied") != "applied":
                self.broken(f"C6: {header.id} is {self.ended[header.id]}, and now applied")
            self.applied_by_node[header.id.node] += 1

    def sent(self, message: Any) -> None:
        """A tier sent a message: what it calls settled must be in the ledger."""
        if isinstance(message, Receipts):
            for receipt in message.receipts:
                if receipt.status == "settled" and receipt.id not in self.applied:
                    self.broken(f"C2: {receipt.id} is called settled, but is not in the ledger")

    def balance(self, disks: Iterable[NodeDisk]) -> None:
        """The conservation law: issued = applied + lost + (outbox minus the ledger's).

        Lost are those that were rejected, expired or added to others.
        """
        issued: Counter[str] = Counter(update_id.node for update_id in self.issued)
        for disk in disks:
            waiting = sum(not self._is_applied(update_id) for update_id in disk.outbox)
            applied = self.applied_by_node[disk.node]
            lost = sum(n for outcome, n in disk.outcomes.items() if outcome != "applied")
            if issued[disk.node] != applied + lost + waiting:
                self.broken(
                    f"C6: {disk.node} issued {issued[disk.node]}, but applied {applied}, rejected,"
                    f" expired or coalesced {lost}, waiting {waiting}"
                )


class WatchedNodeDisk:
    """A node's disk whose rows are checked as they become durable."""

    def __init__(self, disk: NodeDisk, watch: Watch) -> None:
        self._disk = disk
        self._watch = watch

    def write(self, rows: Sequence[Any]) -> None:
        """Take rows in one transaction."""
        self._watch.node_rows(rows)
        self._disk.write(rows)


class Replay:
    """C4: computes each version again from its durable inputs and compares the bits.

    `make_lineage` returns an empty lineage of the fleet's configuration; `first` is version 0's descriptor.
    """

    def __init__(
        self,
        strategy: Strategy,
        make_lineage: Callable[[], Lineage],
        first: Descriptor,
        params: Vector,
        watch: Watch,
    ) -> None:
        self._strategy = strategy
        self._lineage = make_lineage()
        self._lineage.add(first)
        self._params = params.copy()
        self._state = strategy.init(self._params)
        self._watch = watch
        self._waiting: dict[str, bytes] = {}
        self._needed_from = 0
        self._commits: list[tuple[CommitVersion, list[bytes]]] = []

    def accept(self, partial: Partial) -> None:
        """A partial became durable: its bytes are an input to come."""
        self._waiting[partial.id] = encode(partial)

    def commit(self, row: CommitVersion) -> None:
        """A version became durable with the partials it names."""
        found = [self._waiting.pop(name, None) for name in row.partial_ids]
        # One that is missing is known to the watch, and the bits will differ, too.
        self._commits.append((row, [body for body in found if body is not None]))

    def forget(self, row: DropPartials) -> None:
        """The aggregator drops inputs: replay them while they are there.

        Only the aggregator knows how old an update may be whose save was put off, so it says what is needed.
        """
        self.verify()
        self._needed_from = row.needed_from

    def verify(self) -> None:
        """Replay all versions since the last call."""
        commits, self._commits = self._commits, []
        for row, bodies in commits:
            self._verify_one(row, bodies)

    def _verify_one(self, row: CommitVersion, bodies: list[bytes]) -> None:
        lineage = self._lineage
        entries = [read_partial(_partial(body), lineage) for body in bodies]
        self._params, self._state = step(
            self._strategy, self._state, self._params, entries, lineage
        )
        version = row.descriptor.version
        if not np.array_equal(self._params, row.params):
            self._watch.broken(f"C4: version {version} is not the replay of its inputs")
        digests = {name: unit.digest for name, unit in row.descriptor.units.items()}
        if digests != lineage.manifest.digests(row.params, row.descriptor.downlink):
            self._watch.broken(f"C4: version {version} is described wrongly")
        if row.descriptor.parent != lineage.version:
            self._watch.broken(f"C4: version {version} does not follow from {lineage.version}")
        lineage.add(row.descriptor, self._needed_from)
        lineage.tally.add(version, len(row.headers))


class WatchedLedger:
    """The aggregator's disk whose rows are checked, and replayed, as they become durable."""

    def __init__(self, disk: LedgerDisk, watch: Watch, replay: Replay | None) -> None:
        self._disk = disk
        self._watch = watch
        self._replay = replay

    def write(self, rows: Sequence[Any]) -> None:
        """Take rows in one transaction."""
        for row in rows:
            match row:
                case AcceptPartial(partial):
                    self._watch.accept(partial)
                    if self._replay is not None:
                        self._replay.accept(partial)
                case CommitVersion():
                    self._watch.commit(row)
                    if self._replay is not None:
                        self._replay.commit(row)
                case DropPartials() if self._replay is not None:
                    self._replay.forget(row)
        self._disk.write(rows)
        self._written(rows)

    def _written(self, rows: Sequence[Any]) -> None:
        """A version and its ledger rows are durable together."""
        headers = [h for row in rows if isinstance(row, CommitVersion) for h in row.headers]
        for header in headers:
            if header.id not in self._disk.ledger:
                self._watch.broken(f"C2: {header.id} is merged durably, but is not in the ledger")


def _partial(body: bytes) -> Partial:
    partial = decode(body)
    assert isinstance(partial, Partial)
    return partial
