"""The merge once more, from its formulas, for the replay.

    num_k  = sum_r s(V - r) P[r]_k / SC_r      den_k = sum_r s(V - r) A[r]      mean_k = num_k / den_k
    damp_k = sum_r s(V - r) D[r] / sum_r A0[r]
    params_k(V + 1) = params_k(V) + float32(eta (damp_k mean_k))

over the buckets r, in the order of (plan id, reference version, gamma), whose plan has unit k. An update that
came by itself adds rint(delta SC w) to P, w = a psi s clip being its weight in its frame. Everything is
float64 but parameters and deltas, which are float32; the order of operations is part of the result. An
island's contribution is added as float32(w share clip delta_k).

It shares nothing with `hedgerow.core.merge`, `hedgerow.core.partial` and `hedgerow.core.staleness`, which it
checks, but the messages and how a payload is read.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hedgerow.core.messages import BucketSums, Descriptor, Header, IslandResult, Partial, Update
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import decode_delta
from hedgerow.core.rules import Rules
from hedgerow.core.staleness import StalenessLaw
from hedgerow.core.units import Manifest, Vector

ONE = 1 << 20
_LARGEST_SUM = 1 << 30
_BETAS = {"none": 0.0, "kappa_diversity": 0.5, "kappa_inverse": -0.5}


class UnfitError(Exception):
    """Merge inputs that nothing can be replayed from; the text says which."""


@dataclass
class _Bucket:
    total: NDArray[np.int64]
    weight: int = 0
    decayed: int = 0
    examples: int = 0


@dataclass(frozen=True)
class Frame:
    """Where updates are summed: reference version, gamma and the rules that fix the scale."""

    version: int
    gamma: float
    rules: Rules


@dataclass(frozen=True)
class Books:
    """What a merge needs to know: every kept version, and how many updates versions have settled."""

    descriptors: Mapping[int, Descriptor]
    settled: Mapping[int, int] = field(default_factory=dict)
    plans: dict[str, Plan] = field(default_factory=dict)

    def descriptor(self, version: int) -> Descriptor:
        """Return a version's descriptor; raises UnfitError for one that is not kept."""
        if version not in self.descriptors:
            raise UnfitError(f"version {version}, which an input refers to, is not kept")
        return self.descriptors[version]

    def rules(self, version: int) -> Rules:
        """Return the rules published with a version; raises UnfitError for one that is not kept."""
        return self.descriptor(version).rules

    def plan(self, plan_id: str) -> Plan:
        """Return a plan of any kept version; raises UnfitError where none has it."""
        if not self.plans:
            for descriptor in self.descriptors.values():
                manifest = manifest_of(descriptor)
                for units in (descriptor.plan, *descriptor.nested.values()):
                    plan = Plan(manifest, tuple(units))
                    self.plans[plan.plan_id] = plan
        if plan_id not in self.plans:
            raise UnfitError(f"no kept version has plan {plan_id}")
        return self.plans[plan_id]

    def frame(self, header: Header, at_version: int) -> Frame:
        """Return the frame in which a gateway that knew `at_version` summed an update."""
        newest = self.rules(at_version)
        if newest.staleness.kind == "exponential":
            return Frame(at_version, newest.staleness.gamma, newest)
        return Frame(header.base_version, 1.0, self.rules(header.base_version))


def manifest_of(descriptor: Descriptor) -> Manifest:
    """Return a version's units, in its order."""
    return Manifest.of({name: unit.shape for name, unit in descriptor.units.items()})


def step(params: Vector, inputs: Sequence[Partial], parent: Descriptor, books: Books) -> Vector:
    """Return the parameters of the version after `parent`, shape (P,); `params` are the parent's.

    Without inputs a version only has another number. Raises UnfitError for inputs that do not fit.
    """
    islands = [(partial, partial.island) for partial in inputs if partial.island is not None]
    if islands:
        if len(inputs) > 1:
            raise UnfitError("an island's contribution was merged together with others")
        return _add_island(params, *islands[0], parent, books)
    buckets: dict[tuple[str, int, float], _Bucket] = {}
    for partial in inputs:
        for sums in partial.sums:
            _add_sums(buckets, sums, books)
        for update in partial.updates:
            _add_update(buckets, update, partial, books)
    return _apply(params, buckets, parent, books)


def _bucket(
    buckets: dict[tuple[str, int, float], _Bucket], key: tuple[str, int, float], size: int
) -> _Bucket:
    return buckets.setdefault(key, _Bucket(np.zeros(size, np.int64)))


def _add_sums(
    buckets: dict[tuple[str, int, float], _Bucket], sums: BucketSums, books: Books
) -> None:
    plan = books.plan(sums.plan_id)
    if len(sums.total) != 4 * plan.size:
        raise UnfitError(f"a bucket of {len(sums.total)} bytes, its plan has {plan.size} values")
    bucket = _bucket(buckets, (sums.plan_id, sums.ref_version, sums.gamma), plan.size)
    bucket.total += np.frombuffer(sums.total, "<i4")
    bucket.weight += sums.weight
    bucket.decayed += sums.decayed
    bucket.examples += sums.examples


def _add_update(
    buckets: dict[tuple[str, int, float], _Bucket], update: Update, partial: Partial, books: Books
) -> None:
    plan, base = books.plan(update.plan_id), books.rules(update.base_version)
    frame = books.frame(update.header, partial.at_version)
    delta = decode_delta(update, plan)
    clip = _clip(delta, min(base.clip_norm, frame.rules.clip_norm))
    weight, decayed, example = weights(update.header, base, frame)
    bucket = _bucket(buckets, (update.plan_id, frame.version, frame.gamma), plan.size)
    scaled = delta.astype(np.float64) * (weight * clip * scale(frame.rules))
    bucket.total += np.rint(scaled).astype(np.int64)
    bucket.weight += round(weight * ONE)
    bucket.decayed += round(decayed * ONE)
    bucket.examples += round(example * ONE)


def weights(header: Header, base: Rules, frame: Frame) -> tuple[float, float, float]:
    """Return a psi s, a s and a of an update in its frame; `base` are the rules of its base version."""
    largest = frame.rules.example_cap**frame.rules.example_exponent
    example = min(float(min(header.examples, base.example_cap) ** base.example_exponent), largest)
    bound = 1.0 if frame.rules.variance == "none" else 2.0
    decay = frame.gamma ** (frame.version - header.base_version)
    return example * min(_psi(header.kappa, base), bound) * decay, example * decay, example


def _psi(kappa: float, rules: Rules) -> float:
    beta = _BETAS[rules.variance]
    if beta == 0 or not (math.isfinite(kappa) and kappa > 0 and rules.kappa_ref > 0):
        return 1.0
    ratio = max(kappa / rules.kappa_ref, sys.float_info.min)
    return float(min(max(ratio**-beta, 0.5), 2.0))


def scale(rules: Rules) -> int:
    """Return SC, the integer that stands for 1.0 in the sums."""
    psi = 1.0 if rules.variance == "none" else 2.0
    weight = float(rules.example_cap**rules.example_exponent) * psi
    return int(_LARGEST_SUM / (rules.clip_norm * weight * rules.count_max))


def _clip(delta: Vector, most: float) -> float:
    exact = delta.astype(np.float64)
    length = float(np.sqrt(np.dot(exact, exact)))
    return 1.0 if length <= most else most / length


def decay(law: StalenessLaw, age: int, gamma: float) -> float:
    """Return s(age) of a law whose updates were summed with `gamma`."""
    if age < 0:
        raise UnfitError(
            f"an input is {-age} versions ahead of the version that it was merged into"
        )
    if age > law.tau_max:
        return 0.0
    match law.kind:
        case "exponential":
            return gamma**age
        case "polynomial":
            return float((1 + age) ** -law.exponent)
        case "hinge":
            return (
                1.0
                if age <= law.hinge_after
                else 1 / (1 + law.hinge_slope * (age - law.hinge_after))
            )
        case "constant":
            return 1.0


def _apply(
    params: Vector,
    buckets: dict[tuple[str, int, float], _Bucket],
    parent: Descriptor,
    books: Books,
) -> Vector:
    manifest, rules = manifest_of(parent), parent.rules
    out = params.copy()
    for name, where in manifest.slices.items():
        mean: Any = 0.0
        den = damp = examples = 0.0
        for (plan_id, version, gamma), bucket in sorted(buckets.items(), key=lambda b: b[0]):
            place = books.plan(plan_id).slices.get(name)
            if place is None:
                continue
            s = decay(rules.staleness, parent.version - version, gamma)
            if s > 0:
                mean = mean + bucket.total[place] * (s / scale(books.rules(version)))
            den += s * bucket.weight / ONE
            damp += s * bucket.decayed / ONE
            examples += bucket.examples / ONE
        if den > 0 and damp > 0:
            move = (damp / examples) * (np.asarray(mean) / den)
            out[where] = params[where] + (rules.server_learning_rate * move).astype(np.float32)
    return out


def _add_island(
    params: Vector, partial: Partial, island: IslandResult, parent: Descriptor, books: Books
) -> Vector:
    plan, rules = Plan(manifest_of(parent), tuple(island.units)), parent.rules
    delta = np.frombuffer(island.delta, "<f4").astype(np.float32)
    if delta.size != plan.size:
        raise UnfitError(f"an island's delta of {delta.size} values, its plan has {plan.size}")
    age = min(parent.version - island.base_version, rules.staleness.tau_max)
    weight = max(decay(rules.staleness, age, rules.staleness.gamma), rules.least_island_weight)
    own = len(partial.headers)
    since = range(island.base_version + 1, parent.version + 1)
    cloud = sum(n for version, n in books.settled.items() if version in since)
    factor = weight * (own / (own + cloud)) * _clip(delta, rules.clip_norm * island.merges)
    out = params.copy()
    for name, own_place in plan.slices.items():
        where = manifest_of(parent).slices[name]
        out[where] = params[where] + (factor * delta[own_place].astype(np.float64)).astype(
            np.float32
        )
    return out
