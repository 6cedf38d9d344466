"""Partial aggregates: integer sums that any tree of gateways adds to the same bits.

An update's weight is a_i psi_i s(V - b_i). Its first two factors depend on the update and on what was
published with its base version only, so they are applied where the update is first summed; the last is
applied by the aggregator to all updates of one reference version at once.

* bucket mode: the reference version is the base version b, one bucket each.
* exponential mode: gamma^(v_g - b) is applied by the gateway, v_g being the newest version it knows, and the
  reference version is v_g: one bucket. gamma^(V - v_g) is left to the aggregator. Equal to one flat sum at V
  within one quantum per update while V - b <= tau_max: an age cut in two passes the limit unseen.

Sums are integers in fixed point, so addition is associative and commutative, and the empty aggregate is
its identity. A sum cannot subtract: two aggregates that share an update must not be added.
"""

import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hedgerow.core.errors import PeerError
from hedgerow.core.messages import BucketSums, Header
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import clip_factor, norm
from hedgerow.core.rules import Rules
from hedgerow.core.units import Vector

WEIGHT_ONE = 1 << 20
"""Fixed point of the scalar sums: the integer that stands for a weight of 1."""

PSI_MAX = 2.0
_PSI_MIN = 0.5
_SUM_LIMIT = 1 << 30
_COUNT_LIMIT = 1 << 62
_BLOCK = 1 << 15
"""Values handled at a time: what fits the cache of a small processor, with no large temporaries."""

_KAPPA_BETA = {"none": 0.0, "kappa_diversity": 0.5, "kappa_inverse": -0.5}

Key = tuple[str, int, float]
"""Plan id, reference version and gamma (1 in bucket mode): sums with the same key may be added."""


@dataclass(frozen=True, slots=True)
class Sums:
    """The sums of one bucket; the fields are those of `BucketSums`, `total` int64, shape (p,)."""

    total: NDArray[np.int64]
    weight: int
    decayed: int
    examples: int
    squares: int
    norms: tuple[int, ...]
    count: int

    def __add__(self, other: "Sums") -> "Sums":
        """Add two buckets of the same key."""
        return replace(self.plus_scalars(other), total=self.total + other.total)

    def plus_scalars(self, other: "Sums") -> "Sums":
        """Add all but the vectors: the result has this bucket's `total`."""
        return Sums(
            self.total,
            self.weight + other.weight,
            self.decayed + other.decayed,
            self.examples + other.examples,
            self.squares + other.squares,
            tuple(a + b for a, b in zip(self.norms, other.norms, strict=True)),
            self.count + other.count,
        )


PartialAggregate = dict[Key, Sums]
"""Buckets by key. {} is the identity of `add`."""


def add(*parts: PartialAggregate) -> PartialAggregate:
    """Add partial aggregates of disjoint updates."""
    out: PartialAggregate = {}
    for part in parts:
        for key, sums in part.items():
            out[key] = out[key] + sums if key in out else sums
    return out


def example_weight(examples: int, rules: Rules) -> float:
    """Return a = min(n, n_cap)^p: 1 for p = 0, FedAvg's example weight for p = 1."""
    return float(min(examples, rules.example_cap) ** rules.example_exponent)


def variance_weight(kappa: float, rules: Rules) -> float:
    """Return psi = clip((kappa / kappa_ref)^-beta, 1/2, 2); 1 where kappa says nothing."""
    beta = _KAPPA_BETA[rules.variance]
    usable = np.isfinite(kappa) and kappa > 0 and rules.kappa_ref > 0
    if beta == 0 or not usable:
        return 1.0
    # A peer chooses kappa: the ratio may underflow to 0, which has no negative power.
    ratio = max(kappa / rules.kappa_ref, sys.float_info.min)
    # beta = +1/2 gives diverse updates (small kappa) more weight.
    return float(np.clip(ratio**-beta, _PSI_MIN, PSI_MAX))


def _psi_bound(rules: Rules) -> float:
    return 1.0 if rules.variance == "none" else PSI_MAX


def fixed_point_scale(rules: Rules) -> int:
    """Return SC, the integer for 1.0 in `total`: `count_max` clipped updates stay within 2^30.

    Half a quantum of rounding per update comes on top. Raises ValueError when clip norm, example weights
    and count leave no precision, or their scalar sums would not fit a message.
    """
    weight = example_weight(rules.example_cap, rules) * _psi_bound(rules)
    scale = int(_SUM_LIMIT / (rules.clip_norm * weight * rules.count_max))
    if scale < WEIGHT_ONE >> 10:
        raise ValueError(
            f"fixed point would have only {scale} steps per unit: lower training.clip_norm,"
            " aggregation.example_cap or aggregation.count_max"
        )
    if (weight**2 * WEIGHT_ONE + 1) * rules.count_max >= _COUNT_LIMIT:
        raise ValueError(
            f"the squares of weights up to {weight:g} would not fit a message: lower"
            " aggregation.example_cap or aggregation.count_max"
        )
    return scale


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a bucket stands: its reference version, its gamma and the rules published with it."""

    ref_version: int
    gamma: float
    rules: Rules


def frame_for(base: Rules, base_version: int, newest: Rules, newest_version: int) -> Frame:
    """Return the frame for an update of `base_version` at a gateway that knows `newest_version`."""
    if newest.staleness.decays_at_gateway:
        return Frame(newest_version, newest.staleness.gamma, newest)
    return Frame(base_version, 1.0, base)


@dataclass(frozen=True, slots=True)
class ScalarWeights:
    """One update's factors in its frame: a psi s, a s, a and (a psi s)^2, s being the frame's decay."""

    weight: float
    decayed: float
    example: float

    def fixed(self) -> tuple[int, int, int, int]:
        """Return the addends to A, D, A0 and A2 in fixed point."""
        return (
            _fixed(self.weight),
            _fixed(self.decayed),
            _fixed(self.example),
            _fixed(self.weight**2),
        )


def scalar_weights(header: Header, base: Rules, frame: Frame) -> ScalarWeights:
    """Return an update's factors; `base` are the rules published with its base version.

    Where the frame's rules come from another configuration than `base`, they bound the factors, because
    they fix the scale of the sums.
    """
    rules = frame.rules
    example = min(example_weight(header.examples, base), example_weight(rules.example_cap, rules))
    decay = frame.gamma ** (frame.ref_version - header.base_version)
    psi = min(variance_weight(header.kappa, base), _psi_bound(rules))
    return ScalarWeights(example * psi * decay, example * decay, example)


class Accumulator:
    """Sums updates in place, so that a flush of many costs one vector per bucket."""

    def __init__(self) -> None:
        self._sums: PartialAggregate = {}

    def add(self, header: Header, delta: Vector, plan: Plan, base: Rules, frame: Frame) -> None:
        """Add one update.

        `delta` has shape (p,); `base` are the rules published with the update's base version. A delta
        longer than the clip norm is cut to it here once more, so no node can weigh more than the rules
        allow.
        """
        key = (plan.plan_id, frame.ref_version, frame.gamma)
        before = self._sums.get(key)
        total = np.zeros(plan.size, np.int64) if before is None else before.total
        clip = clip_factor(norm(delta), min(base.clip_norm, frame.rules.clip_norm))
        scalars = scalar_weights(header, base, frame)
        factor = scalars.weight * clip
        scale = factor * fixed_point_scale(frame.rules)
        squares = [_add_scaled(total, delta, where, scale) for where in plan.slices.values()]
        norms = tuple(_fixed(factor * clip * square) for square in squares)
        own = Sums(total, *scalars.fixed(), norms, count=1)
        self._sums[key] = own if before is None else before.plus_scalars(own)

    def result(self) -> PartialAggregate:
        """Return the sums; the accumulator must not be used any more."""
        return self._sums


def _add_scaled(total: NDArray[np.int64], delta: Vector, where: slice, scale: float) -> float:
    """Add the rounded multiple of one unit to `total` in place and return the unit's squared norm."""
    square = 0.0
    for start in range(where.start, where.stop, _BLOCK):
        block = slice(start, min(start + _BLOCK, where.stop))
        exact = delta[block].astype(np.float64)
        square += float(np.dot(exact, exact))
        exact *= scale
        total[block] += np.rint(exact, out=exact).astype(np.int64)
    return square


def contribution(
    header: Header, delta: Vector, plan: Plan, base: Rules, frame: Frame
) -> PartialAggregate:
    """Return the partial aggregate of one update; see `Accumulator.add`."""
    accumulator = Accumulator()
    accumulator.add(header, delta, plan, base, frame)
    return accumulator.result()


def _fixed(value: float) -> int:
    return round(value * WEIGHT_ONE)


def to_wire(part: PartialAggregate) -> list[BucketSums]:
    """Return the buckets as a message carries them, in key order.

    Raises OverflowError when a total leaves int32: the caller put in more updates than the `count_max` of
    the rules that the bucket's scale comes from.
    """
    out = []
    for (plan_id, ref_version, gamma), sums in sorted(part.items(), key=lambda item: item[0]):
        if np.max(np.abs(sums.total), initial=0) >= 1 << 31:
            raise OverflowError("a partial aggregate outgrew int32")
        total = sums.total.astype("<i4").tobytes()
        rest = (sums.weight, sums.decayed, sums.examples, sums.squares, list(sums.norms))
        out.append(BucketSums(plan_id, ref_version, gamma, total, *rest, sums.count))
    return out


def from_wire(buckets: Iterable[BucketSums], plans: dict[str, Plan]) -> PartialAggregate:
    """Return the partial aggregate in a message; raises PeerError where a bucket does not fit its plan."""
    out: PartialAggregate = {}
    for bucket in buckets:
        plan = plans.get(bucket.plan_id)
        if plan is None:
            raise PeerError("unknown-plan", f"bucket of plan {bucket.plan_id}")
        if len(bucket.total) != 4 * plan.size or len(bucket.norms) != len(plan.names):
            raise PeerError(
                "shape", f"bucket of {len(bucket.total)} bytes, plan has {plan.size} values"
            )
        total = np.frombuffer(bucket.total, "<i4").astype(np.int64)
        scalars = (bucket.weight, bucket.decayed, bucket.examples, bucket.squares)
        key = (bucket.plan_id, bucket.ref_version, bucket.gamma)
        if key in out:
            raise PeerError("inconsistent", "two buckets with one key")
        out[key] = Sums(total, *scalars, tuple(bucket.norms), bucket.count)
    return out
