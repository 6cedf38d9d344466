"""What survives a crash: a node's outbox and the aggregator's ledger, in memory, with the real ones' guards.

A save takes a while, saves of one disk end in order, some may fail, and a crash cuts off those under way. The
process hears a moment later that its rows are durable: if it dies in between, it never does.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from aggregator.rows import (
    AcceptPartial,
    CommitVersion,
    DropPartials,
    LedgerRow,
    SaveMetrics,
    Snapshot,
)
from edge_node.rows import Books, CloseUpdate, KeepPersonal, KeepResidual, KeepUnit, PutUpdate
from hedgerow.core.codec import decode, encode
from hedgerow.core.messages import Descriptor, Partial, UpdateId
from hedgerow.core.units import Manifest, Vector, unit_bytes
from hedgerow.runtime.ports import StoreError
from sims.clock import VirtualLoop

KEPT_VERSIONS = 3
"""Versions whose units a gateway may still ask for."""


class Disk(Protocol):
    """Where rows end up."""

    def write(self, rows: Sequence[Any]) -> None:
        """Take rows in one transaction."""


class DiskStore:
    """The `Store` port of one life of a process, on its disk; `alive` says whether that life still lasts."""

    def __init__(
        self,
        loop: VirtualLoop,
        disk: Disk,
        rng: random.Random,
        alive: Callable[[], bool],
        *,
        slowest_us: int = 20_000,
        failure_rate: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._loop = loop
        self._disk = disk
        self._random = rng
        self._alive = alive
        self._slowest_us = slowest_us
        self._failure_rate = failure_rate
        self._free_us = 0

    def save(self, rows: tuple[Any, ...]) -> "asyncio.Future[None]":
        """Write the rows, later; the future ends in StoreError now and then, if failures are on."""
        future = self._loop.create_future()
        rate = self._failure_rate()
        if rate > 0 and self._random.random() < rate:
            self._loop.after_us(1_000, lambda: self._fail(future))
            return future
        took_us = self._random.randrange(self._slowest_us // 10, self._slowest_us)
        self._free_us = max(self._free_us, self._loop.now_us) + took_us

        def write() -> None:
            if self._alive():
                self._disk.write(rows)
                self._loop.after_us(took_us // 4, lambda: _hear(future))

        self._loop.at_us(self._free_us, write)
        return future

    def _fail(self, future: "asyncio.Future[None]") -> None:
        if not future.done():
            future.set_exception(StoreError("no space left on the virtual disk"))


def _hear(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


class NodeDisk:
    """A node's outbox and books. `keep_bodies` keeps what was ever issued, for the deepest checks."""

    def __init__(self, node: str, *, keep_bodies: bool = False) -> None:
        self.node = node
        self.epoch = 1
        self.issued = 0
        self.outbox: dict[int, bytes] = {}
        self.base_versions: dict[int, int] = {}
        self.outcomes: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.units: dict[str, bytes] = {}
        self.residuals: dict[str, bytes] = {}
        self.personal: dict[str, bytes] = {}
        self.bodies: dict[int, bytes] | None = {} if keep_bodies else None
        self._last_base_version = -1

    def write(self, rows: Sequence[Any]) -> None:
        """Take rows in one transaction."""
        for row in rows:
            match row:
                case PutUpdate():
                    self._put(row)
                case CloseUpdate(seq):
                    self.outbox.pop(seq, None)
                    self.outcomes[row.outcome] += 1
                    if row.outcome == "rejected":
                        self.rejected[row.reason] += 1
                case KeepUnit(unit, body):
                    self.units[unit] = body
                case KeepResidual(unit, None):
                    self.residuals.pop(unit, None)
                case KeepResidual(unit, bytes(body)):
                    self.residuals[unit] = body
                case KeepPersonal(unit, body):
                    self.personal[unit] = body

    def _put(self, row: PutUpdate) -> None:
        self.issued = max(self.issued, row.seq)
        self.outbox[row.seq] = row.body
        self.base_versions[row.seq] = row.base_version
        self._last_base_version = max(self._last_base_version, row.base_version)
        if self.bodies is not None:
            self.bodies[row.seq] = row.body

    def load(self) -> Books:
        """Return what a node finds when it starts."""
        return Books(
            node=self.node,
            epoch=self.epoch,
            issued=self.issued,
            applied=self.outcomes["applied"],
            rejected=dict(self.rejected),
            expired=self.outcomes["expired"],
            last_base_version=self._last_base_version,
            outbox=dict(self.outbox),
            units=dict(self.units),
            residuals=dict(self.residuals),
            personal=dict(self.personal),
        )


class LedgerDisk:
    """The aggregator's ledger. The newest versions' parameters serve the gateways' requests for units."""

    def __init__(self, first: Descriptor, params: Vector, manifest: Manifest) -> None:
        self.term = 0
        self.version = 0
        self.descriptors: dict[int, Descriptor] = {0: first}
        self.params: dict[int, Vector] = {0: params}
        self.ledger: dict[UpdateId, LedgerRow] = {}
        self.waiting: dict[str, bytes] = {}
        self.metrics: dict[int, Mapping[str, float]] = {}
        self._manifest = manifest

    def write(self, rows: Sequence[Any]) -> None:
        """Take rows in one transaction."""
        for row in rows:
            match row:
                case AcceptPartial(partial):
                    self.waiting[partial.id] = encode(partial)
                case CommitVersion():
                    self.write_version(row)
                    self.write_ledger(row)
                case SaveMetrics(version, metrics):
                    self.metrics[version] = metrics
                case DropPartials():
                    self._forget(row.needed_from)

    def write_version(self, row: CommitVersion) -> None:
        """Take a commit's version."""
        self.version = row.descriptor.version
        self.descriptors[self.version] = row.descriptor
        self.params[self.version] = row.params
        self.params.pop(self.version - KEPT_VERSIONS, None)
        for name in row.partial_ids:
            self.waiting.pop(name, None)

    def write_ledger(self, row: CommitVersion) -> None:
        """Take a commit's ledger rows."""
        for header in row.headers:
            self.ledger[header.id] = LedgerRow(header, row.descriptor.version)

    def _forget(self, needed_from: int) -> None:
        self.descriptors = {v: d for v, d in self.descriptors.items() if v >= needed_from}

    def load(self) -> Snapshot:
        """Return what an aggregator finds when it starts; each start has a term of its own."""
        self.term += 1
        return Snapshot(
            term=self.term,
            descriptors=tuple(d for _, d in sorted(self.descriptors.items())),
            params=self.params[self.version].copy(),
            ledger=tuple(self.ledger.values()),
            waiting=tuple(_partial(body) for body in self.waiting.values()),
            metrics=dict(self.metrics),
        )

    def blob(self, name: str) -> bytes | None:
        """Return a unit of one of the last versions by its digest."""
        for version in sorted(self.params, reverse=True):
            descriptor = self.descriptors.get(version)
            if descriptor is None:
                continue
            for unit, stated in descriptor.units.items():
                if stated.digest == name:
                    values = self.params[version][self._manifest.slices[unit]]
                    return unit_bytes(values, descriptor.downlink)
        return None


def _partial(body: bytes) -> Partial:
    partial = decode(body)
    assert isinstance(partial, Partial)
    return partial
