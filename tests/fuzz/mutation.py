"""Changes of a message that keep it MessagePack: a field becomes something nobody expects there.

Flipped bits alone seldom get past the decoder; these do, and reach what is behind it.
"""

import math
import random
from collections.abc import Iterable, Iterator
from typing import Any

import msgpack
from msgspec.structs import replace

from hedgerow.core.codec import decode, encode
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Partial
from tests.fuzz.targets import CONVERSATIONS, framed, unframed

NUMBERS = (0, 1, -1, 2, 255, 65536, 1 << 31, 1 << 40, (1 << 62) - 1, 1 << 62, (1 << 64) - 1)
FLOATS = (0.0, -0.0, 1e-320, 1e308, -1e308, math.nan, math.inf, -math.inf)
TEXTS = ("", "a", "gw-1", "gw-2", "node-1", "a" * 33, "0" * 32, "../../etc", "\0", "é" * 70)
OTHERS: tuple[Any, ...] = (None, True, b"", bytes(64), b"\xff" * 72, [], {}, [[[[[]]]]], {"t": 1})
LONG = 16

PLAIN = ("chunks", "pieces", "levels", "topic", "frames", "config")
"""Targets whose inputs are no MessagePack."""

SURPRISES: tuple[Any, ...] = (*NUMBERS, *FLOATS, *TEXTS, *OTHERS)


def mutate_message(data: bytes, rng: random.Random, changes: int = 2) -> bytes:
    """Return MessagePack with some values changed, doubled or taken out; other bytes as they are."""
    try:
        value = msgpack.unpackb(data, strict_map_key=False)
    except (ValueError, msgpack.UnpackException, RecursionError, TypeError):
        return data
    for _ in range(rng.randint(1, changes)):
        value = _changed(value, rng)
    try:
        return bytes(msgpack.packb(value))
    except (OverflowError, ValueError, TypeError):
        return data


def _changed(value: Any, rng: random.Random) -> Any:
    """Change one place in a value, each with the same chance."""
    return _put(value, rng.choice(list(_paths(value))), rng)


def _paths(value: Any) -> Iterator[tuple[Any, ...]]:
    """Yield the way to every value within a value, and to itself; of long lists to the first few."""
    yield ()
    if isinstance(value, dict):
        inner: Iterable[tuple[Any, Any]] = value.items()
    elif isinstance(value, list):
        inner = enumerate(value[:LONG])
    else:
        return
    for key, below in inner:
        for path in _paths(below):
            yield (key, *path)


def _put(value: Any, path: tuple[Any, ...], rng: random.Random) -> Any:
    if not path:
        return _other(value, rng)
    kept = value.copy()
    kept[path[0]] = _put(value[path[0]], path[1:], rng)
    return kept


def _other(value: Any, rng: random.Random) -> Any:
    """Return another value: a list or map with one thing more or less, or a surprise."""
    if isinstance(value, dict | list) and value and rng.random() < 0.8:
        kept = value.copy()
        at = rng.choice(list(value) if isinstance(value, dict) else range(len(value)))
        if isinstance(kept, dict) or rng.random() < 0.3:
            del kept[at]
        else:
            kept[at:at] = [value[at]] * rng.choice([1, 2, 300])
        return kept
    return _surprise(value, rng)


def _surprise(value: Any, rng: random.Random) -> Any:
    """Return another value, most often of the same type: others are refused at once."""
    if isinstance(value, bytes) and value and rng.random() < 0.8:
        changed = bytearray(value)
        changed[rng.randrange(len(changed))] = rng.randrange(256)
        return (
            bytes(changed) if rng.random() < 0.7 else bytes(changed[: rng.randrange(len(changed))])
        )
    if isinstance(value, int) and not isinstance(value, bool) and rng.random() < 0.8:
        return rng.choice([*NUMBERS, value + 1, max(value - 1, 0)])
    if isinstance(value, float) and rng.random() < 0.8:
        return rng.choice(FLOATS)
    if isinstance(value, str) and rng.random() < 0.5:
        return rng.choice(TEXTS)
    return rng.choice(SURPRISES)


def agreeing(data: bytes) -> bytes:
    """Return a partial whose headers are those of its updates again, as a liar would see to; or `data`."""
    try:
        message = decode(data)
    except PeerError:
        return data
    if not isinstance(message, Partial) or not message.updates:
        return data
    return encode(replace(message, headers=[update.header for update in message.updates]))


def mutate_bytes(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one changed, taken out or doubled, or with all of them said twice."""
    at = rng.randrange(len(data) + 1)
    byte = bytes([rng.choice([0, 1, 2, 4, 127, 128, 255, rng.randrange(256)])])
    return rng.choice(
        [
            data[:at] + byte + data[at + 1 :],
            data[:at] + data[at + 1 :],
            data[:at] + byte + data[at:],
            data * 2,
        ]
    )


def mutate(target: str, data: bytes, rng: random.Random) -> bytes:
    """Return another input of a target, made from one of its inputs."""
    if target in PLAIN:
        return mutate_bytes(data, rng)
    if target not in CONVERSATIONS:
        return mutate_message(data, rng)
    talk = [(peer, body) for peer, body in unframed(data) if len(body) < 1 << 16]
    if not talk:
        return data
    at = rng.randrange(len(talk))
    peer, body = talk[at]
    match rng.randrange(4):
        case 0:
            talk.append(rng.choice(talk))
        case 1:
            talk[at] = (rng.randrange(256), body)
        case _:
            changed = mutate_message(body, rng)
            talk[at] = (peer, agreeing(changed) if rng.random() < 0.5 else changed)
    return framed(*[(peer, body) for peer, body in talk if len(body) < 1 << 16])
