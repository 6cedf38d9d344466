"""What an island learns: a base version of the aggregator, and the merges of its updates since.

A merge's step depends on its updates alone, not on the parameters it is added to. So what a site came to is
the sum of its steps, and when the aggregator names updates that it knows already, only the steps that they
were in are computed again.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import Struct

from hedgerow.core.merge import MergeContext, merge
from hedgerow.core.messages import Descriptor, Header, Update, UpdateId
from hedgerow.core.partial import Accumulator, frame_for
from hedgerow.core.plan import Plan
from hedgerow.core.planbook import PlanBook
from hedgerow.core.quantize import decode_delta
from hedgerow.core.rules import Rules
from hedgerow.core.units import Manifest, Vector

MOST_MERGED = 4096
"""The most updates of one merge, and of one contribution."""


@dataclass(frozen=True)
class IslandBase:
    """What an island takes from the aggregator's version at which it begins: units, plans and rules."""

    version: int
    plan: Plan
    plans: Mapping[str, Plan]
    rules: Rules

    @classmethod
    def of(cls, descriptor: Descriptor) -> "IslandBase":
        """Read it from the aggregator's version, or from one of the island's, which has all but the number.

        Raises PeerError where the plans do not fit the units.
        """
        manifest = Manifest.of({name: unit.shape for name, unit in descriptor.units.items()})
        plans = PlanBook().read(descriptor, manifest)
        stamp = descriptor.island
        version = descriptor.version if stamp is None else stamp.base_version
        return cls(version, plans[descriptor.plan_id], plans, descriptor.rules)

    @property
    def manifest(self) -> Manifest:
        """The model's units."""
        return self.plan.manifest

    def takes(self, update: Update) -> bool:
        """Whether an island that began here can merge an update, which was checked on admission."""
        return update.plan_id in self.plans


class Merged(Struct, frozen=True, array_like=True):
    """The updates of one merge, and how many merges old the version was that each was trained from."""

    ids: list[UpdateId]
    ages: list[int]

    def without(self, ids: Container[UpdateId]) -> "Merged":
        """Return the merge as if some of its updates had not been there."""
        kept = [pair for pair in zip(self.ids, self.ages, strict=True) if pair[0] not in ids]
        return Merged([update_id for update_id, _ in kept], [age for _, age in kept])


def step(updates: Sequence[Update], ages: Iterable[int], base: IslandBase) -> Vector:
    """Return what one merge adds to the plan's units, shape (p,), by the rules of the base version.

    An update older than tau_max weighs as one of that age: nobody but the aggregator may call it stale.
    """
    rules = base.rules
    now = rules.staleness.tau_max
    sums = Accumulator()
    for update, age in zip(updates, ages, strict=True):
        trained_at = now - min(age, now)
        header = Header(update.id, trained_at, update.examples, update.kappa)
        plan = base.plans[update.plan_id]
        frame = frame_for(rules, trained_at, rules, now)
        sums.add(header, decode_delta(update, plan), plan, rules, frame)
    context = MergeContext(
        manifest=base.manifest,
        version=now,
        law=rules.staleness,
        plans=base.plans,
        rules=lambda _: rules,
        learning_rate=rules.server_learning_rate,
    )
    moved, _ = merge(np.zeros(base.manifest.size, np.float32), sums.result(), context)
    return base.manifest.take(moved, base.plan.names)


def change(
    merges: Iterable[Merged], updates: Mapping[UpdateId, Update], base: IslandBase
) -> Vector:
    """Return the sum of merges' steps, shape (p,)."""
    total = np.zeros(base.plan.size, np.float32)
    for one in merges:
        if one.ids:
            total += step([updates[update_id] for update_id in one.ids], one.ages, base)
    return total


def with_change(params: Vector, delta: Vector, plan: Plan) -> Vector:
    """Return parameters, shape (P,), with a change of a plan's units added, shape (p,)."""
    out = params.copy()
    for name, where in plan.slices.items():
        out[plan.manifest.slices[name]] += delta[where]
    return out


def segments(merges: Iterable[Merged]) -> list[list[Merged]]:
    """Cut merges, in order, into groups that one contribution can name all updates of."""
    out: list[list[Merged]] = []
    room = 0
    for one in merges:
        if len(one.ids) > room or not out:
            out.append([])
            room = MOST_MERGED
        out[-1].append(one)
        room -= len(one.ids)
    return out
