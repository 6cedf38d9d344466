"""The promises, checked from what is on the disks alone, plus every message body ever issued.

It shares no code with `sims.checks`, which watches rows and receipts as they pass.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import replace

from aggregator.rows import AcceptPartial, CommitVersion
from edge_node.rows import CloseUpdate, PutUpdate
from hedgerow.core.codec import decode
from hedgerow.core.merge import MergeContext, merge
from hedgerow.core.messages import Descriptor, Header, Partial, Update, UpdateId
from hedgerow.core.partial import PartialAggregate, add, contribution, frame_for, from_wire
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import decode_delta
from hedgerow.core.units import Vector
from sims.checks import ViolationError
from sims.disks import LedgerDisk, NodeDisk
from sims.fleet import Fleet
from tests.protocol.scenarios import MANIFEST, first_params

Issued = dict[tuple[UpdateId, int], Update]
"""All updates ever issued by id and content's hash: a disk that is put back may issue an id twice."""


class OracleError(ViolationError):
    """A promise is broken, and the oracle or a guard of its disks found it."""


class KeptNodeDisk(NodeDisk):
    """A node's disk that remembers how each update ended, with the guards of the real store."""

    def __init__(self, node: str, *, keep_bodies: bool = False) -> None:
        super().__init__(node, keep_bodies=keep_bodies)
        self.closed: dict[UpdateId, CloseUpdate] = {}
        self.forgotten: defaultdict[UpdateId, list[bytes]] = defaultdict(list)

    @property
    def kept(self) -> dict[UpdateId, bytes]:
        """The bodies of all updates ever issued, but for those that the disk was made to forget."""
        assert self.bodies is not None
        return self.bodies

    def write(self, rows: Sequence[Any]) -> None:
        for row in rows:
            self._guard(row)
            super().write([row])

    def _guard(self, row: Any) -> None:
        match row:
            case PutUpdate(update_id) if update_id in self.kept:
                raise OracleError(f"{self.node} issued {update_id} twice")
            case CloseUpdate(update_id):
                if update_id in self.closed or update_id not in self.kept:
                    raise OracleError(f"{self.node} closed {update_id} twice or too early")
                self.closed[update_id] = row

    def put_back(self, image: dict[str, Any]) -> None:
        super().put_back(image)
        for update_id in [i for i in self.kept if i.seq > self.issued_in[i.epoch]]:
            self.forgotten[update_id].append(self.kept.pop(update_id))
            self.closed.pop(update_id, None)
        for update_id in self.outbox:
            self.closed.pop(update_id, None)

    def has_forgotten(self, header: Header) -> bool:
        """Whether a header is of an update that the disk was made to forget, not of its twin."""
        if header.id not in self.forgotten:
            return False
        end, body = self.closed.get(header.id), self.kept.get(header.id)
        if end is not None and end.outcome in ("expired", "coalesced"):
            # A twin that was never offered may be dropped, although it is the same update to the bit.
            return True
        return body is None or _update(body).hash != header.hash

    def ids(self, outcome: str) -> set[UpdateId]:
        """Return the updates that ended so; "" stands for those still held, "any" for all issued."""
        if outcome == "any":
            return set(self.kept)
        if outcome == "":
            return set(self.outbox)
        return {i for i, row in self.closed.items() if row.outcome == outcome}


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
    issued = {i for disk in disks for i in (*disk.ids("any"), *disk.forgotten)}
    invented = ledger.ledger.keys() - issued
    if invented:
        raise OracleError(f"C3: {sorted(invented)} were never issued")


def check_books(disk: KeptNodeDisk, ledger: KeptLedger) -> None:
    """Issued = applied + rejected + expired + coalesced + (outbox minus what the ledger holds)."""
    rows = [row.header for row in ledger.ledger.values() if row.header.id.node == disk.node]
    applied = {header.id for header in rows if not disk.has_forgotten(header)}
    believed = disk.ids("applied")
    if believed - applied:
        raise OracleError(f"C2: {sorted(believed - applied)} settled but not in the ledger")
    refused = disk.ids("rejected") | disk.ids("expired") | disk.ids("coalesced")
    if refused & applied:
        raise OracleError(f"C6: {sorted(refused & applied)} refused, yet in the ledger")
    waiting = disk.ids("") - applied
    if len(disk.ids("any")) != len(applied) + len(refused) + len(waiting):
        raise OracleError(f"the books of {disk.node} do not balance")
    forked = [i for i, row in disk.closed.items() if row.reason == "fork" and i.epoch == disk.epoch]
    if forked:
        raise OracleError(f"C3: {disk.node} goes on in an epoch of which others issued {forked}")
    silent = [row for row in disk.closed.values() if row.outcome == "rejected" and not row.reason]
    if silent:
        raise OracleError(f"C6: {silent} without a reason")


def check_replay(fleet: Fleet) -> None:
    """C4: every version is the bit-exact merge of issued updates, from version 0 on."""
    ledger, bodies = ledger_of(fleet), _issued(fleet)
    descriptors = {version: entry[0] for version, entry in ledger.history.items()}
    plans = plans_of(ledger)
    params = first_params()
    for version in sorted(ledger.history)[1:]:
        before = descriptors[descriptors[version].parent]
        context = MergeContext(
            manifest=MANIFEST,
            version=before.version,
            law=before.rules.staleness,
            plans=plans,
            rules=lambda v: descriptors[v].rules,
            learning_rate=before.rules.server_learning_rate,
        )
        inputs = ledger.inputs[version]
        if inputs and inputs[0].island is not None:
            params = _with_island(params, fleet, inputs[0], before)
        else:
            parts = [sums_of(partial, ledger, bodies) for partial in inputs]
            params, _ = merge(params, add(*parts), context)
        descriptor, stored = ledger.history[version]
        if params.tobytes() != stored.tobytes():
            raise OracleError(f"C4: version {version} is not the replay of its inputs")
        digests = {name: unit.digest for name, unit in descriptor.units.items()}
        if digests != MANIFEST.digests(params, descriptor.downlink):
            raise OracleError(f"C4: version {version} is described wrongly")


def _with_island(params: Vector, fleet: Fleet, partial: Partial, before: Descriptor) -> Vector:
    """Return the parameters of version `before` with an island's contribution, shape (P,)."""
    island, law = partial.island, before.rules.staleness
    assert island is not None
    ledger = ledger_of(fleet)
    age = min(before.version - island.base_version, law.tau_max)
    weight = max(law.weight(age), before.rules.least_island_weight)
    cloud = sum(
        island.base_version < row.version <= before.version for row in ledger.ledger.values()
    )
    own = np.frombuffer(island.delta, "<f4").astype(np.float64)
    length = float(np.sqrt(np.dot(own, own)))
    bound = before.rules.clip_norm * island.merges
    clip = 1.0 if length <= bound else bound / length
    factor = weight * (len(partial.headers) / (len(partial.headers) + cloud)) * clip
    out = params.copy()
    plan = Plan.of(MANIFEST, island.units)
    for name, where in plan.slices.items():
        out[MANIFEST.slices[name]] += (factor * own[where]).astype(np.float32)
    return out


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


def _issued(fleet: Fleet) -> Issued:
    updates = (
        _update(body)
        for disk in node_disks(fleet)
        for bodies in ([*disk.kept.values()], *disk.forgotten.values())
        for body in bodies
    )
    return {(update.id, update.hash): update for update in updates}


def _update(body: bytes) -> Update:
    update = decode(body)
    assert isinstance(update, Update)
    return update


def sums_of(partial: Partial, ledger: KeptLedger, bodies: Issued) -> PartialAggregate:
    """Return a partial's sums, which must be those of the updates that its headers name."""
    parts, plans = [], plans_of(ledger)
    newest = ledger.history[partial.at_version][0].rules
    for header in partial.headers:
        update = bodies.get((header.id, header.hash))
        if update is None or replace(header, plan_id="") != update.header:
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
    elif [bodies.get((update.id, update.hash)) for update in partial.updates] != partial.updates:
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
