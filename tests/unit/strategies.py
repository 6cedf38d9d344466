"""Hypothesis strategies shared by the tests of the core, and the fleet's small moving parts they need."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from msgspec import inspect

from hedgerow.core.codec import decode, encode
from hedgerow.core.merge import MergeContext
from hedgerow.core.messages import Encoding, Header, Message, Partial, Update, UpdateId
from hedgerow.core.partial import (
    PartialAggregate,
    add,
    contribution,
    frame_for,
    from_wire,
    to_wire,
)
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import Encoded
from hedgerow.core.rules import Rules
from hedgerow.core.staleness import StalenessLaw
from hedgerow.core.units import Manifest, Unit, Vector

# A loaded machine is no failure, so no deadline; under CI hypothesis draws the same examples each time.
LAW = settings(
    max_examples=100,
    stateful_step_count=20,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)

NEWEST = 8
"""The aggregator's version in a scenario; updates come from versions 0 to 8."""

_TEXT = st.characters(exclude_categories=["Cs"])
_PATTERNS = {
    r"\A[a-z0-9-]{1,32}\Z": st.text("az09-", min_size=1, max_size=32),
    r"\A[0-9a-f]{32}\Z": st.text("09af", min_size=32, max_size=32),
}


def of_type(kind: inspect.Type) -> st.SearchStrategy[Any]:
    """Return the values that a field of a message may hold, as its type says (NaN apart)."""
    match kind:
        case inspect.IntType() | inspect.FloatType():
            return _of_number(kind)
        case inspect.StructType():
            return _of_struct(kind)
        case inspect.StrType():
            return _of_text(kind)
        case inspect.BoolType():
            return st.booleans()
        case inspect.BytesType():
            return st.binary(max_size=64)
        case inspect.LiteralType():
            return st.sampled_from(kind.values)
        case inspect.ListType():
            return st.lists(of_type(kind.item_type), min_size=kind.min_length or 0, max_size=3)
        case inspect.DictType():
            key, value = of_type(kind.key_type), of_type(kind.value_type)
            return st.dictionaries(key, value, min_size=kind.min_length or 0, max_size=3)
        case inspect.UnionType(types=[one, inspect.NoneType()]):
            return st.none() | of_type(one)
        case _:
            raise TypeError(f"no strategy for {kind}")


def _of_text(kind: inspect.StrType) -> st.SearchStrategy[str]:
    if kind.pattern is not None:
        return _PATTERNS[kind.pattern]
    return st.text(_TEXT, min_size=kind.min_length or 0, max_size=kind.max_length or 32)


def _of_struct(kind: inspect.StructType) -> st.SearchStrategy[Any]:
    # Any wire version but our own is refused.
    fields = {field.name: of_type(field.type) for field in kind.fields if field.name != "v"}
    return st.builds(kind.cls, **fields)


def _of_number(kind: inspect.IntType | inspect.FloatType) -> st.SearchStrategy[Any]:
    low, high = (kind.gt if kind.ge is None else kind.ge), (kind.lt if kind.le is None else kind.le)
    if isinstance(kind, inspect.FloatType):
        return st.floats(low, high, allow_nan=False, exclude_min=kind.gt is not None)
    assert low is not None, "a whole number without bounds cannot travel"
    assert high is not None, "a whole number without bounds cannot travel"
    return st.integers(int(low) + (kind.gt is not None), int(high) - (kind.lt is not None))


def _every_message() -> dict[type, st.SearchStrategy[Any]]:
    union = inspect.type_info(Message)
    assert isinstance(union, inspect.UnionType)
    structs = [kind for kind in union.types if isinstance(kind, inspect.StructType)]
    assert len(structs) == len(union.types)
    return {kind.cls: of_type(kind) for kind in structs}


MESSAGES = _every_message()
"""Every message type, taken from the union itself, so that none can be forgotten."""

messages = st.one_of(*MESSAGES.values())

update_ids = st.builds(
    UpdateId, st.sampled_from(["n1", "n2", "n3"]), st.integers(0, 2), st.integers(0, 6)
)


@st.composite
def manifests(draw: st.DrawFn, max_units: int = 4) -> Manifest:
    """Draw a manifest of a few small units, some of them biases."""
    shapes = st.lists(st.integers(1, 3), min_size=0, max_size=2).map(tuple)
    kinds = draw(
        st.lists(
            st.tuples(st.sampled_from(["weight", "bias"]), shapes), min_size=1, max_size=max_units
        )
    )
    return Manifest(
        tuple(Unit(f"layer{at}.{kind}", shape) for at, (kind, shape) in enumerate(kinds))
    )


def plans(manifest: Manifest) -> st.SearchStrategy[Plan]:
    """Draw a plan over any units of a manifest."""
    names = st.sets(st.sampled_from(sorted(manifest.by_name)), min_size=1)
    return names.map(lambda chosen: Plan.of(manifest, chosen))


def deltas(size: int, largest: float = 4.0) -> st.SearchStrategy[Vector]:
    """Draw float32 vectors, subnormal numbers and exact ties included."""
    limit = float(np.float32(largest))
    return arrays(np.float32, size, elements=st.floats(-limit, limit, width=32))


exponential_laws = st.floats(0.5, 1.0).map(
    lambda gamma: StalenessLaw(kind="exponential", gamma=gamma)
)
bucket_laws = st.builds(
    StalenessLaw,
    kind=st.sampled_from(["polynomial", "hinge", "constant"]),
    exponent=st.floats(0.01, 4),
    hinge_after=st.integers(0, 5),
    hinge_slope=st.floats(0.01, 4),
    tau_max=st.integers(1, 10),
)
kappas = st.one_of(st.floats(0.01, 100), st.floats())


@st.composite
def rule_books(
    draw: st.DrawFn, laws: st.SearchStrategy[StalenessLaw], *, weighted: bool = True
) -> tuple[Rules, ...]:
    """Draw the rules of versions 0 to 8: one configuration, its kappa_ref moving with the version.

    Without `weighted`, psi = a = 1.
    """
    fixed: dict[str, Any] = {"staleness": draw(laws), "clip_norm": draw(st.floats(0.5, 50.0))}
    if weighted:
        fixed |= {
            "example_exponent": draw(st.floats(0, 1)),
            "example_cap": draw(st.integers(1, 100)),
            "variance": draw(st.sampled_from(["none", "kappa_diversity", "kappa_inverse"])),
        }
    references = draw(st.tuples(st.floats(0, 10), st.floats(0, 10)))
    return tuple(Rules(kappa_ref=references[v % 2], **fixed) for v in range(NEWEST + 1))


@dataclass(frozen=True)
class Contributed:
    """One update as the core sees it, and the version its gateway knew when it summed it."""

    header: Header
    delta: Vector
    plan: Plan
    known_version: int


@dataclass(frozen=True)
class Scenario:
    """A model, the rules by version, and updates that are to be merged into version 9."""

    manifest: Manifest
    rules: tuple[Rules, ...]
    updates: tuple[Contributed, ...]

    @cached_property
    def plans(self) -> dict[str, Plan]:
        return {update.plan.plan_id: update.plan for update in self.updates}

    def context(self, learning_rate: float = 1.0) -> MergeContext:
        """Return what the merge into the next version needs."""
        law = self.rules[NEWEST].staleness
        rules: Callable[[int], Rules] = self.rules.__getitem__
        return MergeContext(self.manifest, NEWEST, law, self.plans, rules, learning_rate)

    def part(self, update: Contributed, known_version: int | None = None) -> PartialAggregate:
        """Return one update's partial aggregate, as its gateway or one that knows more makes it."""
        newest = update.known_version if known_version is None else known_version
        base = self.rules[update.header.base_version]
        frame = frame_for(base, update.header.base_version, self.rules[newest], newest)
        return contribution(update.header, update.delta, update.plan, base, frame)

    def parts(self, known_version: int | None = None) -> list[PartialAggregate]:
        """Return the partial aggregate of each update."""
        return [self.part(update, known_version) for update in self.updates]

    def covering(self, name: str) -> list[Contributed]:
        """Return the updates whose plan has a unit."""
        return [update for update in self.updates if name in update.plan.slices]


@st.composite
def scenarios(
    draw: st.DrawFn, laws: st.SearchStrategy[StalenessLaw], *, weighted: bool = True
) -> Scenario:
    """Draw a scenario with one to six updates of up to two plans."""
    manifest = draw(manifests())
    rules = draw(rule_books(laws, weighted=weighted))
    choices = draw(st.lists(plans(manifest), min_size=1, max_size=2))
    updates = []
    for seq in range(draw(st.integers(1, 6))):
        plan = draw(st.sampled_from(choices))
        base = draw(st.integers(0, NEWEST))
        header = Header(UpdateId("n1", 1, seq), base, draw(st.integers(1, 200)), draw(kappas))
        # A delta that must not be clipped has at most the clip norm, whatever its length.
        largest = 4.0 if weighted else rules[base].clip_norm / max(1.0, plan.size**0.5) * 0.999
        delta = draw(deltas(plan.size, largest))
        updates.append(Contributed(header, delta, plan, draw(st.integers(base, NEWEST))))
    return Scenario(manifest, rules, tuple(updates))


def over_the_wire(part: PartialAggregate, plans: dict[str, Plan]) -> PartialAggregate:
    """Send a partial aggregate through real messages, eight buckets in each."""
    buckets = to_wire(part)
    arrived: list[PartialAggregate] = []
    for at in range(0, len(buckets), 8):
        message = Partial(
            id="p",
            gateway="g",
            model="m",
            at_version=NEWEST,
            headers=[Header(UpdateId("n", 1, 1), 0, 1, 1.0)],
            sums=buckets[at : at + 8],
        )
        received = decode(encode(message))
        assert isinstance(received, Partial)
        arrived.append(from_wire(received.sums, plans))
    return add(*arrived)


@st.composite
def through_a_tree(
    draw: st.DrawFn, parts: Sequence[PartialAggregate], plans: dict[str, Plan]
) -> PartialAggregate:
    """Add partial aggregates in a random order through a random tree, each edge of it a message."""
    waiting = draw(st.permutations(list(parts)))
    while len(waiting) > 1:
        width = draw(st.integers(2, len(waiting)))
        group, waiting = waiting[:width], waiting[width:]
        waiting.insert(draw(st.integers(0, len(waiting))), over_the_wire(add(*group), plans))
    return over_the_wire(waiting[0], plans)


def bits(part: PartialAggregate) -> object:
    """Return everything in a partial aggregate in a form that compares bit by bit."""
    return {
        key: (
            sums.total.tobytes(),
            sums.weight,
            sums.decayed,
            sums.examples,
            sums.squares,
            sums.norms,
            sums.count,
        )
        for key, sums in part.items()
    }


def update_of(plan: Plan, encoding: Encoding, encoded: Encoded) -> Update:
    """Return the message that carries an encoded delta."""
    return Update(
        id=UpdateId("n", 1, 1),
        model="m",
        base_version=0,
        plan_id=plan.plan_id,
        examples=1,
        kappa=1.0,
        encoding=encoding,
        scales=encoded.scales,
        payload=encoded.payload,
    )
