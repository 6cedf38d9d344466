"""Laws of the merge: what the fleet's tree does must be what one flat sum would have done."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from hedgerow.core.errors import PeerError
from hedgerow.core.merge import MergeContext, merge
from hedgerow.core.messages import Header, UpdateId
from hedgerow.core.partial import (
    WEIGHT_ONE,
    PartialAggregate,
    add,
    contribution,
    fixed_point_scale,
    frame_for,
)
from hedgerow.core.plan import Plan
from hedgerow.core.rules import Rules
from hedgerow.core.staleness import StalenessLaw
from hedgerow.core.units import Manifest, Vector
from tests.unit.strategies import (
    LAW,
    NEWEST,
    Scenario,
    bucket_laws,
    deltas,
    exponential_laws,
    scenarios,
    through_a_tree,
)

any_scenario = st.one_of(scenarios(bucket_laws), scenarios(exponential_laws))
learning_rates = st.floats(0.01, 2.0)
F32 = 2.0**-24
"""Relative error of rounding to float32."""


def draw_params(data: st.DataObject, manifest: Manifest) -> Vector:
    return data.draw(deltas(manifest.size, 10.0), label="params")


def own_weight(law: StalenessLaw, tau: int) -> float:
    """The staleness laws of the design, written down a second time."""
    if tau > law.tau_max:
        return 0.0
    if law.kind == "exponential":
        return float(np.prod([law.gamma] * tau))
    if law.kind == "polynomial":
        return math.exp(-law.exponent * math.log(1 + tau))
    if law.kind == "hinge" and tau > law.hinge_after:
        return 1 / (1 + law.hinge_slope * (tau - law.hinge_after))
    return 1.0


# -- one tree or another ---------------------------------------------------------------------------


@LAW
@given(scenarios(bucket_laws), learning_rates, st.data())
def test_bucket_mode_flat_equals_hierarchical_to_the_bit(
    scenario: Scenario, learning_rate: float, data: st.DataObject
) -> None:
    """Flat: the aggregator sums everything at version V. Hierarchical: gateways that know less, a tree."""
    params, context = draw_params(data, scenario.manifest), scenario.context(learning_rate)
    flat, flat_statistics = merge(params, add(*scenario.parts(known_version=NEWEST)), context)
    tree = data.draw(through_a_tree(scenario.parts(), scenario.plans))
    merged, statistics = merge(params, tree, context)
    assert merged.tobytes() == flat.tobytes()
    assert statistics == flat_statistics


@LAW
@given(scenarios(exponential_laws), learning_rates, st.data())
def test_exponential_mode_is_bit_identical_for_any_order_of_the_same_frames(
    scenario: Scenario, learning_rate: float, data: st.DataObject
) -> None:
    params, context = draw_params(data, scenario.manifest), scenario.context(learning_rate)
    first, first_statistics = merge(params, add(*scenario.parts()), context)
    tree = data.draw(through_a_tree(scenario.parts(), scenario.plans))
    merged, statistics = merge(params, tree, context)
    assert merged.tobytes() == first.tobytes()
    assert statistics == first_statistics


@LAW
@given(scenarios(exponential_laws), learning_rates)
def test_exponential_mode_flat_equals_hierarchical_within_a_quantum_per_update(
    scenario: Scenario, learning_rate: float
) -> None:
    """Flat: framed at V. Hierarchical: framed at each gateway's v_g <= V, then gamma^(V - v_g).

    For one unit covered by n updates write N, A, D, A0 for the merge's sums, S for the fixed-point
    scale and q = 2^-20 for the quantum of the scalars. Each addend is rounded once, by at most half a
    quantum; the hierarchical rounding is then multiplied by gamma^(V - v_g) <= 1. So both sums lie
    within n/2 quanta of the exact one, and within n of each other:

        |N - N'| <= n/S      |A - A'| <= n q      |D - D'| <= n q      A0 = A0'

    The step is eta/A0 * D/A * N, hence with r = D/A, r' = D'/A'

        |step - step'| <= eta/A0 * (r |N - N'| + |N'| |r - r'|)
        |r - r'| = |D A' - D' A| / (A A') <= (|D - D'| + r' |A - A'|) / A <= (1 + r') n q / A

    which gives the bound below. With psi = a = 1, A and D are the same integers and A0 = n: the second
    term is 0, and the bound is eta/S, one quantum of the parameters. On top come the rounding of the
    step to float32 (the parameters here are 0, so the sum is exact) and of gamma's powers.
    """
    params, context = np.zeros(scenario.manifest.size, np.float32), scenario.context(learning_rate)
    flat, tree = add(*scenario.parts(known_version=NEWEST)), add(*scenario.parts())
    flat_params, _ = merge(params, flat, context)
    tree_params, _ = merge(params, tree, context)
    scale, quantum = fixed_point_scale(scenario.rules[0]), 1 / WEIGHT_ONE
    for unit in scenario.manifest.units:
        n, where = len(scenario.covering(unit.name)), scenario.manifest.slices[unit.name]
        if n == 0:
            continue
        a, d, a0 = scalar_sums(flat, unit.name, context)
        a_tree, d_tree, a0_tree = scalar_sums(tree, unit.name, context)
        assert a0 == a0_tree
        assert max(abs(a - a_tree), abs(d - d_tree)) <= n * quantum * (1 + 1e-9)
        out, out_tree = flat_params[where].astype(float), tree_params[where].astype(float)
        numerator = np.abs(out_tree) * a0 / learning_rate * a_tree / d_tree
        ratio_error = (
            0.0 if a == d and a_tree == d_tree else (1 + d_tree / a_tree) * n * quantum / a
        )
        bound = learning_rate / a0 * (d / a * n / scale + numerator * ratio_error)
        rounding = F32 * (np.abs(out) + np.abs(out_tree)) + 2.0**-149
        assert np.all(np.abs(out - out_tree) <= bound * (1 + 1e-6) + rounding)


def scalar_sums(
    part: PartialAggregate, name: str, context: MergeContext
) -> tuple[float, float, float]:
    """Return A, D and A0 of one unit at version V."""
    weight = decayed = examples = 0.0
    for (plan_id, ref_version, gamma), sums in part.items():
        if name in context.plans[plan_id].slices:
            decay = gamma ** (context.version - ref_version)
            weight += decay * sums.weight / WEIGHT_ONE
            decayed += decay * sums.decayed / WEIGHT_ONE
            examples += sums.examples / WEIGHT_ONE
    return weight, decayed, examples


# -- known algorithms ------------------------------------------------------------------------------


@LAW
@given(
    st.one_of(scenarios(bucket_laws, weighted=False), scenarios(exponential_laws, weighted=False)),
    learning_rates,
    st.data(),
)
def test_with_unit_weights_the_merge_is_fedbuff(
    scenario: Scenario, learning_rate: float, data: st.DataObject
) -> None:
    """params + eta/K sum s(tau) delta, K counting the updates that cover the unit.

    Each delta is rounded to the grid of 1/S, at most half a step away, and has weight eta s/K <= eta/K:
    half a step of the parameters in all. float32 rounds the step and the sum.
    """
    params = draw_params(data, scenario.manifest)
    merged, _ = merge(params, add(*scenario.parts()), scenario.context(learning_rate))
    law = scenario.rules[NEWEST].staleness
    half_step = 0.5 * learning_rate / fixed_point_scale(scenario.rules[0])
    for unit in scenario.manifest.units:
        where, covering = scenario.manifest.slices[unit.name], scenario.covering(unit.name)
        expected = params[where].astype(np.float64)
        step = np.zeros_like(expected)
        for update in covering:
            delta = update.delta[update.plan.slices[unit.name]].astype(np.float64)
            tau = NEWEST - update.header.base_version
            step += learning_rate / len(covering) * own_weight(law, tau) * delta
        rounding = 2 * F32 * (np.abs(step) + np.abs(expected + step)) + 2.0**-149
        error = np.abs(merged[where] - (expected + step))
        assert np.all(error <= half_step * (1 + 1e-6) + rounding)


@LAW
@given(scenarios(bucket_laws, weighted=False), learning_rates, st.data())
def test_with_example_weights_and_no_staleness_the_merge_is_fedavg(
    scenario: Scenario, learning_rate: float, data: st.DataObject
) -> None:
    """params + eta sum n delta / sum n, with n capped."""
    law = StalenessLaw(kind="constant")
    rules = tuple(
        replace(r, staleness=law, example_exponent=1.0, example_cap=50, clip_norm=r.clip_norm)
        for r in scenario.rules
    )
    fleet = Scenario(scenario.manifest, rules, scenario.updates)
    params = draw_params(data, fleet.manifest)
    merged, _ = merge(params, add(*fleet.parts()), fleet.context(learning_rate))
    half_step = 0.5 * learning_rate / fixed_point_scale(rules[0])
    for unit in fleet.manifest.units:
        where, covering = fleet.manifest.slices[unit.name], fleet.covering(unit.name)
        step = np.zeros(unit.size)
        if covering:
            counts = [min(update.header.examples, 50) for update in covering]
            rows = np.stack([u.delta[u.plan.slices[unit.name]] for u in covering])
            step = learning_rate * np.average(rows.astype(np.float64), axis=0, weights=counts)
        expected = params[where] + step
        rounding = 2 * F32 * (np.abs(step) + np.abs(expected)) + 2.0**-149
        assert np.all(np.abs(merged[where] - expected) <= half_step * (1 + 1e-6) + rounding)


# -- properties of the step ------------------------------------------------------------------------


@LAW
@given(any_scenario, st.data())
def test_units_that_nobody_covers_do_not_change(scenario: Scenario, data: st.DataObject) -> None:
    params = draw_params(data, scenario.manifest)
    before = params.copy()
    merged, statistics = merge(params, add(*scenario.parts()), scenario.context())
    assert params.tobytes() == before.tobytes()
    assert merged.dtype == np.float32
    for unit in scenario.manifest.units:
        if not scenario.covering(unit.name):
            where = scenario.manifest.slices[unit.name]
            assert merged[where].tobytes() == before[where].tobytes()
            assert unit.name not in statistics


@LAW
@given(any_scenario)
def test_damping_is_in_0_to_1_and_1_only_without_staleness(scenario: Scenario) -> None:
    params = np.zeros(scenario.manifest.size, np.float32)
    _, statistics = merge(params, add(*scenario.parts()), scenario.context())
    law = scenario.rules[NEWEST].staleness
    for name, figures in statistics.items():
        ages = [NEWEST - update.header.base_version for update in scenario.covering(name)]
        assert 0 < figures.damping <= 1
        if all(own_weight(law, age) == 1 for age in ages):
            assert figures.damping == 1
        assert figures.variance >= 0
        # The squares of small weights are few quanta: a diagnostic, good to an eighth.
        assert 0 < figures.effective_count <= len(ages) * 1.15


@LAW
@given(any_scenario)
def test_no_step_is_longer_than_the_clip_norm(scenario: Scenario) -> None:
    """Damping is at most 1 and the mean of clipped deltas is no longer than the clip norm."""
    params = np.zeros(scenario.manifest.size, np.float32)
    merged, statistics = merge(params, add(*scenario.parts()), scenario.context())
    clip = scenario.rules[0].clip_norm
    for name in statistics:
        step = merged[scenario.manifest.slices[name]].astype(np.float64)
        assert np.linalg.norm(step) <= clip * 1.001 + 1e-3


def test_two_plans_in_one_merge_are_normalised_unit_by_unit() -> None:
    manifest = Manifest.of({"a": (2,), "b": (1,), "c": (1,)})
    rules = Rules(staleness=StalenessLaw(kind="polynomial"), clip_norm=10.0)
    both, only_b = Plan.of(manifest, ["a", "b"]), Plan.of(manifest, ["b"])
    sent = [(both, 4, [1, 2, 4]), (only_b, 4, [8]), (only_b, 1, [2])]
    parts = [
        contribution(
            Header(UpdateId("n", 1, seq), base, 1, 1.0),
            np.array(delta, np.float32),
            plan,
            rules,
            frame_for(rules, base, rules, 4),
        )
        for seq, (plan, base, delta) in enumerate(sent)
    ]
    plans = {both.plan_id: both, only_b.plan_id: only_b}
    context = MergeContext(manifest, 4, rules.staleness, plans, lambda _: rules, 1.0)
    merged, statistics = merge(np.full(4, 100, np.float32), add(*parts), context)
    # b: three updates, ages 0, 0 and 3 with weights 1, 1 and 1/2; mean 13/2.5, damping 2.5/3.
    np.testing.assert_allclose(merged, [101, 102, 100 + 13 / 3, 100], atol=1e-4)
    assert statistics["a"].damping == 1
    assert statistics["b"].damping == pytest.approx(2.5 / 3)
    assert statistics["b"].effective_count == pytest.approx(2.5**2 / 2.25)
    mean = 13 / 2.5
    assert statistics["b"].variance == pytest.approx((16 + 64 + 0.5 * 4) / 2.5 - mean**2, rel=1e-4)
    assert statistics.keys() == {"a", "b"}


def _one_update(base: int, version: int, law: StalenessLaw, **changes: Any) -> dict[str, float]:
    """Merge one update of 1.0 into parameters 0; return the step and the damping, if there is one."""
    manifest = Manifest.of({"w": (1,)})
    plan = Plan.of(manifest, ["w"])
    rules = Rules(staleness=law, clip_norm=1.0, **changes)
    frame = frame_for(rules, base, rules, base if law.kind != "exponential" else version)
    header = Header(UpdateId("n", 1, 1), base, 1, 1e-9)
    part = contribution(header, np.ones(1, np.float32), plan, rules, frame)

    def known_rules(asked: int) -> Rules:
        if version - asked > law.tau_max:
            raise PeerError("unknown-version", f"version {asked}")
        return rules

    context = MergeContext(manifest, version, law, {plan.plan_id: plan}, known_rules, 1.0)
    merged, statistics = merge(np.zeros(1, np.float32), part, context)
    return {"step": float(merged[0])} | {n: s.damping for n, s in statistics.items()}


def test_a_bucket_beyond_tau_max_counts_nothing_though_its_rules_are_forgotten() -> None:
    law = StalenessLaw(kind="constant", tau_max=3)
    assert _one_update(0, 3, law) == {"step": 1.0, "w": 1.0}
    assert _one_update(0, 4, law) == {"step": 0.0}


def test_an_update_too_light_for_the_fixed_point_changes_nothing() -> None:
    law = StalenessLaw(kind="exponential", gamma=0.5)
    assert _one_update(0, 19, law) == {"step": 2.0**-19, "w": 2.0**-19}
    assert _one_update(0, 22, law) == {"step": 0.0}
    # psi = 2 lifts the weight over half a quantum where the damping stays below: still no step.
    doubled = {"variance": "kappa_diversity", "kappa_ref": 1.0}
    assert _one_update(0, 22, replace(law, gamma=0.501), **doubled) == {"step": 0.0}


def test_an_update_from_the_future_is_no_merge_input() -> None:
    with pytest.raises(ValueError, match="staleness"):
        _one_update(5, 4, StalenessLaw(kind="constant"))


def test_merging_nothing_changes_nothing() -> None:
    manifest = Manifest.of({"w": (2,)})
    law = StalenessLaw()
    context = MergeContext(manifest, 0, law, {}, dict[int, Rules]().__getitem__, 1.0)
    merged, statistics = merge(np.array([1, 2], np.float32), {}, context)
    assert merged.tolist() == [1, 2]
    assert statistics == {}
