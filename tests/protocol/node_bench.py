"""A node protocol on the bench: messages in, effects out."""

from collections.abc import Callable
from typing import Any

import msgspec

from edge_node.protocol import NodeProtocol
from edge_node.rows import Books
from hedgerow.core import names
from hedgerow.core.chunks import chunk_blob
from hedgerow.core.effects import (
    Effect,
    Follow,
    LinkUp,
    Saved,
    Train,
    Trained,
    Unfollow,
)
from hedgerow.core.messages import (
    BlobPart,
    Chunk,
    Descriptor,
    GatewayState,
    UpdateId,
)
from hedgerow.core.units import Vector
from tests.protocol.scenarios import (
    CHUNK_BYTES,
    MANIFEST,
    MODEL,
    SECOND_US,
    delta_of,
    make_books,
    make_config,
    make_lineage,
    params_of,
    saves,
    sent,
)

LINEAGE = make_lineage(4)


def gateway_state(gateway: str = "gw-1", **keys: Any) -> GatewayState:
    fields = {"boot": 1, "state": "ready", "uplink": True, **keys}
    return GatewayState(gateway=gateway, **fields)


def descriptor(version: int, **changes: Any) -> Descriptor:
    return msgspec.structs.replace(LINEAGE.descriptor(version), **changes)


def parts(version: int) -> list[BlobPart]:
    pieces = MANIFEST.split(params_of(version)).values()
    return [part for piece in pieces for part in chunk_blob(piece.tobytes(), CHUNK_BYTES)]


class Bench:
    """A node protocol and what it asked for by the last input."""

    def __init__(self, books: Books | None = None, *, tests: bool = False, **config: Any) -> None:
        self.now_us = 1_000
        self.node = NodeProtocol(
            books or make_books(),
            MANIFEST,
            make_config(node=config).node,
            model=MODEL,
            seed=1,
            chunk_bytes=CHUNK_BYTES,
            meter=lambda: {"mqtt_bytes_up": 5},
            tests=tests,
        )
        self.effects: list[Effect] = []
        self.do(lambda: self.node.start(self.now_us))

    def do(self, call: Callable[[], None]) -> list[Effect]:
        call()
        self.effects = self.node.effects()
        return self.effects

    def hear(self, peer: str, message: Any) -> list[Effect]:
        return self.do(lambda: self.node.receive(peer, message, self.now_us))

    def timer(self, name: str) -> list[Effect]:
        return self.do(lambda: self.node.timer_fired(name, self.now_us))

    def done(self, result: Any) -> list[Effect]:
        return self.do(lambda: self.node.job_done(result, self.now_us))

    def online(self, gateway: str = "gw-1") -> "Bench":
        self.hear(names.BROKER, LinkUp())
        self.hear(f"gw/{gateway}", gateway_state(gateway))
        return self

    def fetch(self, version: int) -> list[Effect]:
        """Give the node a version whole; return all effects."""
        out = self.hear("gw/gw-1", descriptor(version))
        for part in parts(version):
            out = out + self.hear("blob", part)
        return out

    def trained(self, job: Train, delta: Vector | None = None) -> list[Effect]:
        self.now_us += SECOND_US
        result = Trained(
            job=job.job,
            delta=delta_of() if delta is None else delta,
            examples=16,
            steps=2,
            step_square_sum=1.0,
            loss_first=2.0,
            loss_last=1.0,
            peak_bytes=100,
        )
        return self.done(result)

    def issue(self, job: Train, delta: Vector | None = None) -> list[Effect]:
        """Finish a training and its save; return the effects of the save's end."""
        save = saves(self.trained(job, delta))[0]
        return self.done(Saved(save.job))


def trains(effects: list[Effect]) -> list[Train]:
    return [effect for effect in effects if isinstance(effect, Train)]


def followed(effects: list[Effect]) -> set[str]:
    return {effect.channel for effect in effects if isinstance(effect, Follow)}


def unfollowed(effects: list[Effect]) -> set[str]:
    return {effect.channel for effect in effects if isinstance(effect, Unfollow)}


def issued_one(**config: Any) -> tuple[Bench, UpdateId]:
    """Return an online node that has sent one update of version 0."""
    bench = Bench(**config).online()
    (job,) = trains(bench.fetch(0))
    chunks = sent(bench.issue(job), Chunk, "gw/gw-1")
    return bench, chunks[0].id
