"""A small model and everything around it, as the protocol tests need it."""

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import msgspec
import numpy as np

from aggregator.lineage import Lineage
from aggregator.rows import LedgerRow, Snapshot
from edge_node.rows import Books
from hedgerow.core.chunks import chunk_update
from hedgerow.core.codec import encode
from hedgerow.core.config import Config, DataConfig
from hedgerow.core.effects import Announce, Effect, Record, Save, Send, SetTimer
from hedgerow.core.messages import Chunk, Descriptor, NodeState, Partial, Update, UpdateId
from hedgerow.core.partial import add, contribution, frame_for, to_wire
from hedgerow.core.plan import Plan
from hedgerow.core.planbook import header_of
from hedgerow.core.quantize import encode_delta
from hedgerow.core.units import Manifest, Vector

MODEL = "model"
CHUNK_BYTES = 64
SECOND_US = 1_000_000
MANIFEST = Manifest.of(
    {"body.weight": (4, 3), "body.bias": (4,), "head.weight": (2, 4), "head.bias": (2,)}
)
PLAN = Plan.of(MANIFEST, ["body.bias", "head.weight", "head.bias"])
WHOLE = Plan.of(MANIFEST, MANIFEST.by_name)

E = TypeVar("E")


def make_config(**sections: Mapping[str, Any]) -> Config:
    """Return a configuration; each keyword is a section with the keys that differ from the defaults."""
    base = Config(data=DataConfig(source="none"))
    changed = {
        name: msgspec.structs.replace(getattr(base, name), **dict(keys))
        for name, keys in sections.items()
    }
    return msgspec.structs.replace(base, **changed)


def first_params() -> Vector:
    return np.linspace(-1, 1, MANIFEST.size, dtype=np.float32)


def make_lineage(
    versions: int = 1, config: Config | None = None, term: int = 1, *, inline: bool = False
) -> Lineage:
    """Return a lineage of `versions` versions whose parameters each differ from the last one's.

    Its descriptors carry no units themselves unless `inline`, as if the model were larger than it is.
    """
    lineage = Lineage(config or make_config(), PLAN)
    params = first_params()
    for version in range(versions):
        made = lineage.next(params, term) if version else lineage.first(params, term)
        lineage.add(made if inline else msgspec.structs.replace(made, inline=b""))
        params = moved(params)
    return lineage


def moved(params: Vector, step: float = 0.125) -> Vector:
    """Return parameters whose planned units differ."""
    out = params.copy()
    for name in PLAN.names:
        out[MANIFEST.slices[name]] += np.float32(step)
    return out


def params_of(version: int) -> Vector:
    """Return the parameters of a version of `make_lineage`."""
    params = first_params()
    for _ in range(version):
        params = moved(params)
    return params


def make_snapshot(
    lineage: Lineage,
    *,
    term: int = 1,
    ledger: Iterable[LedgerRow] = (),
    waiting: Iterable[Partial] = (),
    metrics: Mapping[int, Mapping[str, float]] | None = None,
) -> Snapshot:
    return Snapshot(
        term=term,
        descriptors=tuple(lineage.since(0)),
        params=params_of(lineage.version),
        ledger=tuple(ledger),
        waiting=tuple(waiting),
        metrics=metrics or {},
    )


def make_books(node: str = "node-1", **keys: Any) -> Books:
    fresh: dict[str, Any] = {
        "epoch": 7,
        "issued": 0,
        "applied": 0,
        "rejected": {},
        "expired": 0,
        "last_base_version": -1,
        "outbox": {},
        "units": {},
    }
    return Books(node=node, **{**fresh, **keys})


def delta_of(value: float = 0.25, plan: Plan = PLAN) -> Vector:
    return np.full(plan.size, value, np.float32)


def scales_of(value: float) -> bytes:
    """Return one scale for every unit of the plan."""
    return np.full(len(PLAN.names), value, "<f4").tobytes()


def make_update(
    seq: int = 1, base: int = 0, node: str = "node-1", *, value: float = 0.25, **changes: Any
) -> Update:
    """Return a well-formed update; `changes` replace its fields."""
    encoded = encode_delta(delta_of(value), PLAN, "int8", 10.0)
    update = Update(
        id=UpdateId(node, 7, seq),
        model=MODEL,
        base_version=base,
        plan_id=PLAN.plan_id,
        examples=16,
        kappa=1.0,
        encoding="int8",
        scales=encoded.scales,
        payload=encoded.payload,
    )
    return msgspec.structs.replace(update, **changes)


def chunks_of(update: Update, chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
    return chunk_update(update, encode(update), chunk_bytes)


def make_partial(
    updates: Iterable[Update],
    lineage: Lineage,
    *,
    partial_id: str = "gw-1-1-1",
    gateway: str = "gw-1",
    raw: bool = False,
) -> Partial:
    """Return what a gateway that knows the lineage's newest version posts of these updates."""
    updates = list(updates)
    known = {descriptor.version: descriptor for descriptor in lineage.since(0)}
    sums = [] if raw else to_wire(sums_of(updates, lineage))
    return Partial(
        id=partial_id,
        gateway=gateway,
        model=MODEL,
        at_version=lineage.version,
        headers=[
            header_of(u, known[u.base_version]) if u.base_version in known else u.header
            for u in updates
        ],
        sums=sums,
        updates=updates if raw else [],
    )


def sums_of(updates: Iterable[Update], lineage: Lineage) -> Any:
    parts = []
    for update in updates:
        base = lineage.rules(update.base_version)
        frame = frame_for(base, update.base_version, lineage.current.rules, lineage.version)
        plan = lineage.plans()[update.plan_id]
        parts.append(contribution(update.header, _decoded(update, plan), plan, base, frame))
    return add(*parts)


def _decoded(update: Update, plan: Plan) -> Vector:
    levels = np.frombuffer(update.payload, np.int8).astype(np.float32)
    scales = np.frombuffer(update.scales, "<f4")
    for where, scale in zip(plan.slices.values(), scales, strict=True):
        levels[where] *= scale
    return levels


def node_state(
    state: str = "ready", node: str = "node-1", gateway: str = "gw-1", **keys: Any
) -> NodeState:
    fields = {"t": "node-state", "node": node, "epoch": 7, "state": state, "gateway": gateway}
    return msgspec.convert({**fields, **keys}, NodeState)


def sent(effects: Iterable[Effect], kind: type[E], peer: str | None = None) -> list[E]:
    """Return the messages of a kind among what is sent, to one peer or to any."""
    return [
        effect.message
        for effect in effects
        if isinstance(effect, Send)
        and isinstance(effect.message, kind)
        and peer in (None, effect.peer)
    ]


def announced(effects: Iterable[Effect], kind: type[E]) -> list[E]:
    return [
        effect.message
        for effect in effects
        if isinstance(effect, Announce) and isinstance(effect.message, kind)
    ]


def saves(effects: Iterable[Effect]) -> list[Save]:
    return [effect for effect in effects if isinstance(effect, Save)]


def saved_rows(effects: Iterable[Effect], kind: type[E]) -> list[E]:
    return [row for save in saves(effects) for row in save.rows if isinstance(row, kind)]


def timers(effects: Iterable[Effect]) -> dict[str, int]:
    return {effect.name: effect.after_us for effect in effects if isinstance(effect, SetTimer)}


def recorded(effects: Iterable[Effect], event: str) -> list[Record]:
    return [e for e in effects if isinstance(e, Record) and e.event == event]


def newest(lineage: Lineage, **changes: Any) -> Descriptor:
    """Return the newest descriptor with some fields changed."""
    return msgspec.structs.replace(lineage.current, **changes)
