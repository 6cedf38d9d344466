"""Laws of units and plans: one vector, cut and joined without loss; one id for one set of units."""

import hashlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.core.errors import ConfigError
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.core.units import SMALLEST_GROUP, Manifest, Unit, cut, digest
from tests.unit.strategies import LAW, deltas, manifests, plans

MLP = Manifest.of(
    {
        "hidden.weight": (4, 3),
        "hidden.bias": (3,),
        "out.weight": (3, 2),
        "out.bias": (2,),
        "scale": (),
    }
)


@LAW
@given(manifests(), st.data())
def test_units_tile_the_vector(manifest: Manifest, data: st.DataObject) -> None:
    params = data.draw(deltas(manifest.size))
    at = 0
    for unit in manifest.units:
        assert manifest.slices[unit.name] == slice(at, at + unit.size)
        at += unit.size
    assert at == manifest.size == len(params)
    pieces = manifest.split(params)
    assert {name: piece.shape for name, piece in pieces.items()} == {
        unit.name: unit.shape for unit in manifest.units
    }
    assert manifest.join(pieces).tobytes() == params.tobytes()


@LAW
@given(manifests(), st.data())
def test_a_plan_takes_its_units_one_behind_the_other(
    manifest: Manifest, data: st.DataObject
) -> None:
    params, plan = data.draw(deltas(manifest.size)), data.draw(plans(manifest))
    taken = manifest.take(params, plan.names)
    assert len(taken) == plan.size
    assert 0 < plan.share <= 1
    for name, where in plan.slices.items():
        assert taken[where].tobytes() == params[manifest.slices[name]].tobytes()
    taken[:] = 99
    assert not np.any(params == 99)


@LAW
@given(manifests(), st.data())
def test_a_plan_is_its_set_of_units(manifest: Manifest, data: st.DataObject) -> None:
    plan, other = data.draw(plans(manifest)), data.draw(plans(manifest))
    shuffled = data.draw(st.permutations([*plan.names, *plan.names]))
    assert Plan.of(manifest, shuffled) == plan
    assert Plan.of(manifest, shuffled).plan_id == plan.plan_id
    assert (plan.plan_id == other.plan_id) == (set(plan.names) == set(other.names))
    order = [unit.name for unit in manifest.units]
    assert list(plan.names) == sorted(plan.names, key=order.index)


@LAW
@given(manifests(), st.data())
def test_a_digest_changes_with_its_unit_only(manifest: Manifest, data: st.DataObject) -> None:
    params = data.draw(deltas(manifest.size))
    changed, at = params.copy(), data.draw(st.integers(0, manifest.size - 1))
    changed[at] += 1
    before, after = manifest.digests(params), manifest.digests(changed)
    for name, where in manifest.slices.items():
        assert (before[name] == after[name]) == (not where.start <= at < where.stop)


def test_a_digest_is_of_little_endian_float32() -> None:
    manifest = Manifest.of({"a": (2,)})
    params = np.array([1.0, -2.0], np.float32)
    expected = hashlib.sha256(b"\x00\x00\x80\x3f\x00\x00\x00\xc0").hexdigest()[:32]
    assert manifest.digests(params) == {"a": expected}
    assert manifest.digests(params.astype(">f4")) == {"a": expected}
    assert digest(memoryview(b"\x00\x00\x80\x3f\x00\x00\x00\xc0")) == expected


def test_joining_takes_any_numbers_of_the_right_shape() -> None:
    pieces: dict[str, Any] = {unit.name: np.ones(unit.shape, np.float64) for unit in MLP.units}
    joined = MLP.join(pieces)
    assert joined.dtype == np.float32
    assert joined.sum() == MLP.size == 24


def test_taking_nothing_is_an_empty_vector() -> None:
    assert MLP.take(np.zeros(MLP.size, np.float32), []).shape == (0,)


def test_units_know_their_layer() -> None:
    assert MLP.layers == ("hidden", "out", "scale")
    assert [unit.name for unit in MLP.units if unit.is_bias] == ["hidden.bias", "out.bias"]
    assert MLP.by_name["hidden.weight"] == Unit("hidden.weight", (4, 3))


@LAW
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple), st.integers(1, 8), st.data()
)
def test_groups_of_channels_tile_a_tensor(
    shape: tuple[int, ...], groups: int, data: st.DataObject
) -> None:
    tensor = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    units = [Unit(name, size) for name, size in cut("conv.weight", shape, groups).items()]
    assert 1 <= len(units) <= groups
    assert len(units) == 1 or tensor.size >= SMALLEST_GROUP * len(units)
    seen = []
    for unit in units:
        assert (unit.tensor, unit.layer) == ("conv.weight", "conv")
        piece = tensor if unit.part is None else tensor[unit.part.index]
        assert piece.shape == unit.shape
        seen.append(piece.reshape(-1))
    assert np.array_equal(np.sort(np.concatenate(seen)), tensor.reshape(-1))


def test_a_tensor_or_a_layer_stands_for_its_groups() -> None:
    manifest = Manifest.of(cut("a.weight", (16, 16), 2) | {"a.bias": (16,), "b.weight": (4, 4)})
    assert list(manifest.by_name)[:2] == ["a.weight[:,0:8]", "a.weight[:,8:16]"]
    assert Plan.of(manifest, ["a.weight"]).names == ("a.weight[:,0:8]", "a.weight[:,8:16]")
    assert Plan.of(manifest, ["a"]).names == (*Plan.of(manifest, ["a.weight"]).names, "a.bias")
    with pytest.raises(ConfigError, match=r"no unit 'a.weight\[:,0:4\]'"):
        Plan.of(manifest, ["a.weight[:,0:4]"])


def test_depthwise_filters_are_cut_by_output_channels() -> None:
    assert list(cut("d.weight", (32, 1, 3, 3), 4)) == [
        f"d.weight[{start}:{start + 8}]" for start in range(0, 32, 8)
    ]


def test_two_units_with_one_name_are_no_manifest() -> None:
    with pytest.raises(ValueError, match="distinct"):
        Manifest((Unit("a", (1,)), Unit("a", (2,))))


def test_a_plan_is_chosen_in_three_ways() -> None:
    assert choose_plan(MLP, units=["out.bias", "hidden.bias"]).names == ("hidden.bias", "out.bias")
    assert choose_plan(MLP, last_layers=2).names == ("out.weight", "out.bias", "scale")
    assert choose_plan(MLP, last_layers=3) == choose_plan(MLP, preset="all")
    assert choose_plan(MLP, preset="biases+last").names == ("hidden.bias", "out.bias", "scale")
    assert choose_plan(MLP, preset="all").share == 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({}, r"exactly one of .* \(got 0\)"),
        ({"units": ["scale"], "preset": "all"}, r"\(got 2\)"),
        ({"units": ["scale"], "preset": "all", "last_layers": 1}, r"\(got 3\)"),
        ({"units": ["out.wieght"]}, r"plan\.units: .*'out\.wieght'; it has: hidden\.weight, "),
        ({"last_layers": 4}, r"plan\.last_layers: 4 is more than the model's 3 layers"),
        ({"preset": "some"}, r"plan\.preset: 'some' is not one of all, biases\+last"),
    ],
)
def test_any_other_way_is_refused_by_its_key(asked: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        choose_plan(MLP, **asked)  # type: ignore[arg-type]


def test_a_plan_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"plan\.units: \[\] trains nothing"):
        Plan.of(MLP, [])
