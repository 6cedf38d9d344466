"""What is fuzzed: every place where somebody else's bytes are read, as a function of bytes.

A target returns whatever it is given; that only PeerError, or ConfigError for a configuration, leaves what
it calls is checked by letting everything else out. What was accepted must also make sense.
"""

import asyncio
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import numpy as np
from aiohttp.base_protocol import BaseProtocol

from aggregator.intake import read_partial
from aggregator.rows import CommitVersion
from hedgerow.core.chunks import Pieces, Reassembler
from hedgerow.core.codec import decode, encode
from hedgerow.core.configcheck import parse_config
from hedgerow.core.effects import Effect, LinkUp, Save, Saved
from hedgerow.core.errors import ConfigError, PeerError
from hedgerow.core.inline import inline_units
from hedgerow.core.messages import Chunk, Descriptor, Partial, Update, UpdateId
from hedgerow.core.partial import from_wire, to_wire
from hedgerow.core.quantize import decode_delta, update_norm
from hedgerow.core.thin import pack, unpack
from hedgerow.core.units import digest
from hedgerow.runtime.configfile import load_config
from hedgerow.runtime.http_wire import read_frames
from hedgerow.runtime.mqtt_link import Topics
from tests.protocol import aggregator_bench, gateway_bench, node_bench
from tests.protocol.scenarios import PLAN, WHOLE, make_lineage, saves

MAX_FRAME_BYTES = 1 << 12
ENCODINGS = ("fp32", "int8", "int4", "sign", "topk")
PEERS = ("aggregator", "broker", "gw/gw-1", "gw/gw-2", "gw", "node/node-1", "node/node-2", "blob")

Target = Callable[[bytes], None]


def fuzz_codec(data: bytes) -> None:
    """Every message of every link: what is read can be written again, and then read as the same."""
    try:
        message = decode(data)
    except PeerError:
        return
    again = encode(message)
    assert encode(decode(again)) == again


def fuzz_update(data: bytes) -> None:
    """An update's delta, both as a message and as bare scales and payload."""
    with suppress(PeerError):
        message = decode(data)
        if isinstance(message, Update):
            _read_delta(message)
    encoding = ENCODINGS[data[0] % len(ENCODINGS)] if data else "int8"
    scale_bytes = 0 if encoding == "fp32" else 4 * len(PLAN.names)
    bare = Update(
        id=UpdateId("n", 1, 1),
        model="m",
        base_version=0,
        plan_id=PLAN.plan_id,
        examples=1,
        kappa=1.0,
        encoding=encoding,  # type: ignore[arg-type]
        scales=data[1 : 1 + scale_bytes],
        payload=data[1 + scale_bytes :],
    )
    with suppress(PeerError):
        _read_delta(bare)


def _read_delta(update: Update) -> None:
    delta = decode_delta(update, PLAN)
    assert delta.shape == (PLAN.size,)
    assert np.isfinite(delta).all()
    assert update_norm(update, PLAN) >= 0


def fuzz_levels(data: bytes) -> None:
    """Packed levels: there is one way only to say the same."""
    if not data:
        return
    encoding, size = ENCODINGS[1 + data[0] % 4], 1 + data[0] // 4
    try:
        levels = unpack(data[1:], encoding, size)
    except PeerError:
        return
    assert levels.shape == (size,)
    assert pack(levels, encoding) == data[1:]


def fuzz_partial(data: bytes) -> None:
    """A gateway's partial aggregate, as the aggregator reads it."""
    try:
        message = decode(data)
    except PeerError:
        return
    if not isinstance(message, Partial):
        return
    with suppress(PeerError):
        part = from_wire(message.sums, {plan.plan_id: plan for plan in (PLAN, WHOLE)})
        assert len(to_wire(part)) == len(message.sums)
    with suppress(PeerError):
        read_partial(message, lineage())


@cache
def lineage() -> Any:
    """Return the versions that the aggregator knows."""
    return make_lineage(4)


def fuzz_descriptor(data: bytes) -> None:
    """A version with its units inside."""
    try:
        message = decode(data)
        # Whoever looks inside has checked before that every unit of the plan is described.
        if isinstance(message, Descriptor) and set(message.plan) <= message.units.keys():
            inline_units(message)
    except PeerError:
        return


def fuzz_chunks(data: bytes) -> None:
    """Pieces of updates: whatever comes, what is held stays within the bounds."""
    assembler = Reassembler(max_update_bytes=512, max_held_bytes=2048, max_updates=4)
    at = 0
    while len(data) - at >= 6:
        who, index, count, total, length, damage = data[at : at + 6]
        body = data[at + 6 : at + 6 + length]
        at += 6 + length
        chunk = Chunk(
            id=UpdateId("n", 1, who % 6),
            model="m",
            base_version=0,
            plan_id=PLAN.plan_id,
            index=index,
            count=max(count, 1),
            total_bytes=total * 4 if damage & 2 else len(body) * max(count, 1),
            crc32=zlib.crc32(body) ^ (damage & 1),
            body=body,
            digest=digest(body) if damage & 4 else "",
        )
        try:
            whole = assembler.put(chunk, at)
        except PeerError:
            whole = None
        assert whole is None or len(whole) == chunk.total_bytes
        assert 0 <= assembler.held_bytes <= assembler.max_held_bytes
        assert len(assembler) <= assembler.max_updates
        assert all(len(missing) <= 256 for missing in assembler.stalled(at + 1).values())


def fuzz_pieces(data: bytes) -> None:
    """Pieces of one unit."""
    pieces = Pieces(1 + (data[0] if data else 0) % 8)
    for at in range(1, len(data) - 3, 4):
        index, count, length = data[at : at + 3]
        try:
            pieces.put(index, count % 10, data[at : at + length % 16])
        except PeerError:
            continue
    assert pieces.held_bytes == sum(len(part) for part in pieces.parts.values())
    assert len(pieces.parts) + len(pieces.missing) == pieces.count


def fuzz_topic(data: bytes) -> None:
    """A topic as the broker hands it over."""
    topic = data.decode(errors="replace")
    for role in ("node", "gateway"):
        topics = Topics("site", role, "gw-1")
        for text in (topic, topics.prefix + topic):
            try:
                peer = topics.sender(text)
            except PeerError:
                continue
            assert peer.partition("/")[0] in ("gw", "node", "blob")


def fuzz_frames(data: bytes) -> None:
    """The version stream, cut anywhere: every frame within its bound, the rest is refused."""
    frames = asyncio.run(_frames(data))
    assert sum(4 + len(one) for one in frames) <= len(data)
    assert all(0 < len(one) <= MAX_FRAME_BYTES for one in frames)


async def _frames(data: bytes) -> list[bytes]:
    loop = asyncio.get_running_loop()
    reader = aiohttp.StreamReader(BaseProtocol(loop), 1 << 16, loop=loop)
    reader.feed_data(data)
    reader.feed_eof()
    out = []
    with suppress(PeerError):
        async for one in read_frames(reader, MAX_FRAME_BYTES):
            out += [one]
    return out


def fuzz_config(data: bytes) -> None:
    """A configuration file, TOML or JSON by the first byte."""
    suffix = ".json" if data[:1] == b"{" else ".toml"
    path = _scratch() / f"fleet{suffix}"
    path.write_bytes(data)
    try:
        config = load_config(path)
    except ConfigError:
        return
    assert parse_config(msgspec.to_builtins(config)) == config


@cache
def _scratch() -> Path:
    # A folder that stays for the whole run: every input is written over the last one.
    return Path(tempfile.mkdtemp(prefix="hedgerow-fuzz-"))


def fuzz_tables(raw: dict[str, Any]) -> None:
    """Tables of a configuration, of any type whatever."""
    with suppress(ConfigError):
        parse_config(raw)


# -- whole protocols -------------------------------------------------------------------------------


def framed(*messages: tuple[int, bytes]) -> bytes:
    """Return messages with the numbers of their peers, as the targets of protocols read them."""
    return b"".join(struct.pack(">BH", peer, len(body)) + body for peer, body in messages)


def unframed(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield what `framed` joined; whatever follows the last whole message is left out."""
    at = 0
    while len(data) - at >= 3:
        peer, size = struct.unpack_from(">BH", data, at)
        at += 3 + size
        yield peer, data[at - size : at]


def _converse(bench: Any, hear: Callable[[str, Any], Any], data: bytes) -> list[Effect]:
    """Let a protocol hear messages of any peers; what it wants saved is saved at once. Return its effects."""
    out: list[Effect] = []
    for number, body in unframed(data):
        try:
            message = decode(body)
        except PeerError:
            continue
        bench.now_us += 100_000
        try:
            hear(PEERS[number % len(PEERS)], message)
        except PeerError:
            # The driver goes on with what the protocol had asked for until then.
            bench.do(lambda: None)
        out += _finish(bench, list(bench.effects))
    return out


def _finish(bench: Any, effects: list[Effect]) -> list[Effect]:
    """Make durable what is to be saved, and what follows from that; return all effects."""
    out = effects
    for _ in range(8):
        todo = saves(effects)
        effects = []
        for save in todo:
            _check_saved(save)
            effects += bench.do(
                lambda save=save: _protocol(bench).job_done(Saved(save.job), bench.now_us)
            )
        out = out + effects
    return out


def _protocol(bench: Any) -> Any:
    return next(vars(bench)[name] for name in CONVERSATIONS if name in vars(bench))


def _check_saved(save: Save) -> None:
    for row in save.rows:
        if isinstance(row, CommitVersion):
            assert np.isfinite(row.params).all(), "a version is not finite"


def talk_to_node(data: bytes) -> list[Effect]:
    """Let a node hear messages and return its effects."""
    bench = node_bench.Bench()
    bench.hear("broker", LinkUp())
    return _converse(bench, bench.hear, data)


def talk_to_gateway(data: bytes) -> list[Effect]:
    """Let a gateway hear messages and return its effects; in the end it tells what it holds."""
    bench = gateway_bench.Bench(held_updates=4, held_bytes=4096)
    bench.hear("broker", LinkUp())
    bench.hear("aggregator", LinkUp())
    return _converse(bench, bench.hear, data) + bench.timer("report")


def talk_to_aggregator(data: bytes) -> list[Effect]:
    """Let an aggregator hear messages and return its effects; in the end it merges what it has taken."""
    bench = aggregator_bench.Bench(versions=3)
    out = _converse(bench, lambda peer, message: bench.hear(message, peer), data)
    return out + _finish(bench, bench.timer("deadline"))


def fuzz_node(data: bytes) -> None:
    """A node that hears anything."""
    talk_to_node(data)


def fuzz_gateway(data: bytes) -> None:
    """A gateway that hears anything."""
    talk_to_gateway(data)


def fuzz_aggregator(data: bytes) -> None:
    """An aggregator that hears anything."""
    talk_to_aggregator(data)


CONVERSATIONS = ("node", "gateway", "aggregator")
"""Targets that take messages with the numbers of their peers."""

TARGETS: dict[str, Target] = {
    name.removeprefix("fuzz_"): target
    for name, target in list(globals().items())
    if name.startswith("fuzz_") and name != "fuzz_tables"
}
"""Every target of bytes by its name."""
