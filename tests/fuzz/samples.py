"""Well-formed inputs of every target, made from real messages: where fuzzing begins."""

from functools import cache

import numpy as np

from hedgerow.core.codec import encode
from hedgerow.core.messages import (
    BlobsWanted,
    BodiesWanted,
    Bundle,
    ChunksWanted,
    FleetReport,
    IslandResult,
    Message,
    Offer,
    Partial,
    PartialReply,
    ProbeAnswer,
    Receipt,
    Receipts,
    Subscribe,
    UnitValues,
    UpdateId,
)
from hedgerow.core.quantize import encode_delta
from hedgerow.core.thin import pack
from hedgerow.runtime.configfile import packaged_configs
from hedgerow.runtime.http_wire import frame
from tests.fuzz.targets import CONVERSATIONS, ENCODINGS, PEERS, TARGETS, framed
from tests.protocol.gateway_bench import blobs
from tests.protocol.node_bench import gateway_state, parts
from tests.protocol.scenarios import (
    MODEL,
    PLAN,
    chunks_of,
    make_lineage,
    make_partial,
    make_update,
    node_state,
)

ID = UpdateId("node-1", 7, 1)
TOPICS = (
    "gw/gw-1/up/node-1",
    "gw/gw-1/state",
    "gw/gw-1/plan/m",
    "gw/gw-1/peer/gw-2",
    "node/node-1/state",
    "to/node-1/ack",
    "to/node-1/cmd",
    "blob/m/00/0",
)
LARGEST = 16


@cache
def sample_messages() -> tuple[Message, ...]:
    """Return at least one message of every kind."""
    lineage, plain = make_lineage(3), make_lineage(3, inline=True)
    updates = [make_update(seq, 2, f"node-{seq}") for seq in (1, 2)]
    summed = make_partial(updates, lineage)
    single = make_partial(updates, lineage, raw=True, partial_id="gw-1-1-2")
    zeros = bytes(4 * PLAN.size)
    island = IslandResult("gw-1", 3, 2, list(PLAN.names), 2, zeros)
    carried = Partial(
        id="gw-1-1-3",
        gateway="gw-1",
        model=MODEL,
        at_version=2,
        headers=summed.headers,
        island=island,
    )
    values = UnitValues("node-1", 1, dict.fromkeys(PLAN.names, 1.0))
    return (
        *updates,
        *chunks_of(updates[0]),
        Offer(ids=[ID], hashes=[updates[0].hash]),
        Receipts(receipts=[Receipt(ID, "settled")], version=1),
        Receipts(receipts=[Receipt(ID, "rejected", "fork")]),
        BodiesWanted(ids=[ID]),
        ChunksWanted(id=ID, missing=[0, 1]),
        BlobsWanted(model=MODEL, digests=[PLAN.plan_id]),
        *blobs(2)[:2],
        node_state(),
        node_state("training"),
        gateway_state(),
        gateway_state("gw-2", uplink=False),
        lineage.current,
        plain.current,
        summed,
        single,
        carried,
        Bundle(gateway="gw-2", path=["gw-1"], partials=[summed]),
        PartialReply(partial_id=summed.id, status="accepted", receipts=[Receipt(ID, "settled")]),
        Subscribe(gateway="gw-1", after=0),
        ProbeAnswer(model=MODEL, values=values),
        FleetReport(gateway="gw-1", boot=1, nodes=[node_state()], values=[values]),
    )


def samples(target: str) -> list[bytes]:
    """Return well-formed inputs of a target."""
    bodies = [encode(message) for message in sample_messages()]
    match target:
        case "topic":
            return [topic.encode() for topic in TOPICS]
        case "frames":
            return [frame(bodies[0]), frame(b"") + frame(bodies[1]) + frame(bodies[2])]
        case "config":
            return [path.read_bytes() for path in packaged_configs().values()]
        case "levels":
            return _levels()
        case "update":
            return [*bodies, *_deltas()]
        case "chunks" | "pieces":
            return [bytes([1, 0, 1, 3, 4, 4]) + b"body", bytes([1, 0, 2, 8, 4, 0]) + b"body"]
    if target in CONVERSATIONS:
        return [*_talks(target, bodies), framed(*_everybody(bodies))]
    assert target in TARGETS, f"no samples for {target}"
    return bodies


OWN_PEERS = {
    "node": ("gw/gw-1", "gw", "blob"),
    "gateway": ("aggregator", "node/node-1", "gw/gw-2"),
    "aggregator": ("gw/gw-1", "gw/gw-2"),
}
"""Who talks to a tier in earnest."""


def conversation(target: str) -> bytes:
    """Return a conversation that goes well: a node trains, a gateway admits, an aggregator merges."""
    return framed(*[(PEERS.index(peer), encode(said)) for peer, said in _well(target)])


def _well(target: str) -> list[tuple[str, Message]]:
    lineage = make_lineage(3)
    told: list[tuple[str, Message]]
    match target:
        case "node":
            told = [("gw/gw-1", gateway_state()), ("gw/gw-1", lineage.current)]
            return [*told, *(("blob", part) for part in parts(2))]
        case "gateway":
            chunks = chunks_of(make_update(1, 2))
            told = [("aggregator", lineage.current)]
            told += [("aggregator", blob) for blob in blobs(2)]
            told += [("node/node-1", node_state("training"))]
            return [*told, *(("node/node-1", chunk) for chunk in chunks)]
    few = [[make_update(n, 2, f"node-{number}") for n in (1, 2)] for number in (1, 2)]
    posts = [
        make_partial(updates, lineage, partial_id=f"gw-1-1-{at}", raw=bool(at))
        for at, updates in enumerate(few)
    ]
    return [("gw/gw-1", Subscribe(gateway="gw-1", after=0)), *(("gw/gw-1", post) for post in posts)]


def _talks(target: str, bodies: list[bytes]) -> list[bytes]:
    peers = [PEERS.index(peer) for peer in OWN_PEERS[target]]
    single = [framed((peer, body)) for body in bodies for peer in peers]
    well = conversation(target)
    # What comes after a conversation that went well meets a process that holds something.
    return [*single, *[well + one for one in single], *[well] * len(single)]


def _everybody(bodies: list[bytes]) -> list[tuple[int, bytes]]:
    return [(at % len(PEERS), body) for at, body in enumerate(bodies)]


def _levels() -> list[bytes]:
    out = []
    for at, encoding in enumerate(ENCODINGS[1:]):
        for size in (1, 7, LARGEST):
            ones = np.ones(size, np.int8)
            out.append(bytes([4 * (size - 1) + at]) + pack(ones, encoding))
    return out


def _deltas() -> list[bytes]:
    delta = np.linspace(-1, 1, PLAN.size, dtype=np.float32)
    made = [(at, encode_delta(delta, PLAN, name, 10.0)) for at, name in enumerate(ENCODINGS)]
    return [bytes([at]) + one.scales + one.payload for at, one in made]
