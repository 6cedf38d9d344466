"""The plans that versions name: each version's own, and those of its memory classes inside it.

An update names the plan it was trained under, and every tier checks it against the version it was trained
from: so updates of a former plan stay valid for as long as that version is known.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Descriptor, Header, Update
from hedgerow.core.plan import Plan
from hedgerow.core.rules import LocalTraining
from hedgerow.core.units import Manifest


class PlanBook:
    """The plans of the known versions by id, each built once."""

    def __init__(self) -> None:
        self.plans: Mapping[str, Plan] = {}

    def read(self, descriptor: Descriptor, manifest: Manifest) -> dict[str, Plan]:
        """Return a version's plans by id, its own first, and take none up.

        Raises PeerError where an id is not the hash of its units, a nested plan leaves the widest, or one
        has units that are not to leave the nodes.
        """
        _check_personal(descriptor, manifest)
        own = self._plan(descriptor.plan_id, descriptor.plan, manifest)
        found = {own.plan_id: own}
        for plan_id, units in descriptor.nested.items():
            found[plan_id] = self._plan(plan_id, units, manifest)
            if not set(units) <= set(descriptor.plan):
                raise PeerError("unknown-plan", f"plan {plan_id} is not a part of its version's")
        for local in descriptor.training.values():
            check_plan(descriptor, local.plan_id or own.plan_id)
        return found

    def take(self, plans: Mapping[str, Plan], descriptors: Iterable[Descriptor]) -> None:
        """Take up a version's plans, and forget those that none of the known `descriptors` names."""
        named = {plan_id for known in descriptors for plan_id in plan_ids(known)}
        both = {**self.plans, **plans}
        self.plans = {plan_id: plan for plan_id, plan in both.items() if plan_id in named}

    def _plan(self, plan_id: str, units: Iterable[str], manifest: Manifest) -> Plan:
        units = tuple(units)
        known = self.plans.get(plan_id)
        if known is not None and known.names == units and known.manifest == manifest:
            return known
        wanted = set(units)
        plan = Plan(manifest, tuple(u.name for u in manifest.units if u.name in wanted))
        if not units or plan.names != units or plan.plan_id != plan_id:
            raise PeerError("unknown-plan", f"plan {plan_id} does not match its units")
        return plan


def _check_personal(descriptor: Descriptor, manifest: Manifest) -> None:
    """Raise PeerError unless a version's personal units are the model's, and outside its plan."""
    unknown = sorted(set(descriptor.personal) - manifest.by_name.keys())
    shared = sorted(set(descriptor.personal) & set(descriptor.plan))
    if unknown or shared:
        which = f"{unknown[0]} is no unit" if unknown else f"{shared[0]} is in the plan, too"
        raise PeerError("unknown-plan", f"personal units: {which}")


@dataclass(frozen=True, slots=True)
class PlanSet:
    """What the nodes train: the widest plan, and the parts of it that some memory classes have."""

    widest: Plan
    by_class: Mapping[str, Plan] = field(default_factory=dict)

    def of_class(self, memory_class: str) -> Plan:
        """Return the plan of one memory class."""
        return self.by_class.get(memory_class, self.widest)

    @property
    def nested(self) -> dict[str, Plan]:
        """The plans other than the widest, by id."""
        others = {plan.plan_id: plan for _, plan in sorted(self.by_class.items())}
        return {i: plan for i, plan in others.items() if i != self.widest.plan_id}


def plan_set(descriptor: Descriptor, plans: Mapping[str, Plan]) -> PlanSet:
    """Return what a version has nodes train, of `plans` by id."""
    by_class = {
        name: plans[local.plan_id] for name, local in descriptor.training.items() if local.plan_id
    }
    return PlanSet(plans[descriptor.plan_id], by_class)


def plan_ids(descriptor: Descriptor) -> tuple[str, ...]:
    """Return the ids of the plans that nodes may train under from a version, the widest first."""
    return (descriptor.plan_id, *descriptor.nested)


def check_plan(descriptor: Descriptor, plan_id: str) -> None:
    """Raise PeerError unless a version has this plan."""
    if plan_id not in plan_ids(descriptor):
        raise PeerError("unknown-plan", f"version {descriptor.version} has no plan {plan_id}")


def header_of(update: Update, base: Descriptor) -> Header:
    """Return what a partial aggregate says of an update trained from `base`."""
    header = update.header
    return header if update.plan_id == base.plan_id else replace(header, plan_id=update.plan_id)


def plan_of_class(descriptor: Descriptor, memory_class: str) -> tuple[str, LocalTraining]:
    """Return which plan a memory class trains, by its id, and how; unknown classes train as "default"."""
    local = descriptor.training.get(memory_class) or descriptor.training["default"]
    return local.plan_id or descriptor.plan_id, local
