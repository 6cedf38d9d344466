"""Deltas to payload bytes and back: float32, or whole levels with one scale per unit.

A value is its unit's scale times its level:

- int8: -127 to 127, rounded to nearest; cost 0.1 points of accuracy at a quarter of the bytes;
- int4: -7 to 7, rounded up or down by chance so that the mean is right (QSGD; Alistarh et al., 2017);
- sign: -1 or 1, the scale is the unit's mean magnitude (Bernstein et al., 2018; Karimireddy et al., 2019);
- topk: int8 of the largest magnitudes of the whole plan, 0 for all others (Aji and Heafield, 2017).

Decoding is linear in the scales, so a delta is clipped after quantisation, exactly, by multiplying its
scales. What bytes the levels become is the matter of `hedgerow.core.thin`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from hedgerow.core.encodings import SCALE_BYTES, default_k
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Update
from hedgerow.core.plan import Plan
from hedgerow.core.thin import Levels, pack, unpack
from hedgerow.core.units import Vector

_INT8_MAX = 127
_INT4_MAX = 7
_quiet = np.errstate(over="ignore", invalid="ignore")
"""What is not finite is refused in so many words, when it is decoded; numpy need not warn as well."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A delta ready to travel; `clipped` says whether its norm had to be cut to C.

    `scales` is little-endian float32, one for each unit of the plan, or nothing.
    """

    scales: bytes
    payload: bytes
    clipped: bool


@dataclass(frozen=True, slots=True)
class Quantized:
    """A delta as levels, shape (p,), and scales, shape (units,)."""

    plan: Plan
    encoding: str
    levels: Levels
    scales: Vector

    @property
    def norm(self) -> float:
        """The norm of what decodes from it, without decoding it."""
        return _norm_of_levels(self.levels, self.scales, self.plan)

    def restored(self) -> Vector:
        """Return the values, shape (p,)."""
        return _restored(self.levels, self.scales, self.plan)

    def clipped_to(self, clip_norm: float) -> Encoded:
        """Return it ready to travel, of norm `clip_norm` at most."""
        factor = clip_factor(self.norm, clip_norm)
        scales = (self.scales.astype(np.float64) * factor).astype("<f4").tobytes()
        return Encoded(scales, pack(self.levels, self.encoding), clipped=factor < 1)


@_quiet
def encode_delta(
    delta: Vector,
    plan: Plan,
    encoding: str,
    clip_norm: float,
    rng: Generator | None = None,
    k: int = 0,
) -> Encoded:
    """Encode a delta of shape (p,) so that what the receiver decodes has at most norm `clip_norm`.

    `rng` decides how int4 rounds, which is to nearest without it; `k` is how many values topk keeps, 0 for
    a tenth. The rounding of float32 may add some millionths to the norm. A delta that is not finite stays so.
    """
    if encoding == "fp32":
        factor = clip_factor(norm(delta), clip_norm)
        payload = (delta * np.float32(factor)).astype("<f4").tobytes()
        return Encoded(b"", payload, clipped=factor < 1)
    return quantize(delta, plan, encoding, rng, k).clipped_to(clip_norm)


@_quiet
def quantize(
    delta: Vector, plan: Plan, encoding: str, rng: Generator | None = None, k: int = 0
) -> Quantized:
    """Return a delta's levels and scales in any encoding but fp32; the arguments are `encode_delta`'s."""
    match encoding:
        case "int8":
            levels, scales = _rounded(delta, plan, _INT8_MAX, None)
        case "int4":
            levels, scales = _rounded(delta, plan, _INT4_MAX, rng)
        case "sign":
            levels, scales = _signs(delta, plan)
        case "topk":
            kept = _largest(delta, min(k or default_k(plan), plan.size))
            levels, scales = _rounded(kept, plan, _INT8_MAX, None)
        case _:
            raise ValueError(f"no encoding {encoding!r} has levels")
    return Quantized(plan, encoding, levels, scales)


def clip_factor(length: float, clip_norm: float) -> float:
    """Return what a vector of this norm is multiplied by to have at most norm `clip_norm`."""
    return 1.0 if length <= clip_norm else clip_norm / length


def _rounded(delta: Vector, plan: Plan, most: int, rng: Generator | None) -> tuple[Levels, Vector]:
    largest = np.zeros(len(plan.names), np.float32)
    filled = plan.sizes > 0
    largest[filled] = np.maximum.reduceat(np.abs(delta), plan.starts[filled])
    scales = largest / np.float32(most)
    # A unit of zeros has scale 0, and so has one so small that its scale underflows: levels 0.
    exact = delta / np.repeat(np.where(scales > 0, scales, np.float32(1)), plan.sizes)
    whole = np.rint(exact) if rng is None else _by_chance(exact, rng)
    return np.clip(whole, -most, most).astype(np.int8), scales


def _by_chance(exact: Vector, rng: Generator) -> Vector:
    """Round up as often as the fraction says, so that the mean of many roundings is exact."""
    rounded: Vector = np.floor(exact + rng.random(exact.size, np.float32))
    return rounded


def _signs(delta: Vector, plan: Plan) -> tuple[Levels, Vector]:
    means = np.zeros(len(plan.names), np.float32)
    filled = plan.sizes > 0
    sums = np.add.reduceat(np.abs(delta), plan.starts[filled], dtype=np.float64)
    means[filled] = sums / plan.sizes[filled]
    return np.where(delta >= 0, np.int8(1), np.int8(-1)), means


def _largest(delta: Vector, k: int) -> Vector:
    """Return `delta` with all but the k largest magnitudes 0; of equal ones the first are kept."""
    if k >= delta.size:
        return delta
    magnitudes = np.abs(delta)
    # What is not finite must be kept, so that the receiver refuses it.
    magnitudes[np.isnan(magnitudes)] = np.inf
    threshold = np.partition(magnitudes, delta.size - k)[delta.size - k]
    above = np.flatnonzero(magnitudes > threshold)
    equal = np.flatnonzero(magnitudes == threshold)[: k - above.size]
    kept = np.zeros_like(delta)
    for chosen in (above, equal):
        kept[chosen] = delta[chosen]
    return kept


def _restored(levels: Levels, scales: Vector, plan: Plan) -> Vector:
    steps: Vector = np.repeat(scales, plan.sizes)
    return levels.astype(np.float32) * steps


def _norm_of_levels(levels: Levels, scales: Vector, plan: Plan) -> float:
    filled = plan.sizes > 0
    squares = np.square(levels, dtype=np.int32)
    sums = np.add.reduceat(squares, plan.starts[filled], dtype=np.int64)
    steps = scales.astype(np.float64)[filled]
    return float(np.sqrt(np.dot(np.square(steps), sums)))


@_quiet
def update_norm(update: Update, plan: Plan) -> float:
    """Return the norm of an update's delta; raises PeerError as `decode_delta` does, for half its time."""
    if update.encoding == "fp32":
        return norm(decode_delta(update, plan))
    length = _read(update, plan).norm
    if not np.isfinite(length):
        raise PeerError("not-finite", "the delta has a NaN or an infinity")
    return length


@_quiet
def decode_delta(update: Update, plan: Plan) -> Vector:
    """Return an update's delta, shape (p,).

    Raises PeerError when payload or scales do not fit the plan, or a value is not finite.
    """
    delta = _floats(update, plan) if update.encoding == "fp32" else _read(update, plan).restored()
    if not np.isfinite(delta).all():
        raise PeerError("not-finite", "the delta has a NaN or an infinity")
    return delta


def _floats(update: Update, plan: Plan) -> Vector:
    _check_scales(update.scales, 0)
    if len(update.payload) != 4 * plan.size:
        raise PeerError(
            "shape", f"payload: {len(update.payload)} bytes, the plan needs {4 * plan.size}"
        )
    return np.frombuffer(update.payload, "<f4").astype(np.float32)


def _read(update: Update, plan: Plan) -> Quantized:
    _check_scales(update.scales, len(plan.names))
    scales = np.frombuffer(update.scales, "<f4").astype(np.float32)
    # Also of units whose levels are all 0: 0 times infinity is no number.
    if not np.isfinite(scales).all():
        raise PeerError("not-finite", "a scale is a NaN or an infinity")
    levels = unpack(update.payload, update.encoding, plan.size)
    return Quantized(plan, update.encoding, levels, scales)


def _check_scales(scales: bytes, units: int) -> None:
    wanted = SCALE_BYTES * units
    if len(scales) != wanted:
        raise PeerError("shape", f"scales: {len(scales)} bytes, the plan needs {wanted}")


def norm(delta: Vector) -> float:
    """Return the Euclidean norm, summed in float64."""
    exact = delta.astype(np.float64)
    return float(np.sqrt(np.dot(exact, exact)))
