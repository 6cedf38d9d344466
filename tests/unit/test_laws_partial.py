"""Laws of partial aggregates: sums of integers that no tree, order or repeat can change."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec.structs import replace

from hedgerow.core.codec import decode, encode
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Header, Partial, UpdateId
from hedgerow.core.partial import (
    _BLOCK,
    PSI_MAX,
    WEIGHT_ONE,
    Accumulator,
    Frame,
    PartialAggregate,
    add,
    contribution,
    example_weight,
    fixed_point_scale,
    frame_for,
    from_wire,
    scalar_weights,
    to_wire,
    variance_weight,
)
from hedgerow.core.plan import Plan
from hedgerow.core.rules import Rules
from hedgerow.core.seqset import KnownUpdates
from hedgerow.core.staleness import StalenessLaw
from hedgerow.core.units import Manifest
from tests.unit.strategies import (
    LAW,
    NEWEST,
    Scenario,
    bits,
    bucket_laws,
    exponential_laws,
    kappas,
    over_the_wire,
    rule_books,
    scenarios,
    through_a_tree,
)

any_scenario = st.one_of(scenarios(bucket_laws), scenarios(exponential_laws))
CONSTANT = StalenessLaw(kind="constant")
ONE_UNIT = Plan.of(Manifest.of({"w": (3,)}), ["w"])


@LAW
@given(any_scenario, st.data())
def test_addition_is_a_commutative_monoid(scenario: Scenario, data: st.DataObject) -> None:
    parts = scenario.parts()
    before = [bits(part) for part in parts]
    a, b, c = (add(*data.draw(st.lists(st.sampled_from(parts), max_size=3))) for _ in range(3))
    assert bits(add(add(a, b), c)) == bits(add(a, add(b, c)))
    assert bits(add(a, b)) == bits(add(b, a))
    assert bits(add(a, {})) == bits(add({}, a)) == bits(a)
    assert [bits(part) for part in parts] == before


@LAW
@given(any_scenario, st.data())
def test_any_tree_of_relays_adds_to_the_same_bits(scenario: Scenario, data: st.DataObject) -> None:
    parts = scenario.parts()
    tree = data.draw(through_a_tree(parts, scenario.plans))
    assert bits(tree) == bits(add(*parts))


@LAW
@given(any_scenario, st.data())
def test_summing_in_place_is_addition(scenario: Scenario, data: st.DataObject) -> None:
    accumulator = Accumulator()
    for update in data.draw(st.permutations(scenario.updates)):
        base = scenario.rules[update.header.base_version]
        newest = scenario.rules[update.known_version]
        frame = frame_for(base, update.header.base_version, newest, update.known_version)
        accumulator.add(update.header, update.delta, update.plan, base, frame)
    assert bits(accumulator.result()) == bits(add(*scenario.parts()))


@pytest.mark.parametrize("size", [_BLOCK - 1, _BLOCK, _BLOCK + 1, 2 * _BLOCK + 3])
def test_units_larger_than_a_block_are_summed_whole(size: int) -> None:
    plan = Plan.of(Manifest.of({"a": (5,), "b": (size,)}), ["a", "b"])
    rules = Rules(staleness=CONSTANT, clip_norm=100.0, count_max=4)
    frame, header = Frame(0, 1.0, rules), Header(UpdateId("n", 1, 1), 0, 1, 1.0)
    delta = np.random.default_rng(size).uniform(-0.1, 0.1, plan.size).astype(np.float32)
    accumulator = Accumulator()
    for _ in range(3):
        accumulator.add(header, delta, plan, rules, frame)
    (sums,) = accumulator.result().values()
    once = np.rint(delta.astype(np.float64) * fixed_point_scale(rules))
    np.testing.assert_array_equal(sums.total, 3 * once)
    squares = [np.sum(delta[where].astype(np.float64) ** 2) for where in plan.slices.values()]
    np.testing.assert_allclose(sums.norms, 3 * np.array(squares) * WEIGHT_ONE, rtol=1e-9, atol=2)
    assert sums.count == 3


@LAW
@given(scenarios(bucket_laws), st.data())
def test_repeated_posts_change_nothing(scenario: Scenario, data: st.DataObject) -> None:
    """Gateways that share and repeat updates, and an aggregator that applies only unknown ids."""
    everyone = range(len(scenario.updates))
    posts = data.draw(st.lists(st.lists(st.sampled_from(everyone), unique=True), max_size=8))
    known, merged = KnownUpdates(), PartialAggregate()
    for post in [*posts, *([index] for index in everyone), *posts]:
        unknown = [i for i in post if scenario.updates[i].header.id not in known]
        rebuilt = add(*(scenario.part(scenario.updates[i]) for i in unknown))
        merged = add(merged, over_the_wire(rebuilt, scenario.plans))
        for index in unknown:
            known.add(scenario.updates[index].header.id)
    assert bits(merged) == bits(add(*scenario.parts()))


@LAW
@given(any_scenario)
def test_only_bucket_mode_keeps_base_versions_apart(scenario: Scenario) -> None:
    law, total = scenario.rules[NEWEST].staleness, add(*scenario.parts(known_version=NEWEST))
    wanted = {
        (update.plan.plan_id, NEWEST, law.gamma)
        if law.decays_at_gateway
        else (update.plan.plan_id, update.header.base_version, 1.0)
        for update in scenario.updates
    }
    assert total.keys() == wanted
    assert sum(sums.count for sums in total.values()) == len(scenario.updates)


@LAW
@given(scenarios(exponential_laws))
def test_decayed_weights_are_the_formula_within_half_a_quantum(scenario: Scenario) -> None:
    for update in scenario.updates:
        base = scenario.rules[update.header.base_version]
        (sums,) = scenario.part(update).values()
        age = update.known_version - update.header.base_version
        a = min(update.header.examples, base.example_cap) ** base.example_exponent
        decayed = a * scenario.rules[NEWEST].staleness.gamma ** age
        assert abs(sums.examples - a * WEIGHT_ONE) <= 0.5001
        assert abs(sums.decayed - decayed * WEIGHT_ONE) <= 0.5001
        assert 0.4999 * sums.decayed - 1 <= sums.weight <= 2.0001 * sums.decayed + 1
        assert sums.decayed <= sums.examples


@LAW
@given(any_scenario)
def test_a_sum_is_the_weighted_clipped_delta_within_half_a_quantum(scenario: Scenario) -> None:
    for update in scenario.updates:
        base = scenario.rules[update.header.base_version]
        newest = scenario.rules[update.known_version]
        frame = frame_for(base, update.header.base_version, newest, update.known_version)
        (sums,) = scenario.part(update).values()
        exact = update.delta.astype(np.float64)
        clipped = exact * min(1.0, base.clip_norm / max(float(np.linalg.norm(exact)), 1e-300))
        # What a gateway sums, the aggregator computes again from the headers.
        scalars = scalar_weights(update.header, base, frame)
        stated = (sums.weight, sums.decayed, sums.examples, sums.squares)
        assert stated == scalars.fixed()
        weight = scalars.weight
        error = np.abs(sums.total - weight * clipped * fixed_point_scale(frame.rules))
        assert np.all(error <= 0.5001)
        for where, stated_norm in zip(update.plan.slices.values(), sums.norms, strict=True):
            square = weight * float(np.sum(clipped[where] ** 2)) * WEIGHT_ONE
            assert stated_norm == pytest.approx(square, rel=1e-6, abs=0.5001)


# -- int32 -----------------------------------------------------------------------------------------


@st.composite
def published(draw: st.DrawFn) -> Rules:
    """Any rules that leave some precision; two draws are two configurations of one fleet."""
    rules = Rules(
        staleness=draw(exponential_laws),
        clip_norm=draw(st.floats(1e-3, 100)),
        example_exponent=draw(st.floats(0, 1)),
        example_cap=draw(st.integers(1, 50)),
        variance=draw(st.sampled_from(["none", "kappa_diversity", "kappa_inverse"])),
        kappa_ref=draw(st.floats(0, 100)),
        count_max=draw(st.integers(1, 4096)),
    )
    return rules if _has_precision(rules) else replace(rules, count_max=1)


def _has_precision(rules: Rules) -> bool:
    try:
        return fixed_point_scale(rules) > 0
    except ValueError:
        return False


@LAW
@given(
    base=published(),
    newest=published(),
    coordinate=st.integers(0, 2),
    length=st.floats(0.5, 1e30),
    examples=st.integers(1, 1 << 30),
    kappa=st.floats(),
    sign=st.sampled_from([-1, 1]),
)
def test_count_max_adversaries_never_leave_int32(
    base: Rules,
    newest: Rules,
    coordinate: int,
    length: float,
    examples: int,
    kappa: float,
    sign: int,
) -> None:
    """All weight in one coordinate, at or far beyond the clip norm, from every update a sum may have.

    `newest` may come from another configuration than `base`: an operator may change it at a restart.
    """
    delta = np.zeros(3, np.float32)
    delta[coordinate] = sign * length * base.clip_norm
    header = Header(UpdateId("n", 1, 1), 3, examples, kappa)
    frame = frame_for(base, 3, newest, 3)
    (sums,) = contribution(header, delta, ONE_UNIT, base, frame).values()
    worst = int(np.max(np.abs(sums.total))) * newest.count_max
    assert worst <= (1 << 30) + newest.count_max
    # What is sent must be what the decoder's Count admits.
    limit = 1 << 62
    assert max(sums.weight, sums.decayed, sums.examples) * newest.count_max < limit
    assert max(sums.squares, *sums.norms) * newest.count_max < limit


@pytest.mark.parametrize("count_max", [1, 7, 64])
def test_a_full_sum_of_clipped_updates_travels_and_one_of_twice_the_size_is_ours_to_fix(
    count_max: int,
) -> None:
    rules = Rules(staleness=CONSTANT, clip_norm=2.0, count_max=count_max)
    frame = Frame(0, 1.0, rules)
    delta = np.array([0, -2.0, 0], np.float32)
    part = contribution(Header(UpdateId("n", 1, 1), 0, 1, 1.0), delta, ONE_UNIT, rules, frame)
    full = add(*[part] * count_max)
    plans = {ONE_UNIT.plan_id: ONE_UNIT}
    assert bits(over_the_wire(full, plans)) == bits(full)
    (sums,) = full.values()
    used = np.max(np.abs(sums.total)) / (1 << 30)
    assert 0.999 < used <= 1 + count_max / (1 << 30)
    with pytest.raises(OverflowError):
        to_wire(add(full, full, full))


def test_fixed_point_without_precision_is_refused_with_the_keys_to_change() -> None:
    rules = Rules(staleness=CONSTANT, clip_norm=1e4, count_max=4096)
    with pytest.raises(ValueError, match=r"aggregation\.count_max"):
        fixed_point_scale(rules)
    assert fixed_point_scale(replace(rules, clip_norm=100.0)) == (1 << 30) // (100 * 4096)


def test_example_weights_whose_squares_would_not_travel_are_refused() -> None:
    """Tiny clip norms leave room in int32 for weights whose squares pass 2^62."""
    rules = Rules(
        staleness=CONSTANT, clip_norm=0.01, example_exponent=1.0, example_cap=10**6, count_max=64
    )
    with pytest.raises(ValueError, match=r"aggregation\.example_cap"):
        fixed_point_scale(rules)


# -- weights ---------------------------------------------------------------------------------------


@LAW
@given(rule_books(bucket_laws), st.integers(0, 1 << 40))
def test_example_weight_is_capped(rules: tuple[Rules, ...], examples: int) -> None:
    weight = example_weight(examples, rules[0])
    assert weight <= example_weight(rules[0].example_cap, rules[0])
    assert example_weight(examples, replace(rules[0], example_exponent=0.0)) == 1
    fedavg = replace(rules[0], example_exponent=1.0)
    assert example_weight(examples, fedavg) == min(examples, rules[0].example_cap)


@LAW
@given(st.floats(), st.one_of(kappas, st.just(0.0)), st.sampled_from([-1, 1]))
@example(5e-324, 2.0, 1)
@example(1e308, 5e-324, -1)
def test_variance_weight_is_bounded_for_any_kappa_a_peer_may_name(
    kappa: float, reference: float, sign: int
) -> None:
    kind: Any = "kappa_diversity" if sign > 0 else "kappa_inverse"
    rules = Rules(staleness=CONSTANT, clip_norm=1.0, variance=kind, kappa_ref=reference)
    psi = variance_weight(kappa, rules)
    assert 1 / PSI_MAX <= psi <= PSI_MAX
    if not (math.isfinite(kappa) and kappa > 0 and reference > 0):
        assert psi == 1
    assert variance_weight(kappa, replace(rules, variance="none")) == 1


@pytest.mark.parametrize(
    ("variance", "kappa", "psi"),
    [
        ("kappa_diversity", 3.0, 1.0),
        ("kappa_diversity", 1.5, math.sqrt(2)),
        ("kappa_diversity", 6.0, math.sqrt(0.5)),
        ("kappa_diversity", 1e-300, 2.0),
        ("kappa_diversity", 5e-324, 2.0),
        ("kappa_diversity", 1e300, 0.5),
        ("kappa_inverse", 1.5, math.sqrt(0.5)),
        ("kappa_inverse", 6.0, math.sqrt(2)),
        ("kappa_inverse", 5e-324, 0.5),
        ("kappa_inverse", 1e300, 2.0),
        ("kappa_diversity", math.nan, 1.0),
        ("kappa_diversity", 0.0, 1.0),
        ("kappa_diversity", -1.0, 1.0),
        ("kappa_diversity", math.inf, 1.0),
    ],
)
def test_variance_weight_by_hand(variance: Any, kappa: float, psi: float) -> None:
    rules = Rules(staleness=CONSTANT, clip_norm=1.0, variance=variance, kappa_ref=3.0)
    assert variance_weight(kappa, rules) == pytest.approx(psi)


def test_a_long_delta_weighs_no_more_than_the_clip_norm() -> None:
    rules = Rules(staleness=CONSTANT, clip_norm=2.0)
    frame, header = Frame(0, 1.0, rules), Header(UpdateId("n", 1, 1), 0, 1, 1.0)
    long = np.array([3e20, 4e20, 0], np.float32)
    (sums,) = contribution(header, long, ONE_UNIT, rules, frame).values()
    np.testing.assert_allclose(
        sums.total / fixed_point_scale(rules), [1.2, 1.6, 0], atol=1 / fixed_point_scale(rules)
    )
    assert sums.norms[0] == pytest.approx(4.0 * WEIGHT_ONE, rel=1e-6)


# -- what a message may claim ----------------------------------------------------------------------


def _on_the_wire() -> tuple[Partial, dict[str, Plan]]:
    rules = Rules(staleness=CONSTANT, clip_norm=2.0)
    header = Header(UpdateId("n", 1, 1), 0, 1, 1.0)
    delta = np.ones(3, np.float32)
    part = contribution(header, delta, ONE_UNIT, rules, Frame(0, 1.0, rules))
    message = Partial(
        id="p", gateway="g", model="m", at_version=0, headers=[header], sums=to_wire(part)
    )
    received = decode(encode(message))
    assert isinstance(received, Partial)
    return received, {ONE_UNIT.plan_id: ONE_UNIT}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"plan_id": "0" * 32}, "unknown-plan"),
        ({"total": b"\0" * 8}, "shape"),
        ({"total": b"\0" * 13}, "shape"),
        ({"total": b""}, "shape"),
        ({"norms": []}, "shape"),
        ({"norms": [1, 2]}, "shape"),
    ],
)
def test_a_bucket_that_does_not_fit_its_plan_is_refused(
    changes: dict[str, Any], reason: str
) -> None:
    message, plans = _on_the_wire()
    with pytest.raises(PeerError) as caught:
        from_wire([replace(message.sums[0], **changes)], plans)
    assert caught.value.reason == reason


def test_two_buckets_with_one_key_are_refused() -> None:
    message, plans = _on_the_wire()
    with pytest.raises(PeerError) as caught:
        from_wire([*message.sums, *message.sums], plans)
    assert caught.value.reason == "inconsistent"


def test_the_empty_aggregate_travels_as_nothing() -> None:
    assert to_wire({}) == []
    assert from_wire([], {}) == {}
