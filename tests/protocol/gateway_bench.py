"""A gateway protocol on the bench: messages in, effects out."""

import random
from collections.abc import Callable
from typing import Any

import msgspec

from gateway.protocol import GatewayProtocol
from gateway.rows import Spooled
from hedgerow.core import names
from hedgerow.core.chunks import chunk_blob
from hedgerow.core.effects import (
    Effect,
    LinkUp,
)
from hedgerow.core.messages import (
    BlobPart,
    Descriptor,
    GatewayState,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    Update,
)
from tests.protocol.scenarios import (
    CHUNK_BYTES,
    MANIFEST,
    MODEL,
    chunks_of,
    make_config,
    make_lineage,
    node_state,
    params_of,
    sent,
)

LINEAGE = make_lineage(4)


def blobs(version: int) -> list[BlobPart]:
    """Return a version's units as the aggregator's link brings them: each whole."""
    parts = MANIFEST.split(params_of(version)).values()
    return [chunk_blob(part.tobytes(), 1 << 20)[0] for part in parts]


class Bench:
    """A gateway protocol and what it asked for by the last input."""

    def __init__(
        self,
        name: str = "gw-1",
        *,
        island: dict[str, Any] | None = None,
        spooled: Spooled | None = None,
        packet_bytes: int = 1 << 20,
        **config: Any,
    ) -> None:
        self.now_us = 1_000
        made = make_config(gateway=config, island=island or {})
        self.gateway = GatewayProtocol(
            name,
            10,
            made.gateway,
            model=MODEL,
            chunk_bytes=CHUNK_BYTES,
            packet_bytes=packet_bytes,
            rng=random.Random(1),
            meter=lambda: {"http_bytes_up": 5},
            spooled=spooled or Spooled(),
            island=made.island,
        )
        self.effects: list[Effect] = []
        self.do(lambda: self.gateway.start(self.now_us))

    def do(self, call: Callable[[], None]) -> list[Effect]:
        call()
        self.effects = self.gateway.effects()
        return self.effects

    def hear(self, peer: str, message: Any) -> list[Effect]:
        return self.do(lambda: self.gateway.receive(peer, message, self.now_us))

    def above(self, message: Any) -> list[Effect]:
        return self.hear(names.AGGREGATOR, message)

    def peer(self, gateway: str, **state: Any) -> list[Effect]:
        """Let another gateway announce itself: it has an uplink unless `state` says otherwise."""
        fields = {"boot": 1, "state": "ready", "uplink": True, "hops": 0, **state}
        word = msgspec.convert({"t": "gateway-state", "gateway": gateway, **fields}, GatewayState)
        return self.hear(names.gateway_peer(gateway), word)

    def timer(self, name: str) -> list[Effect]:
        return self.do(lambda: self.gateway.timer_fired(name, self.now_us))

    def take_version(self, descriptor: Descriptor) -> list[Effect]:
        out = self.above(descriptor)
        for blob in blobs(descriptor.version):
            out = out + self.above(blob)
        return out

    def ready(
        self, versions: int = 1, describe: Callable[[int], Descriptor] = LINEAGE.descriptor
    ) -> "Bench":
        """Bring the uplink up and serve a lineage's first versions."""
        self.above(LinkUp())
        for version in range(versions):
            self.take_version(describe(version))
        return self

    def expect(self, *nodes: str) -> "Bench":
        """Let nodes announce that they train, so that flushes wait for them."""
        for node in nodes:
            self.hear(f"node/{node}", node_state("training", node))
        return self

    def update(self, update: Update) -> list[Effect]:
        out = []
        for chunk in chunks_of(update):
            out += self.hear(f"node/{update.id.node}", chunk)
        return out

    def reply(self, partial: Partial, status: Any, *receipts: Receipt) -> list[Effect]:
        reply = PartialReply(partial_id=partial.id, status=status, receipts=list(receipts))
        return self.above(reply)


def short_lived(version: int) -> Descriptor:
    """Return a version whose rules call an update stale after two more."""
    descriptor = LINEAGE.descriptor(version)
    law = msgspec.structs.replace(descriptor.rules.staleness, tau_max=2)
    rules = msgspec.structs.replace(descriptor.rules, staleness=law)
    return msgspec.structs.replace(descriptor, rules=rules)


def receipts(effects: list[Effect], node: str = "node-1") -> list[Receipt]:
    return [r for message in sent(effects, Receipts, f"node/{node}") for r in message.receipts]


def settled(*updates: Update) -> Receipts:
    return Receipts(receipts=[Receipt(update.id, "settled") for update in updates])
