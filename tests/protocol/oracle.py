"""The promises, checked from what is on the disks alone (plus every message body ever issued)."""

import numpy as np

from hedgerow.core.codec import decode
from hedgerow.core.merge import MergeContext, merge
from hedgerow.core.messages import Partial, Update
from hedgerow.core.partial import (
    PartialAggregate,
    add,
    contribution,
    frame_for,
    from_wire,
)
from hedgerow.core.quantize import decode_delta
from tests.protocol.disks import LedgerDisk, NodeDisk, ViolationError
from tests.protocol.fleet import Fleet
from tests.protocol.scenarios import MANIFEST, PLAN, first_params


def check(fleet: Fleet) -> None:
    """Check what must hold at any moment; C1 is enforced by the ledger itself."""
    for disk in fleet.node_disks.values():
        check_books(disk, fleet.ledger)
    issued = {i for disk in fleet.node_disks.values() for i in disk.ids("any")}
    invented = fleet.ledger.ledger.keys() - issued
    if invented:
        raise ViolationError(f"C3: {sorted(invented)} were never issued")


def check_books(disk: NodeDisk, ledger: LedgerDisk) -> None:
    """Issued = applied + rejected + expired + (outbox minus what the ledger holds)."""
    applied = {i for i in ledger.ledger if i.node == disk.node}
    believed = disk.ids("applied")
    if believed - applied:
        raise ViolationError(f"C2: {sorted(believed - applied)} settled but not in the ledger")
    refused = disk.ids("rejected") | disk.ids("expired")
    if refused & applied:
        raise ViolationError(f"C6: {sorted(refused & applied)} refused, yet in the ledger")
    waiting = disk.ids("") - applied
    if len(disk.ids("any")) != len(applied) + len(refused) + len(waiting):
        raise ViolationError(f"the books of {disk.node} do not balance")


def check_replay(fleet: Fleet) -> None:
    """C4: every version is the bit-exact merge of issued updates, from version 0 on."""
    ledger, bodies = fleet.ledger, _issued(fleet)
    descriptors = {version: entry[0] for version, entry in ledger.versions.items()}
    plans = {PLAN.plan_id: PLAN}
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
        parts = [_sums(partial, fleet, bodies) for partial in ledger.inputs[version]]
        params, _ = merge(params, add(*parts), context)
        descriptor, stored = ledger.versions[version]
        if params.tobytes() != stored.tobytes():
            raise ViolationError(f"C4: version {version} is not the replay of its inputs")
        digests = {name: unit.digest for name, unit in descriptor.units.items()}
        if digests != MANIFEST.digests(params):
            raise ViolationError(f"C4: version {version} is described wrongly")


def _issued(fleet: Fleet) -> dict[object, Update]:
    out: dict[object, Update] = {}
    for disk in fleet.node_disks.values():
        for body in disk.bodies.values():
            update = decode(body)
            assert isinstance(update, Update)
            out[update.id] = update
    return out


def _sums(partial: Partial, fleet: Fleet, bodies: dict[object, Update]) -> PartialAggregate:
    """Return a partial's sums, which must be those of the updates that its headers name."""
    parts = []
    newest = fleet.ledger.versions[partial.at_version][0].rules
    for header in partial.headers:
        update = bodies[header.id]
        base = fleet.ledger.versions[header.base_version][0].rules
        frame = frame_for(base, header.base_version, newest, partial.at_version)
        parts.append(contribution(update.header, decode_delta(update, PLAN), PLAN, base, frame))
    flat = add(*parts)
    if partial.sums:
        sent = from_wire(partial.sums, {PLAN.plan_id: PLAN})
        same = sent.keys() == flat.keys() and all(
            np.array_equal(sent[key].total, flat[key].total)
            and sent[key].weight == flat[key].weight
            for key in flat
        )
        if not same:
            raise ViolationError(f"C3: the sums of {partial.id} are not those of its updates")
    elif [bodies[update.id] for update in partial.updates] != partial.updates:
        raise ViolationError(f"C3: {partial.id} carries altered updates")
    return flat
