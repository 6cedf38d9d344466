"""What survives a crash: a node's outbox and the aggregator's ledger, in memory, with the real ones' guards.

A save takes a while, saves of one disk end in order, some may fail, and a crash cuts off those under way. The
process hears a moment later that its rows are durable: if it dies in between, it never does.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from typing import Any, Protocol

from aggregator.rows import (
    AcceptPartial,
    CommitVersion,
    DropPartials,
    LedgerRow,
    SaveMetrics,
    SetAside,
    Snapshot,
)
from edge_node.rows import (
    Books,
    CloseUpdate,
    EpochBooks,
    KeepPersonal,
    KeepResidual,
    KeepUnit,
    NewEpoch,
    PutUpdate,
)
from hedgerow.core.codec import decode, encode
from hedgerow.core.messages import Descriptor, Partial, UpdateId
from hedgerow.core.units import Manifest, Vector, unit_bytes
from hedgerow.core.versions import is_provisional
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
    """A node's outbox and books. `keep_bodies` keeps what was ever issued, for the deepest checks.

    `epochs` are all that the disk knows, each with why it ended, the current one last; `ends` counts ends by
    epoch, outcome and reason. It can be put back to
    an earlier `image`; how often it was started is then not forgotten, for that decides on fresh epochs.
    """

    def __init__(self, node: str, *, keep_bodies: bool = False) -> None:
        self.node = node
        self.starts = 0
        self.epochs: dict[int, str] = {1: ""}
        self.outbox: dict[UpdateId, bytes] = {}
        self.issued_in: Counter[int] = Counter()
        self.ends: Counter[tuple[int, str, str]] = Counter()
        self.newest: dict[bool, int] = {False: -1, True: -1}
        self.units: dict[str, bytes] = {}
        self.residuals: dict[str, bytes] = {}
        self.personal: dict[str, bytes] = {}
        self.bodies: dict[UpdateId, bytes] | None = {} if keep_bodies else None

    @property
    def epoch(self) -> int:
        """The epoch of the updates to come."""
        return next(reversed(self.epochs))

    @property
    def issued(self) -> int:
        """How many updates the disk knows of, over all epochs."""
        return self.issued_in.total()

    @property
    def outcomes(self) -> Counter[str]:
        """How many updates ended in each way, over all epochs."""
        return _by_word(self.ends, 1)

    def write(self, rows: Sequence[Any]) -> None:
        """Take rows in one transaction."""
        for row in rows:
            match row:
                case PutUpdate():
                    self._put(row)
                case CloseUpdate(update_id):
                    self.outbox.pop(update_id, None)
                    self.ends[update_id.epoch, row.outcome, row.reason] += 1
                case NewEpoch(epoch, reason):
                    self.epochs[self.epoch] = reason
                    self.epochs[epoch] = ""
                case KeepUnit(unit, body):
                    self.units[unit] = body
                case KeepResidual(unit, None):
                    self.residuals.pop(unit, None)
                case KeepResidual(unit, bytes(body)):
                    self.residuals[unit] = body
                case KeepPersonal(unit, body):
                    self.personal[unit] = body

    def _put(self, row: PutUpdate) -> None:
        self.outbox[row.id] = row.body
        # A crash may leave a number out: one whose save failed while the next one's did not.
        self.issued_in[row.id.epoch] = max(self.issued_in[row.id.epoch], row.id.seq)
        lane = is_provisional(row.base_version)
        self.newest[lane] = max(self.newest[lane], row.base_version)
        if self.bodies is not None:
            self.bodies[row.id] = row.body

    def load(self) -> Books:
        """Return what a node finds when it starts."""
        self.starts += 1
        *former, current = [self._account(epoch, ended) for epoch, ended in self.epochs.items()]
        return Books(
            node=self.node,
            epoch=self.epoch,
            issued=current.issued,
            applied=current.applied,
            rejected=current.rejected,
            expired=current.expired,
            coalesced=current.coalesced,
            last_base_version=self.newest[False],
            last_provisional=self.newest[True],
            outbox=current.outbox,
            units=dict(self.units),
            residuals=dict(self.residuals),
            personal=dict(self.personal),
            former=tuple(former),
            found=self.starts > 1,
            fresh_epoch=random.Random(f"{self.node}:{self.starts}").getrandbits(48),
        )

    def _account(self, epoch: int, ended: str) -> EpochBooks:
        ends = Counter({end: n for end, n in self.ends.items() if end[0] == epoch})
        rejected = Counter({end: n for end, n in ends.items() if end[1] == "rejected"})
        outcomes = _by_word(ends, 1)
        return EpochBooks(
            node=self.node,
            epoch=epoch,
            issued=self.issued_in[epoch],
            applied=outcomes["applied"],
            rejected=_by_word(rejected, 2),
            expired=outcomes["expired"],
            coalesced=outcomes["coalesced"],
            outbox={i.seq: body for i, body in self.outbox.items() if i.epoch == epoch},
            ended=ended,
        )

    def image(self) -> dict[str, Any]:
        """Return a copy of all that is on the disk."""
        return {name: copy(getattr(self, name)) for name in _DURABLE}

    def put_back(self, image: dict[str, Any]) -> None:
        """Make the disk what it was when the copy was made, while its node is off."""
        for name, content in image.items():
            setattr(self, name, copy(content))


_DURABLE = ("epochs", "outbox", "issued_in", "ends", "newest", "units", "residuals", "personal")


def _by_word(ends: Counter[tuple[int, str, str]], place: int) -> Counter[str]:
    """Return how many updates ended so, by one word of how: their outcome or its reason."""
    out: Counter[str] = Counter()
    for end, amount in ends.items():
        out[str(end[place])] += amount
    return out


class LedgerDisk:
    """The aggregator's ledger. The newest versions' parameters serve the gateways' requests for units.

    It can be put back to an earlier `image`; `restored` then says so at the next start, if it is set.
    """

    def __init__(self, first: Descriptor, params: Vector, manifest: Manifest) -> None:
        self.term = 0
        self.version = 0
        self.descriptors: dict[int, Descriptor] = {0: first}
        self.params: dict[int, Vector] = {0: params}
        self.ledger: dict[UpdateId, LedgerRow] = {}
        self.waiting: dict[str, bytes] = {}
        self.metrics: dict[int, Mapping[str, float]] = {}
        self.aside: dict[str, bytes] = {}
        self.restored = ""
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
                case SetAside(name):
                    self.aside[name] = self.waiting.pop(name)

    def write_version(self, row: CommitVersion) -> None:
        """Take a commit's version."""
        self.version = row.descriptor.version
        self.restored = ""
        self.descriptors[self.version] = row.descriptor
        self.params[self.version] = row.params
        for old in sorted(self.params)[:-KEPT_VERSIONS]:
            del self.params[old]
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
            restored=self.restored,
        )

    def image(self) -> dict[str, Any]:
        """Return a copy of all that is on the disk."""
        return {name: copy(getattr(self, name)) for name in _LEDGER}

    def put_back(self, image: dict[str, Any], *, restored: str = "") -> None:
        """Make the disk what it was when the copy was made, while its aggregator is off."""
        for name, content in image.items():
            setattr(self, name, copy(content))
        self.restored = restored

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


_LEDGER = ("term", "version", "descriptors", "params", "ledger", "waiting", "metrics", "aside")


def _partial(body: bytes) -> Partial:
    partial = decode(body)
    assert isinstance(partial, Partial)
    return partial
