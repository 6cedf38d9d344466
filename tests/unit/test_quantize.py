"""Laws of quantisation: small errors, bounded norms, and nothing that is not a number gets through."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hedgerow.core.codec import decode, encode
from hedgerow.core.encodings import FINEST_FIRST, default_k
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Update
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import (
    Encoded,
    clip_factor,
    decode_delta,
    encode_delta,
    norm,
    update_norm,
)
from hedgerow.core.units import Manifest, Vector
from tests.unit.strategies import LAW, deltas, manifests, plans, update_of

LEVELS = {"int8": 127, "int4": 7}
"""The encodings that round every value, and their largest level."""

UNCLIPPED = 1e38
TINY = 127 * 2.0**-149
"""Where a scale is subnormal its own rounding shows: at most this much."""

wide = st.sampled_from([1e-44, 1e-41, 1e-38, 1e-30, 1e-3, 1.0, 1e3, 1e15])
clip_norms = st.floats(1e-3, 1e3)
any_encoding = st.sampled_from(FINEST_FIRST)
PLAN = Plan.of(Manifest.of({"a": (2,), "b": (1,)}), ["a", "b"])


def floats(*values: float) -> bytes:
    with np.errstate(over="ignore"):
        return np.array(values, "<f4").tobytes()


def scales_in(encoded: Encoded) -> list[float]:
    return list(np.frombuffer(encoded.scales, "<f4").tolist())


def sent(plan: Plan, encoding: Any, encoded: Encoded) -> Update:
    """Send a delta in a real message."""
    arrived = decode(encode(update_of(plan, encoding, encoded)))
    assert isinstance(arrived, Update)
    return arrived


def received(plan: Plan, encoding: Any, encoded: Encoded) -> Vector:
    """Send a delta through a real message."""
    return decode_delta(sent(plan, encoding, encoded), plan)


def outcome(update: Update, plan: Plan) -> Vector | str:
    """Return the delta, or why it was refused."""
    try:
        return decode_delta(update, plan)
    except PeerError as error:
        return error.reason


def drawn(data: st.DataObject) -> tuple[Plan, Vector]:
    plan = data.draw(manifests().flatmap(plans), label="plan")
    return plan, data.draw(deltas(plan.size, data.draw(wide)), label="delta")


@LAW
@given(st.sampled_from(sorted(LEVELS)), st.data())
def test_rounding_is_off_by_half_a_scale_at_most(encoding: str, data: st.DataObject) -> None:
    plan, delta = drawn(data)
    encoded = encode_delta(delta, plan, encoding, UNCLIPPED)
    back = received(plan, encoding, encoded)
    assert not encoded.clipped
    for (name, where), scale in zip(plan.slices.items(), scales_in(encoded), strict=True):
        error = np.abs(back[where].astype(np.float64) - delta[where])
        assert np.all(error <= scale / 2 * (1 + 1e-4) + TINY), name
        largest = float(np.max(np.abs(delta[where])))
        assert scale == pytest.approx(largest / LEVELS[encoding], rel=1e-6, abs=TINY)


@LAW
@given(st.integers(0, 99), st.data())
def test_rounding_by_chance_is_off_by_a_scale_at_most(seed: int, data: st.DataObject) -> None:
    plan, delta = drawn(data)
    encoded = encode_delta(delta, plan, "int4", UNCLIPPED, np.random.default_rng(seed))
    back = received(plan, "int4", encoded)
    scales = np.repeat(scales_in(encoded), plan.sizes)
    assert np.all(np.abs(back.astype(np.float64) - delta) <= scales * (1 + 1e-4) + TINY)
    again = encode_delta(delta, plan, "int4", UNCLIPPED, np.random.default_rng(seed))
    assert again == encoded


def test_rounding_by_chance_is_right_on_average() -> None:
    delta = np.array([0.7, 0.03, -0.41], np.float32)
    plan = Plan.of(Manifest.of({"a": (3,)}), ["a"])
    rng = np.random.default_rng(1)
    total = sum(
        received(plan, "int4", encode_delta(delta, plan, "int4", UNCLIPPED, rng)).astype(np.float64)
        for _ in range(4000)
    )
    # A rounding's deviation is 0.05 at most, that of the mean of 4000 is below 0.001.
    np.testing.assert_allclose(total / 4000, delta, atol=0.004)


@LAW
@given(st.data())
def test_int8_of_what_it_decoded_is_exact(data: st.DataObject) -> None:
    """The levels of a decoded delta are its own: sending it on would lose nothing more."""
    plan, delta = drawn(data)
    once = encode_delta(delta, plan, "int8", UNCLIPPED)
    again = encode_delta(received(plan, "int8", once), plan, "int8", UNCLIPPED)
    if all(scale == 0 or scale > 1e-35 for scale in scales_in(once)):
        assert again.payload == once.payload


@LAW
@given(st.data())
def test_sign_keeps_signs_and_mean_magnitudes(data: st.DataObject) -> None:
    plan, delta = drawn(data)
    encoded = encode_delta(delta, plan, "sign", UNCLIPPED)
    back = received(plan, "sign", encoded)
    for where, scale in zip(plan.slices.values(), scales_in(encoded), strict=True):
        mean = float(np.mean(np.abs(delta[where].astype(np.float64))))
        assert scale == pytest.approx(mean, rel=1e-6, abs=TINY)
        assert np.array_equal(back[where], np.where(delta[where] >= 0, scale, -scale))


@LAW
@given(st.data())
def test_topk_is_int8_of_the_largest_and_nothing_of_the_rest(data: st.DataObject) -> None:
    plan, delta = drawn(data)
    k = data.draw(st.integers(0, plan.size + 1), label="k")
    encoded = encode_delta(delta, plan, "topk", UNCLIPPED, k=k)
    back = received(plan, "topk", encoded)
    kept = min(k or default_k(plan), plan.size)
    order = np.argsort(-np.abs(delta), kind="stable")
    scales = np.repeat(scales_in(encoded), plan.sizes)
    errors = np.abs(back.astype(np.float64) - delta)
    assert np.all(errors[order[:kept]] <= scales[order[:kept]] / 2 * (1 + 1e-4) + TINY)
    assert not back[order[kept:]].any()


@LAW
@given(st.data())
def test_topk_of_everything_is_int8(data: st.DataObject) -> None:
    plan, delta = drawn(data)
    whole = received(plan, "int8", encode_delta(delta, plan, "int8", UNCLIPPED))
    encoded = encode_delta(delta, plan, "topk", UNCLIPPED, k=plan.size)
    assert np.array_equal(received(plan, "topk", encoded), whole)


@LAW
@given(st.data())
def test_fp32_is_exact_when_it_is_not_clipped(data: st.DataObject) -> None:
    plan, delta = drawn(data)
    encoded = encode_delta(delta, plan, "fp32", UNCLIPPED)
    assert encoded.scales == b""
    assert not encoded.clipped
    assert received(plan, "fp32", encoded).tobytes() == delta.tobytes()


@LAW
@given(any_encoding, clip_norms, st.data())
def test_what_the_receiver_decodes_is_no_longer_than_the_clip_norm(
    encoding: str, clip_norm: float, data: st.DataObject
) -> None:
    plan, delta = drawn(data)
    encoded = encode_delta(delta, plan, encoding, clip_norm)
    back = received(plan, encoding, encoded)
    assert norm(back) <= clip_norm * (1 + 1e-5)
    whole = received(plan, encoding, encode_delta(delta, plan, encoding, UNCLIPPED))
    # The sender's norm is exact; what is decoded is rounded to float32.
    if abs(norm(whole) - clip_norm) > 1e-6 * clip_norm:
        assert encoded.clipped == (norm(whole) > clip_norm)
    if encoded.clipped:
        assert norm(back) >= clip_norm * (1 - 1e-5)
        # Clipping shortens; it does not turn.
        exact = whole.astype(np.float64) * (clip_norm / norm(whole))
        np.testing.assert_allclose(back, exact, rtol=1e-5, atol=1e-40)
    else:
        assert back.tobytes() == whole.tobytes()


@LAW
@given(st.floats(0, 1e30), clip_norms)
def test_clip_factor_cuts_to_the_clip_norm(length: float, clip_norm: float) -> None:
    factor = clip_factor(length, clip_norm)
    assert 0 < factor <= 1
    assert factor * length <= clip_norm * (1 + 1e-12)
    assert (factor == 1) == (length <= clip_norm)


@LAW
@given(arrays(np.float32, st.integers(0, 20), elements=st.floats(width=32, allow_nan=False)))
def test_norm_neither_overflows_nor_vanishes(delta: Vector) -> None:
    finite = bool(np.isfinite(delta).all())
    with np.errstate(over="ignore"):
        expected = float(np.linalg.norm(delta.astype(np.longdouble)))
    assert norm(delta) == pytest.approx(expected, rel=1e-12)
    assert np.isfinite(norm(delta)) == finite


@LAW
@given(any_encoding, st.sampled_from([np.nan, np.inf, -np.inf]), clip_norms, st.data())
def test_a_delta_that_is_not_finite_arrives_as_nothing_else(
    encoding: str, poison: float, clip_norm: float, data: st.DataObject
) -> None:
    plan, delta = drawn(data)
    delta[data.draw(st.integers(0, plan.size - 1))] = poison
    with pytest.raises(PeerError) as caught:
        received(plan, encoding, encode_delta(delta, plan, encoding, clip_norm))
    assert caught.value.reason == "not-finite"


@LAW
@given(any_encoding, clip_norms, st.data())
def test_the_norm_needs_no_decoding(encoding: str, clip_norm: float, data: st.DataObject) -> None:
    plan, delta = drawn(data)
    update = sent(plan, encoding, encode_delta(delta, plan, encoding, clip_norm))
    wanted = norm(decode_delta(update, plan))
    assert update_norm(update, plan) == pytest.approx(wanted, rel=1e-5, abs=1e-30)


@LAW
@given(any_encoding, st.binary(max_size=40), st.binary(max_size=12), st.data())
def test_any_bytes_are_a_finite_delta_or_refused(
    encoding: str, payload: bytes, scales: bytes, data: st.DataObject
) -> None:
    plan = data.draw(manifests().flatmap(plans), label="plan")
    if data.draw(st.booleans(), label="right lengths"):
        right = encode_delta(np.ones(plan.size, np.float32), plan, encoding, 1.0)
        payload = (payload * len(right.payload))[: len(right.payload)]
        scales = (scales * len(right.scales))[: len(right.scales)]
    update = sent(plan, encoding, Encoded(scales, payload, clipped=False))
    delta = outcome(update, plan)
    if isinstance(delta, str):
        assert delta in ("shape", "not-finite")
        return
    assert delta.shape == (plan.size,)
    assert delta.dtype == np.float32
    assert np.isfinite(delta).all()
    assert np.isfinite(update_norm(update, plan))


@pytest.mark.parametrize("scale", [np.nan, np.inf, 1e300])
def test_a_norm_of_what_is_not_finite_is_refused(scale: float) -> None:
    levels = np.array([0, 0, 1], np.int8).tobytes()
    update = sent(PLAN, "int8", Encoded(floats(scale, 1.0), levels, clipped=False))
    with pytest.raises(PeerError) as caught:
        update_norm(update, PLAN)
    assert caught.value.reason == "not-finite"


@pytest.mark.parametrize(
    ("scale", "level"),
    [
        *[(scale, level) for scale in (np.nan, np.inf, -np.inf) for level in (0, 127, -128)],
        (3e38, 2),
        (-3e38, -128),
    ],
)
def test_a_scale_beyond_float32_is_refused(scale: float, level: int) -> None:
    levels = np.array([level, 0, 1], np.int8).tobytes()
    with pytest.raises(PeerError) as caught:
        received(PLAN, "int8", Encoded(floats(scale, 1.0), levels, clipped=False))
    assert caught.value.reason == "not-finite"


@pytest.mark.parametrize(
    ("encoding", "scales_bytes", "payload_bytes"),
    [
        ("int8", 8, 0),
        ("int8", 8, 2),
        ("int8", 8, 4),
        ("int8", 8, 12),
        ("int8", 0, 3),
        ("int8", 4, 3),
        ("int8", 7, 3),
        ("int8", 12, 3),
        ("int4", 8, 1),
        ("int4", 8, 3),
        ("sign", 8, 0),
        ("sign", 8, 2),
        ("sign", 4, 1),
        ("topk", 8, 0),
        ("topk", 8, 3),
        ("topk", 8, 5),
        ("fp32", 0, 0),
        ("fp32", 0, 3),
        ("fp32", 0, 11),
        ("fp32", 0, 13),
        ("fp32", 4, 12),
    ],
)
def test_a_payload_that_does_not_fit_the_plan_is_refused(
    encoding: str, scales_bytes: int, payload_bytes: int
) -> None:
    encoded = Encoded(bytes(scales_bytes), bytes(payload_bytes), clipped=False)
    with pytest.raises(PeerError) as caught:
        received(PLAN, encoding, encoded)
    assert caught.value.reason == "shape"


def test_the_payload_is_little_endian_and_its_levels_are_symmetric() -> None:
    delta = np.array([1.0, -0.5, 0.0], np.float32)
    assert encode_delta(delta, PLAN, "fp32", UNCLIPPED).payload == delta.astype("<f4").tobytes()
    encoded = encode_delta(delta, PLAN, "int8", UNCLIPPED)
    assert np.frombuffer(encoded.payload, np.int8).tolist() == [127, -64, 0]
    assert encoded.scales == floats(1 / 127, 0.0)


@pytest.mark.parametrize("smallest", [2.0**-149, 1e-44, 1e-40, 1e-37])
def test_levels_are_right_where_a_scale_has_no_inverse_in_float32(smallest: float) -> None:
    delta = np.array([100, -10, 50], np.float32) * np.float32(smallest)
    encoded = encode_delta(delta, PLAN, "int8", UNCLIPPED)
    back = received(PLAN, "int8", encoded).astype(np.float64)
    assert np.all(np.abs(back - delta) <= max(scales_in(encoded)) / 2 * (1 + 1e-4) + TINY)


@pytest.mark.parametrize("encoding", FINEST_FIRST)
@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_unit_without_parameters_changes_nothing(encoding: str, at: int) -> None:
    shapes: list[tuple[str, tuple[int, ...]]] = [("a", (2,)), ("b", ())]
    shapes[at:at] = [("none", (0, 3))]
    plan = Plan.of(Manifest.of(dict(shapes)), [name for name, _ in shapes])
    delta = np.array([1.0, -0.5, 0.25], np.float32)
    encoded = encode_delta(delta, plan, encoding, UNCLIPPED)
    without = encode_delta(delta, PLAN, encoding, UNCLIPPED)
    assert encoded.payload == without.payload
    assert received(plan, encoding, encoded).tolist() == received(PLAN, encoding, without).tolist()
    scales = scales_in(encoded)
    if encoding != "fp32":
        assert scales.pop(at) == 0
    assert scales == scales_in(without)


@pytest.mark.parametrize("encoding", FINEST_FIRST)
def test_a_plan_of_zeros_or_of_nothing_arrives_as_such(encoding: str) -> None:
    for shape in ((4,), (0,)):
        plan = Plan.of(Manifest.of({"a": shape}), ["a"])
        encoded = encode_delta(np.zeros(plan.size, np.float32), plan, encoding, 1.0)
        assert received(plan, encoding, encoded).tolist() == [0.0] * plan.size


def test_encoding_leaves_the_delta_alone() -> None:
    delta = np.array([30.0, 40.0, 0.0], np.float32)
    for encoding in FINEST_FIRST:
        encode_delta(delta, PLAN, encoding, 1.0)
    assert delta.tolist() == [30.0, 40.0, 0.0]
