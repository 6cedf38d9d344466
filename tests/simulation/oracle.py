"""The promises, checked from what is on the disks alone, plus every message body ever issued.

It shares no code with `sims.checks`, which watches rows and receipts as they pass.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from aggregator.rows import AcceptPartial, CommitVersion
from edge_node.rows import CloseUpdate, PutUpdate
from hedgerow.core.codec import decode
from hedgerow.core.merge import MergeContext, merge
from hedgerow.core.messages import Descriptor, Partial, Update, UpdateId
from hedgerow.core.partial import PartialAggregate, add, contribution, frame_for, from_wire
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import decode_delta
from hedgerow.core.units import Vector
from sims.checks import ViolationError
from sims.disks import LedgerDisk, NodeDisk
from sims.fleet import Fleet
from tests.protocol.scenarios import MANIFEST, first_params


class OracleError(ViolationError):
    """A promise is broken, and the oracle or a guard of its disks found it."""


class KeptNodeDisk(NodeDisk):
    """A node's disk that remembers how each update ended, with the guards of the real store."""

    def __init__(self, node: str, *, keep_bodies: bool = False) -> None:
        super().__init__(node, keep_bodies=keep_bodies)
        self.closed: dict[int, CloseUpdate] = {}

    @property
    def kept(self) -> dict[int, bytes]:
        """The bodies of all updates ever issued."""
        assert self.bodies is not None
        return self.bodies

    def write(self, rows: Sequence[Any]) -> None:
        for row in rows:
            self._guard(row)
            super().write([row])

    def _guard(self, row: Any) -> None:
        match row:
            case PutUpdate(seq) if seq in self.kept:
                raise OracleError(f"{self.node} issued {seq} twice")
            case CloseUpdate(seq):
                if seq in self.closed or seq not in self.kept:
                    raise OracleError(f"{self.node} closed {seq} twice or too early")
                self.closed[seq] = row

    def ids(self, outcome: str) -> set[UpdateId]:
        """Return the updates that ended so; "" stands for those still held, "any" for all issued."""
        if outcome == "any":
            seqs = set(self.kept)
        elif outcome == "":
            seqs = set(self.outbox)
        else:
            seqs = {seq for seq, row in self.closed.items() if row.outcome == outcome}
        return {UpdateId(self.node, self.epoch, seq) for seq in seqs}


class KeptLedger(LedgerDisk):
    """The aggregator's disk that forgets nothing: the replay from version 0 needs every merge input."""

    def __init__(self, first: Descriptor, *args: Any) -> None:
        super().__init__(first, *args)
        self.history: dict[int, tuple[Descriptor, Vector]] = {0: (first, first_params())}
        self.inputs: dict[int, list[Partial]] = {}

    def write(self, rows: Sequence[Any]) -> None:
        for row in rows:
            if isinstance(row, AcceptPartial) and row.partial.id in self.waiting:
                raise OracleError(f"partial {row.partial.id} is waiting already")
            super().write([row])

    def write_version(self, row: CommitVersion) -> None:
        version = row.descriptor.version
        if version in self.history:
            raise OracleError(f"version {version} was given out twice")
        missing = [name for name in row.partial_ids if name not in self.waiting]
        if missing:
            raise OracleError(f"version {version} merges {missing}, which are not on disk")
        self.history[version] = (row.descriptor, row.params.copy())
        self.inputs[version] = [_partial(self.waiting[name]) for name in row.partial_ids]
        super().write_version(row)

    def write_ledger(self, row: CommitVersion) -> None:
        for header in row.headers:
            if header.id in self.ledger:
                raise OracleError(f"C1: {header.id} is applied twice")
        super().write_ledger(row)


def node_disks(fleet: Fleet) -> list[KeptNodeDisk]:
    """Return the nodes' disks."""
    disks = []
    for node in fleet.nodes:
        assert isinstance(node.disk, KeptNodeDisk)
        disks.append(node.disk)
    return disks


def ledger_of(fleet: Fleet) -> KeptLedger:
    """Return the aggregator's disk."""
    assert isinstance(fleet.ledger, KeptLedger)
    return fleet.ledger


def check(fleet: Fleet) -> None:
    """Check what must hold at any moment; C1 is enforced by the ledger itself."""
    disks, ledger = node_disks(fleet), ledger_of(fleet)
    for disk in disks:
        check_books(disk, ledger)
    issued = {i for disk in disks for i in disk.ids("any")}
    invented = ledger.ledger.keys() - issued
    if invented:
        raise OracleError(f"C3: {sorted(invented)} were never issued")


def check_books(disk: KeptNodeDisk, ledger: KeptLedger) -> None:
    """Issued = applied + rejected + expired + (outbox minus what the ledger holds)."""
    applied = {i for i in ledger.ledger if i.node == disk.node}
    believed = disk.ids("applied")
    if believed - applied:
        raise OracleError(f"C2: {sorted(believed - applied)} settled but not in the ledger")
    refused = disk.ids("rejected") | disk.ids("expired")
    if refused & applied:
        raise OracleError(f"C6: {sorted(refused & applied)} refused, yet in the ledger")
    waiting = disk.ids("") - applied
    if len(disk.ids("any")) != len(applied) + len(refused) + len(waiting):
        raise OracleError(f"the books of {disk.node} do not balance")
    silent = [row for row in disk.closed.values() if row.outcome == "rejected" and not row.reason]
    if silent:
        raise OracleError(f"C6: {silent} without a reason")


def check_replay(fleet: Fleet) -> None:
    """C4: every version is the bit-exact merge of issued updates, from version 0 on."""
    ledger, bodies = ledger_of(fleet), _issued(fleet)
    descriptors = {version: entry[0] for version, entry in ledger.history.items()}
    plans = plans_of(ledger)
    params = first_params()
    for version in range(1, ledger.version + 1):
        before = descriptors[version - 1]
        context = MergeContext(
            manifest=MANIFEST,
            version=version - 1,
            law=before.rules.staleness,
            plans=plans,
            rules=lambda v: descriptors[v].rules,
            learning_rate=before.rules.server_learning_rate,
        )
        parts = [sums_of(partial, ledger, bodies) for partial in ledger.inputs[version]]
        params, _ = merge(params, add(*parts), context)
        descriptor, stored = ledger.history[version]
        if params.tobytes() != stored.tobytes():
            raise OracleError(f"C4: version {version} is not the replay of its inputs")
        digests = {name: unit.digest for name, unit in descriptor.units.items()}
        if digests != MANIFEST.digests(params, descriptor.downlink):
            raise OracleError(f"C4: version {version} is described wrongly")


def check_ledger_rows(fleet: Fleet) -> None:
    """The ledger holds the headers of the merged partials, no more and no less."""
    ledger = ledger_of(fleet)
    merged = {
        header.id: version
        for version, partials in ledger.inputs.items()
        for partial in partials
        for header in partial.headers
    }
    if merged != {update_id: row.version for update_id, row in ledger.ledger.items()}:
        raise OracleError("C4: the ledger is not what the merged partials name")


def _issued(fleet: Fleet) -> dict[UpdateId, Update]:
    out: dict[UpdateId, Update] = {}
    for disk in node_disks(fleet):
        for body in disk.kept.values():
            update = decode(body)
            assert isinstance(update, Update)
            out[update.id] = update
    return out


def sums_of(
    partial: Partial, ledger: KeptLedger, bodies: dict[UpdateId, Update]
) -> PartialAggregate:
    """Return a partial's sums, which must be those of the updates that its headers name."""
    parts, plans = [], plans_of(ledger)
    newest = ledger.history[partial.at_version][0].rules
    for header in partial.headers:
        update = bodies[header.id]
        if replace(header, plan_id="") != update.header:
            raise OracleError(f"C3: {partial.id} alters the header of {header.id}")
        based_on = ledger.history[header.base_version][0]
        if update.plan_id not in {based_on.plan_id, *based_on.nested}:
            raise OracleError(f"C3: {header.id} was trained under a plan that its version has not")
        plan, base = plans[update.plan_id], based_on.rules
        frame = frame_for(base, header.base_version, newest, partial.at_version)
        parts.append(contribution(update.header, decode_delta(update, plan), plan, base, frame))
    flat = add(*parts)
    if partial.sums:
        _compare(partial, flat, plans)
    elif [bodies[update.id] for update in partial.updates] != partial.updates:
        raise OracleError(f"C3: {partial.id} carries altered updates")
    return flat


def plans_of(ledger: KeptLedger) -> dict[str, Plan]:
    """Return every plan that any version ever had, by id."""
    found = {}
    for descriptor, _ in ledger.history.values():
        for units in (descriptor.plan, *descriptor.nested.values()):
            plan = Plan.of(MANIFEST, units)
            found[plan.plan_id] = plan
    return found


def _compare(partial: Partial, flat: PartialAggregate, plans: dict[str, Plan]) -> None:
    sent = from_wire(partial.sums, plans)
    same = sent.keys() == flat.keys() and all(
        np.array_equal(sent[key].total, flat[key].total) and sent[key].weight == flat[key].weight
        for key in flat
    )
    if not same:
        raise OracleError(f"C3: the sums of {partial.id} are not those of its updates")


def _partial(body: bytes) -> Partial:
    partial = decode(body)
    assert isinstance(partial, Partial)
    return partial
