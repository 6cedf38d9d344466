"""What survives a crash: a node's books and the aggregator's ledger, with the guards of the real stores."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aggregator.rows import (
    AcceptPartial,
    CommitVersion,
    DropPartials,
    LedgerRow,
    SaveMetrics,
    Snapshot,
)
from edge_node.rows import Books, CloseUpdate, KeepUnit, PutUpdate
from hedgerow.core.codec import decode, encode
from hedgerow.core.messages import Descriptor, Partial, UpdateId
from hedgerow.core.units import Vector, digest

KEPT_VERSIONS = 3


class ViolationError(AssertionError):
    """A promise of the protocol is broken."""


class NodeDisk:
    """A node's outbox; what it ever issued is kept for the checks."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.epoch = 1
        self.bodies: dict[int, bytes] = {}
        self.closed: dict[int, CloseUpdate] = {}
        self.base_versions: list[int] = []
        self.units: dict[str, bytes] = {}

    def write(self, rows: Sequence[Any]) -> None:
        for row in rows:
            match row:
                case PutUpdate(seq, base_version, body):
                    if seq in self.bodies:
                        raise ViolationError(f"{self.node} issued {seq} twice")
                    self.bodies[seq] = body
                    self.base_versions.append(base_version)
                case CloseUpdate(seq):
                    if seq in self.closed or seq not in self.bodies:
                        raise ViolationError(f"{self.node} closed {seq} twice or too early")
                    self.closed[seq] = row
                case KeepUnit(unit, body):
                    self.units[unit] = body

    @property
    def outbox(self) -> dict[int, bytes]:
        return {seq: body for seq, body in self.bodies.items() if seq not in self.closed}

    def ids(self, outcome: str) -> set[UpdateId]:
        """Return the updates that ended so; "" stands for those still held, "any" for all issued."""
        if outcome == "any":
            seqs = set(self.bodies)
        elif outcome == "":
            seqs = set(self.outbox)
        else:
            seqs = {seq for seq, row in self.closed.items() if row.outcome == outcome}
        return {UpdateId(self.node, self.epoch, seq) for seq in seqs}

    def load(self) -> Books:
        outcomes = Counter(row.outcome for row in self.closed.values())
        reasons = Counter(r.reason for r in self.closed.values() if r.outcome == "rejected")
        return Books(
            node=self.node,
            epoch=self.epoch,
            issued=max(self.bodies, default=0),
            applied=outcomes["applied"],
            rejected=reasons,
            expired=outcomes["expired"],
            last_base_version=max(self.base_versions, default=-1),
            outbox=self.outbox,
            units=dict(self.units),
        )


class LedgerDisk:
    """The aggregator's ledger. Nothing is really dropped: the replay needs every merge input."""

    def __init__(self, first: Descriptor, params: Vector) -> None:
        self.term = 0
        self.versions: dict[int, tuple[Descriptor, Vector]] = {0: (first, params)}
        self.ledger: dict[UpdateId, LedgerRow] = {}
        self.inputs: dict[int, list[Partial]] = {}
        self.waiting: dict[str, bytes] = {}
        self.metrics: dict[int, Mapping[str, float]] = {}
        self.oldest_kept = 0

    def write(self, rows: Sequence[Any]) -> None:
        for row in rows:
            match row:
                case AcceptPartial(partial):
                    if partial.id in self.waiting:
                        raise ViolationError(f"partial {partial.id} is waiting already")
                    self.waiting[partial.id] = encode(partial)
                case CommitVersion():
                    self.write_version(row)
                    self.write_ledger(row)
                case SaveMetrics(version, metrics):
                    self.metrics[version] = metrics
                case DropPartials():
                    self.oldest_kept = row.needed_from

    def write_version(self, row: CommitVersion) -> None:
        version = row.descriptor.version
        if version in self.versions:
            raise ViolationError(f"version {version} was given out twice")
        self.versions[version] = (row.descriptor, row.params.copy())
        self.inputs[version] = [_partial(self.waiting.pop(name)) for name in row.partial_ids]

    def write_ledger(self, row: CommitVersion) -> None:
        for header in row.headers:
            if header.id in self.ledger:
                raise ViolationError(f"C1: {header.id} is applied twice")
            self.ledger[header.id] = LedgerRow(header, row.descriptor.version)

    @property
    def version(self) -> int:
        return max(self.versions)

    def load(self) -> Snapshot:
        self.term += 1
        oldest = self.oldest_kept
        return Snapshot(
            term=self.term,
            descriptors=tuple(d for v, (d, _) in sorted(self.versions.items()) if v >= oldest),
            params=self.versions[self.version][1].copy(),
            ledger=tuple(self.ledger.values()),
            waiting=tuple(_partial(body) for body in self.waiting.values()),
            metrics=dict(self.metrics),
        )

    def blob(self, name: str) -> bytes | None:
        """Return a unit of one of the last versions by its digest."""
        for version in range(self.version, max(self.version - KEPT_VERSIONS, -1), -1):
            descriptor, params = self.versions[version]
            offset = 0
            for unit in descriptor.units.values():
                size = int(_size(unit.shape))
                if unit.digest == name:
                    body = params[offset : offset + size].tobytes()
                    assert digest(body) == name
                    return body
                offset += size
        return None


def _size(shape: Sequence[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def _partial(body: bytes) -> Partial:
    partial = decode(body)
    assert isinstance(partial, Partial)
    return partial
