"""What travels between nodes, gateways and the aggregator.

Each message is a frozen struct; `hedgerow.core.codec` turns it into bytes and back and refuses anything
that does not fit. Unknown fields are ignored, so a neighbour one release ahead is understood.
"""

from hashlib import blake2b
from typing import Annotated, Literal

from msgspec import Meta, Struct

from hedgerow.core.config import Identifier
from hedgerow.core.downlink import Downlink
from hedgerow.core.rules import LocalTraining, ProbeRequest, Rules
from hedgerow.core.wire import Count, Digest, UnitName, Word

NodeStateName = Literal["ready", "training", "sleeping", "disconnected", "lost"]
ReceiptStatus = Literal["admitted", "busy", "settled", "rejected"]


NO_ROUTE = 255
"""`GatewayState.hops` of a gateway with no way to the aggregator."""

Encoding = Literal["fp32", "int8", "int4", "sign", "topk"]


class UpdateId(Struct, frozen=True, array_like=True, order=True):
    """The name of one update: never reused, so a repeat is recognised for ever."""

    node: Identifier
    epoch: Count
    seq: Count


class Header(Struct, frozen=True, array_like=True):
    """What a partial aggregate says of each update in it.

    `plan_id` is "" where the update was trained under its base version's own plan. `hash` is that of the
    update's content, 0 where it is not known: two updates of one id with other hashes are a fork.
    """

    id: UpdateId
    base_version: Count
    examples: Count
    kappa: float
    plan_id: Word = ""
    hash: Count = 0


WIRE_VERSION = 1


class _Message(Struct, frozen=True, kw_only=True, tag_field="t"):
    """Base of everything that travels on its own; `v` is the version of the wire format."""

    v: Annotated[int, Meta(ge=0, lt=1 << 31)] = WIRE_VERSION


class Update(_Message, frozen=True, kw_only=True, tag="update"):
    """A node's delta on the units of one plan, encoded by `hedgerow.core.quantize`."""

    id: UpdateId
    model: Identifier
    base_version: Count
    plan_id: Digest
    examples: Annotated[int, Meta(ge=1, lt=1 << 31)]
    kappa: float
    encoding: Encoding
    scales: Annotated[bytes, Meta(max_length=4 * 4096)]
    payload: bytes

    @property
    def header(self) -> Header:
        """What a partial aggregate keeps of this update."""
        return Header(self.id, self.base_version, self.examples, self.kappa, hash=self.hash)

    @property
    def hash(self) -> int:
        """48 bits of BLAKE2b over everything that decides what this update does to a model."""
        told = f"{self.model} {self.base_version} {self.plan_id} {self.examples} {self.encoding} "
        digest = blake2b(told.encode(), digest_size=6)
        digest.update(self.scales)
        digest.update(self.payload)
        return int.from_bytes(digest.digest(), "little")


class Chunk(_Message, frozen=True, kw_only=True, tag="chunk"):
    """A piece of one encoded update; `digest` of the whole is set in the last piece only."""

    id: UpdateId
    model: Identifier
    base_version: Count
    plan_id: Digest
    index: Count
    count: Annotated[int, Meta(ge=1, le=65536)]
    total_bytes: Count
    crc32: Count
    body: bytes
    digest: Word = ""


class Offer(_Message, frozen=True, kw_only=True, tag="offer"):
    """Ids of updates a node still holds; the gateway answers with receipts and what it wants.

    `hashes` are the contents' hashes in the same order, or none: an id alone does not say that it is the
    same update, for a node's disk may have been put back to an older state.
    """

    ids: Annotated[list[UpdateId], Meta(max_length=1024)]
    hashes: Annotated[list[Count], Meta(max_length=1024)] = []


class Receipt(Struct, frozen=True, array_like=True):
    """What became of one update; `settled` and `rejected` are final.

    `hash` is that of the content which is settled, 0 where it is not known.
    """

    id: UpdateId
    status: ReceiptStatus
    reason: Word = ""
    hash: Count = 0


class Receipts(_Message, frozen=True, kw_only=True, tag="receipts"):
    """Receipts for one node, or for all nodes of a gateway; merged up to `version` when from the ledger."""

    receipts: Annotated[list[Receipt], Meta(max_length=8192)]
    version: Count = 0


class BodiesWanted(_Message, frozen=True, kw_only=True, tag="bodies-wanted"):
    """The gateway wants these updates whole."""

    ids: Annotated[list[UpdateId], Meta(max_length=1024)]


class ChunksWanted(_Message, frozen=True, kw_only=True, tag="chunks-wanted"):
    """The gateway lacks these pieces of an update."""

    id: UpdateId
    missing: Annotated[list[Count], Meta(max_length=8192)]


class BlobsWanted(_Message, frozen=True, kw_only=True, tag="blobs-wanted"):
    """Units asked for by digest: a node of its gateway, a gateway of the aggregator."""

    model: Identifier
    digests: Annotated[list[Digest], Meta(max_length=4096)]


class BlobPart(_Message, frozen=True, kw_only=True, tag="blob"):
    """A piece of a unit's bytes, in its version's `downlink` format."""

    digest: Digest
    index: Count
    count: Annotated[int, Meta(ge=1, le=65536)]
    body: bytes


class NodeState(_Message, frozen=True, kw_only=True, tag="node-state"):
    """A node's retained state; the broker publishes it as "lost" when the node dies.

    `metrics` are of its last test on its own examples: "global NAME" those of the version as published, and
    "personal NAME" those with the units that the node keeps to itself.
    """

    node: Identifier
    epoch: Count
    state: NodeStateName
    gateway: Word = ""
    version: Count = 0
    memory_class: Word = ""
    usual_us: Count = 0
    peak_bytes: Count = 0
    counters: Annotated[dict[Word, Count], Meta(max_length=64)] = {}
    metrics: Annotated[dict[Word, float], Meta(max_length=32)] = {}


class GatewayState(_Message, frozen=True, kw_only=True, tag="gateway-state"):
    """A gateway's retained state: nodes and peers choose by it.

    `hops` is how many peers lie between this gateway and the aggregator, 0 with an `uplink` of its own and
    NO_ROUTE without any way there. `load` is the share of its buffer that is full. `acting` is the term
    under which it is the acting aggregator of an island, 0 when it is none; `served` the newest version of
    the aggregator that it has whole, told only without a way there; -1 is none.
    """

    gateway: Identifier
    boot: Count
    state: Literal["ready", "lost"]
    nodes: Count = 0
    uplink: bool = False
    hops: Annotated[int, Meta(ge=0, le=255)] = 255
    via: Word = ""
    load: Annotated[float, Meta(ge=0, le=1)] = 0.0
    acting: Count = 0
    served: Annotated[int, Meta(ge=-1, lt=1 << 62)] = -1


class UnitVersion(Struct, frozen=True, array_like=True):
    """A unit as of some version: its content's digest, the version it last changed at, its shape."""

    digest: Digest
    changed: Count
    shape: Annotated[list[Annotated[int, Meta(gt=0, lt=1 << 31)]], Meta(max_length=8)]


class UnitValues(Struct, frozen=True, array_like=True):
    """One node's answer to a probe: the mean squared gradient norm of each unit that it could probe."""

    node: Identifier
    round: Count
    values: Annotated[dict[UnitName, float], Meta(max_length=4096)]


class IslandStamp(Struct, frozen=True, array_like=True):
    """Marks a provisional version: whose, under which term, and the aggregator's version it began at."""

    gateway: Identifier
    term: Count
    base_version: Count


class Descriptor(_Message, frozen=True, kw_only=True, tag="descriptor"):
    """A version of the model, without its parameters: what to train, from what, and by which rules.

    `deadline_us` is the merge deadline, which no gateway may outwait. `training` is by memory class and has
    "default". A model in which `training_open` is false is finished: nodes train no more and drain.
    `sample` names the nodes that a round-based strategy asks to train from this version, None asks all;
    `individual` asks gateways to pass updates on unsummed; `inline` are the plan's units (`core.inline`).
    All units' bytes are in the format `downlink` (`core.downlink`).
    `nested` has plans by id that are parts of `plan`, for memory classes; `personal` units are trained by
    nodes and never leave them; `probe` asks for the units' values. `island` marks a provisional version, made
    by a site without an uplink; its number is from `hedgerow.core.versions.FIRST_PROVISIONAL` on.
    """

    model: Identifier
    version: Count
    parent: Count
    term: Count
    plan_id: Digest
    plan: Annotated[list[UnitName], Meta(min_length=1, max_length=4096)]
    units: Annotated[dict[UnitName, UnitVersion], Meta(min_length=1, max_length=4096)]
    rules: Rules
    training: Annotated[dict[Word, LocalTraining], Meta(min_length=1, max_length=64)]
    encoding: Encoding
    downlink: Downlink = "fp32"
    deadline_us: Count
    training_open: bool = True
    sample: Annotated[list[Identifier], Meta(max_length=1 << 14)] | None = None
    individual: bool = False
    inline: Annotated[bytes, Meta(max_length=1 << 16)] = b""
    nested: Annotated[dict[Digest, list[UnitName]], Meta(max_length=64)] = {}
    personal: Annotated[list[UnitName], Meta(max_length=4096)] = []
    probe: ProbeRequest | None = None
    island: IslandStamp | None = None


class IslandResult(Struct, frozen=True, array_like=True):
    """What a site came to without an uplink: the change of a plan's `units` since `base_version`.

    The units are named, for their plan may be long forgotten. `delta` is little-endian float32, shape (p,);
    it is the sum of `merges` provisional steps.
    """

    gateway: Identifier
    term: Count
    base_version: Count
    units: Annotated[list[UnitName], Meta(min_length=1, max_length=4096)]
    merges: Count
    delta: bytes


class BucketSums(Struct, frozen=True, array_like=True):
    """Integer sums over the updates of one plan at one reference version.

    `total` is P, int32 little-endian, shape (p,); `weight` A = sum a psi s; `decayed` = sum a s;
    `examples` A0 = sum a; `squares` A2 = sum (a psi s)^2; `norms` Q = sum a psi s |delta_k|^2 per unit;
    s is 1 in bucket mode and gamma^(v_g - b) in exponential mode.
    """

    plan_id: Digest
    ref_version: Count
    gamma: Annotated[float, Meta(gt=0, le=1)]
    total: bytes
    weight: Count
    decayed: Count
    examples: Count
    squares: Count
    norms: Annotated[list[Count], Meta(max_length=4096)]
    count: Annotated[int, Meta(ge=1, le=1 << 20)]


class Partial(_Message, frozen=True, kw_only=True, tag="partial"):
    """A gateway's partial aggregate: sums, or the updates themselves where those are smaller.

    With `island` it carries neither: the headers' updates are in the island's result.
    """

    id: Word
    gateway: Identifier
    model: Identifier
    at_version: Count
    headers: Annotated[list[Header], Meta(min_length=1, max_length=8192)]
    sums: Annotated[list[BucketSums], Meta(max_length=8)] = []
    updates: Annotated[list[Update], Meta(max_length=8192)] = []
    island: IslandResult | None = None


class Bundle(_Message, frozen=True, kw_only=True, tag="bundle"):
    """Partial aggregates on their way through peers, as their gateways made them: a relay adds nothing up.

    `gateway` hands them over; `path` are the gateways they came through, the one that made them first.
    """

    gateway: Identifier
    path: Annotated[list[Identifier], Meta(min_length=1, max_length=16)]
    partials: Annotated[list[Partial], Meta(min_length=1, max_length=64)]


class PartialReply(_Message, frozen=True, kw_only=True, tag="partial-reply"):
    """The aggregator's answer to one partial.

    accepted: durable, to be settled by a merge. known: every id is; `receipts` tell their fate. overlap:
    nothing was applied; `receipts` name the ids to leave out. rejected: nothing will be.
    """

    partial_id: Word
    status: Literal["accepted", "known", "overlap", "rejected"]
    receipts: Annotated[list[Receipt], Meta(max_length=8192)] = []
    reason: Word = ""


class Subscribe(_Message, frozen=True, kw_only=True, tag="subscribe"):
    """A gateway asks for versions and receipts newer than `after`."""

    gateway: Identifier
    after: Count


class ProbeAnswer(_Message, frozen=True, kw_only=True, tag="probe-answer"):
    """A node's answer to a probe, on its way to the gateway; it may be lost without harm."""

    model: Identifier
    values: UnitValues


class FleetReport(_Message, frozen=True, kw_only=True, tag="fleet-report"):
    """What a gateway knows of its nodes and of itself, for the operator's eyes, and answers to probes."""

    gateway: Identifier
    boot: Count
    nodes: Annotated[list[NodeState], Meta(max_length=8192)]
    counters: Annotated[dict[Word, Count], Meta(max_length=256)] = {}
    values: Annotated[list[UnitValues], Meta(max_length=1024)] = []


Message = (
    Update
    | Chunk
    | Offer
    | Receipts
    | BodiesWanted
    | ChunksWanted
    | BlobsWanted
    | BlobPart
    | NodeState
    | GatewayState
    | Descriptor
    | Partial
    | Bundle
    | PartialReply
    | Subscribe
    | ProbeAnswer
    | FleetReport
)
