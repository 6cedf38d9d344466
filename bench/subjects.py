"""The models and updates that are measured: a 64-h-10 network whose size sets the payload's."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from hedgerow.core.messages import Descriptor, Encoding, NodeState, UnitVersion, Update, UpdateId
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import encode_delta
from hedgerow.core.rules import LocalTraining, Rules
from hedgerow.core.staleness import StalenessLaw
from hedgerow.core.units import Manifest, Vector

INPUTS, OUTPUTS = 64, 10
MODEL, SITE, GATEWAY = "bench", "bench", "gw-1"
CLIP_NORM = 10.0
NODES = 64
FLUSH_COUNT = 16
BUFFER_SIZE = 64


@dataclass(frozen=True)
class Subject:
    """A network with `hidden` units all of which are trained, and how its updates are encoded."""

    name: str
    hidden: int
    encoding: Encoding

    @cached_property
    def plan(self) -> Plan:
        """Every unit, named as the built-in network names them."""
        hidden = self.hidden
        shapes = {
            "hidden.0.weight": (hidden, INPUTS),
            "hidden.0.bias": (hidden,),
            "output.weight": (OUTPUTS, hidden),
            "output.bias": (OUTPUTS,),
        }
        return Plan.of(Manifest.of(shapes), shapes)

    @property
    def payload_bytes(self) -> int:
        """Bytes of one update's payload."""
        return self.plan.size * (1 if self.encoding == "int8" else 4)

    def params(self) -> Vector:
        """Return parameters, shape (P,)."""
        return np.random.default_rng(1).standard_normal(self.plan.size).astype(np.float32)

    def tables(self) -> dict[str, Any]:
        """Return the configuration of a fleet that trains this: all defaults, but sizes and no target.

        64 light nodes send through one gateway, which flushes every 16 updates; a version is merged of 64.
        """
        return {
            "fleet": {"site": SITE, "model": MODEL, "nodes": NODES, "gateways": 1},
            "data": {"source": "digits"},
            "task": {"name": "mlp", "outputs": OUTPUTS, "options": {"hidden": [self.hidden]}},
            "plan": {"preset": "all"},
            "training": {"encoding": self.encoding, "clip_norm": CLIP_NORM},
            "aggregation": {"buffer_size": BUFFER_SIZE},
            "gateway": {"flush_count": FLUSH_COUNT},
            "stop": {"max_versions": 1_000_000},
        }


SUBJECTS = (
    Subject("10 KB int8", 133, "int8"),
    Subject("400 KB int8", 5333, "int8"),
    Subject("400 KB fp32", 1333, "fp32"),
)
"""Payloads of 9,985, 399,985 and 399,940 bytes; the last is what the Flower measurement sent."""


class UpdateMaker:
    """Makes updates that differ in their ids only, so that making them costs little."""

    def __init__(self, plan: Plan, encoding: Encoding) -> None:
        delta = np.random.default_rng(2).standard_normal(plan.size).astype(np.float32)
        delta *= np.float32(0.9 * CLIP_NORM / np.linalg.norm(delta))
        self._encoded = encode_delta(delta, plan, encoding, CLIP_NORM)
        self._plan = plan
        self._encoding = encoding

    def update(self, update_id: UpdateId, base_version: int) -> Update:
        """Return an update trained from `base_version`."""
        return Update(
            id=update_id,
            model=MODEL,
            base_version=base_version,
            plan_id=self._plan.plan_id,
            examples=32,
            kappa=1.0,
            encoding=self._encoding,
            scales=self._encoded.scales,
            payload=self._encoded.payload,
        )


def first_descriptor(subject: Subject, digests: Mapping[str, str]) -> Descriptor:
    """Return version 0 of a subject; `digests` are its units'."""
    units = subject.plan.manifest.units
    return Descriptor(
        model=MODEL,
        version=0,
        parent=0,
        term=1,
        plan_id=subject.plan.plan_id,
        plan=list(subject.plan.names),
        units={unit.name: UnitVersion(digests[unit.name], 0, list(unit.shape)) for unit in units},
        rules=Rules(staleness=StalenessLaw(gamma=0.8), clip_norm=CLIP_NORM),
        training={"default": LocalTraining(passes=1, batch_size=16, learning_rate=0.1)},
        encoding=subject.encoding,
        deadline_us=60_000_000,
    )


def node_state(node: str, state: Literal["training", "ready"], seq: int, outbox: int) -> NodeState:
    """Return a state as a real node announces it: four of them for each update."""
    counters = {"issued": seq, "applied": seq - outbox, "rejected": 0, "expired": 0}
    counters |= {"outbox": outbox, "mqtt_bytes_up": 0, "mqtt_bytes_down": 0}
    return NodeState(
        node=node,
        epoch=1,
        state=state,
        gateway=GATEWAY,
        memory_class="default",
        usual_us=1_000_000,
        peak_bytes=100_000,
        counters=counters,
    )
