"""A client of the broker that may send anything: hostile updates, garbage, what others said before."""

import time
from collections.abc import Callable
from typing import Any, Self

import numpy as np
from msgspec.structs import replace
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from hedgerow.core.chunks import chunk_update
from hedgerow.core.codec import decode, encode
from hedgerow.core.messages import Descriptor, Receipt, Receipts, Update, UpdateId
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import encode_delta
from hedgerow.core.units import Manifest, Vector
from tests.faults.fleet import Fleet

_SENT_S = 20.0


class Sender:
    """Sends as node `name` to a fleet's first gateway, and hears what that node is told."""

    def __init__(self, fleet: Fleet, name: str = "node-99") -> None:
        self.name = name
        self.receipts: list[Receipt] = []
        self._waiting: list[paho.MQTTMessageInfo] = []
        self._gateway = fleet.gateways[0]
        self._prefix = f"hedgerow/1/{fleet.tables['fleet']['site']}"
        self._newest: Descriptor | None = None
        if name not in fleet.nodes:
            fleet.strangers.add(name)
        self._client = paho.Client(
            CallbackAPIVersion.VERSION2, f"sender-{name}", protocol=paho.MQTTv5
        )
        self._client.on_message = self._take
        self._client.connect("127.0.0.1", fleet.broker_port)
        self._client.subscribe(
            [
                (f"{self._prefix}/to/{name}/#", 1),
                (f"{self._prefix}/gw/{self._gateway}/plan/+", 1),
            ]
        )
        self._client.loop_start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    @property
    def topic(self) -> str:
        """Where a node's messages to the gateway go."""
        return f"{self._prefix}/gw/{self._gateway}/up/{self.name}"

    @property
    def newest(self) -> Descriptor:
        """The newest version that the gateway serves."""
        self.until(lambda: self._newest is not None, "a version")
        assert self._newest is not None
        return self._newest

    def until(self, condition: Callable[[], bool], what: str, bound_s: float = _SENT_S) -> None:
        deadline = time.monotonic() + bound_s
        while not condition():
            assert time.monotonic() < deadline, f"the sender waits for {what} in vain"
            time.sleep(0.02)

    def publish(self, topic: str, payload: bytes) -> None:
        """Publish and wait for the broker's acknowledgement."""
        self._client.publish(topic, payload, qos=1).wait_for_publish(_SENT_S)

    def publish_later(self, topic: str, payload: bytes) -> None:
        """Publish without waiting; `flush` waits for all of them."""
        self._waiting.append(self._client.publish(topic, payload, qos=1))

    def flush(self) -> None:
        for one in self._waiting:
            one.wait_for_publish(_SENT_S)
        self._waiting.clear()

    def update(self, seq: int, delta: Vector | None = None, *, epoch: int = 1) -> Update:
        """Return a sound update of the newest version; `delta`, shape (p,), is small where not given."""
        newest = self.newest
        plan = self.plan
        if delta is None:
            delta = np.random.default_rng(seq).standard_normal(plan.size).astype(np.float32)
            delta *= np.float32(1e-3)
        encoded = encode_delta(delta, plan, "fp32", newest.rules.clip_norm)
        return Update(
            id=UpdateId(self.name, epoch, seq),
            model=newest.model,
            base_version=newest.version,
            plan_id=newest.plan_id,
            examples=8,
            kappa=1.0,
            encoding="fp32",
            scales=encoded.scales,
            payload=encoded.payload,
        )

    @property
    def plan(self) -> Plan:
        """The newest version's plan."""
        shapes = {name: unit.shape for name, unit in self.newest.units.items()}
        return Plan.of(Manifest.of(shapes), self.newest.plan)

    def send(self, update: Update) -> None:
        """Send an update in one chunk, as its sender says it is."""
        for chunk in chunk_update(update, encode(update), 1 << 16):
            self.publish(self.topic, encode(chunk))

    def answer(self, update: Update) -> Receipt:
        """Send an update and return the first answer to it."""
        heard = len(self.receipts)
        self.send(update)
        mine = update.id
        self.until(lambda: any(r.id == mine for r in self.receipts[heard:]), f"an answer to {mine}")
        return next(r for r in self.receipts[heard:] if r.id == mine)

    def _take(self, _client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        heard = decode(bytes(message.payload)) if message.payload else None
        if isinstance(heard, Receipts):
            self.receipts += heard.receipts
        elif isinstance(heard, Descriptor):
            self._newest = heard


def changed(update: Update, **fields: Any) -> Update:
    """Return an update with other content."""
    return replace(update, **fields)
