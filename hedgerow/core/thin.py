"""Levels to few bytes and back: whole bytes, half bytes, single bits, or only those that are not 0.

All but the last have an exact length. The thinnest names the levels that are not 0 by the gaps between them:
their number as four bytes, one byte for each gap (how many zeros lie before the level; 255 stands for 255 of
them and more to come), then the levels, one byte each. Numbers are little-endian, low bits come first.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hedgerow.core.errors import PeerError

Levels = NDArray[np.int8]
"""Whole numbers, shape (p,), that a scale makes into values."""

Bytes = NDArray[np.uint8]

ESCAPE = 255
COUNT_BYTES = 4
_HALF_MIN = -8
"""What half a byte can hold below the symmetric range; nothing is encoded as it."""


def pack(levels: Levels, encoding: str) -> bytes:
    """Return levels as "int8", "int4" (-7 to 7), "sign" (-1 or 1) or "topk" (any, most of them 0)."""
    return _PACKERS[encoding](levels)


def unpack(payload: bytes, encoding: str, size: int) -> Levels:
    """Return `size` levels; raises PeerError "shape" for bytes that are not exactly what `pack` makes."""
    return _UNPACKERS[encoding](payload, size)


def packed_bytes(encoding: str, size: int, k: int) -> int:
    """Return how many bytes `size` levels take; of "topk" with k levels that are not 0, at most how many."""
    if encoding == "topk":
        return COUNT_BYTES + 2 * k + (size - k) // ESCAPE
    return -(-size * {"int8": 8, "int4": 4, "sign": 1}[encoding] // 8)


def _refuse(problem: str) -> PeerError:
    return PeerError("shape", f"payload: {problem}")


def _of_length(payload: bytes, encoding: str, size: int) -> Bytes:
    wanted = packed_bytes(encoding, size, 0)
    if len(payload) != wanted:
        raise _refuse(f"{len(payload)} bytes, the plan needs {wanted}")
    return np.frombuffer(payload, np.uint8)


def _pack_bytes(levels: Levels) -> bytes:
    return levels.tobytes()


def _unpack_bytes(payload: bytes, size: int) -> Levels:
    return _of_length(payload, "int8", size).view(np.int8)


def _pack_halves(levels: Levels) -> bytes:
    halves = np.zeros(levels.size + levels.size % 2, np.uint8)
    halves[: levels.size] = levels.view(np.uint8) & 15
    return (halves[::2] | halves[1::2] << 4).tobytes()


def _unpack_halves(payload: bytes, size: int) -> Levels:
    pairs = _of_length(payload, "int4", size)
    levels = np.empty(2 * pairs.size, np.int8)
    # Shifted up and down again, as signed numbers, the fourth bit becomes the sign.
    levels[::2] = (pairs << 4).view(np.int8) >> 4
    levels[1::2] = pairs.view(np.int8) >> 4
    if levels[size:].any():
        raise _refuse("the last half byte, which nothing uses, is not 0")
    if (levels == _HALF_MIN).any():
        raise _refuse("a level of -8, the least is -7")
    return levels[:size]


def _pack_signs(levels: Levels) -> bytes:
    return np.packbits(levels > 0, bitorder="little").tobytes()


def _unpack_signs(payload: bytes, size: int) -> Levels:
    bits = np.unpackbits(_of_length(payload, "sign", size), bitorder="little")
    if bits[size:].any():
        raise _refuse("the last bits, which nothing uses, are not 0")
    return bits[:size].view(np.int8) * np.int8(2) - np.int8(1)


def _pack_sparse(levels: Levels) -> bytes:
    positions = np.flatnonzero(levels)
    gaps = np.diff(positions, prepend=-1) - 1
    ends = np.cumsum(gaps // ESCAPE + 1) - 1
    coded = np.full(ends[-1] + 1 if ends.size else 0, ESCAPE, np.uint8)
    coded[ends] = gaps % ESCAPE
    count = positions.size.to_bytes(COUNT_BYTES, "little")
    return count + coded.tobytes() + levels[positions].tobytes()


def _unpack_sparse(payload: bytes, size: int) -> Levels:
    body = np.frombuffer(payload, np.uint8)[COUNT_BYTES:]
    count = int.from_bytes(payload[:COUNT_BYTES], "little")
    if len(payload) < COUNT_BYTES or not 2 * count <= body.size <= 2 * count + size // ESCAPE:
        raise _refuse(f"{len(payload)} bytes for {count} of {size} levels")
    coded, values = np.split(body, [body.size - count])
    ends = np.flatnonzero(coded != ESCAPE)
    if ends.size != count or (coded.size and coded[-1] == ESCAPE):
        raise _refuse(f"{ends.size} gaps for {count} levels")
    positions = np.cumsum(coded, dtype=np.int64)[ends] + np.arange(count)
    if count and positions[-1] >= size:
        raise _refuse(f"a level at {positions[-1]}, the plan has {size}")
    if not values.all():
        raise _refuse("a level of 0 is named")
    levels = np.zeros(size, np.int8)
    levels[positions] = values.view(np.int8)
    return levels


_PACKERS: dict[str, Callable[[Levels], bytes]] = {
    "int8": _pack_bytes,
    "int4": _pack_halves,
    "sign": _pack_signs,
    "topk": _pack_sparse,
}
_UNPACKERS: dict[str, Callable[[bytes, int], Levels]] = {
    "int8": _unpack_bytes,
    "int4": _unpack_halves,
    "sign": _unpack_signs,
    "topk": _unpack_sparse,
}
