"""Laws of packing: every level comes back, lengths are known beforehand, and no other bytes are taken."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hedgerow.core.encodings import FINEST_FIRST, choose_encoding, default_k, encoded_bytes
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Encoding
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import encode_delta
from hedgerow.core.thin import Levels, pack, packed_bytes, unpack
from hedgerow.core.units import Manifest
from tests.unit.strategies import LAW, deltas, manifests, plans

RANGES = {"int8": (-128, 127), "int4": (-7, 7), "sign": (0, 1), "topk": (-128, 127)}
packings = st.sampled_from(sorted(RANGES))


def outcome(payload: bytes, encoding: str, size: int) -> Levels | str:
    """Return the levels, or why they were refused."""
    try:
        return unpack(payload, encoding, size)
    except PeerError as error:
        return error.reason


@st.composite
def levels_of(draw: st.DrawFn, encoding: str) -> Levels:
    low, high = RANGES[encoding]
    size = draw(st.integers(0, 70))
    levels: Levels = draw(arrays(np.int8, size, elements=st.integers(low, high)))
    if encoding == "sign":
        return levels * np.int8(2) - np.int8(1)
    return levels


@LAW
@given(packings, st.data())
def test_levels_come_back(encoding: str, data: st.DataObject) -> None:
    levels = data.draw(levels_of(encoding))
    packed = pack(levels, encoding)
    back = unpack(packed, encoding, levels.size)
    assert back.dtype == np.int8
    assert np.array_equal(back, levels)
    assert len(packed) <= packed_bytes(encoding, levels.size, int(np.count_nonzero(levels)))
    if encoding != "topk":
        assert len(packed) == packed_bytes(encoding, levels.size, 0)


@LAW
@given(st.sets(st.integers(0, 3000), max_size=12), st.integers(1, 700))
def test_far_apart_levels_come_back(positions: set[int], extra: int) -> None:
    levels = np.zeros(max(positions, default=0) + extra, np.int8)
    levels[sorted(positions)] = np.arange(1, len(positions) + 1)
    packed = pack(levels, "topk")
    assert np.array_equal(unpack(packed, "topk", levels.size), levels)
    assert len(packed) <= packed_bytes("topk", levels.size, len(positions))


@LAW
@given(packings, st.binary(max_size=40), st.integers(0, 600))
def test_what_is_taken_is_what_pack_makes(encoding: str, payload: bytes, size: int) -> None:
    """There is one way to write levels, so bytes that are taken are those that pack makes of them."""
    levels = outcome(payload, encoding, size)
    if isinstance(levels, str):
        assert levels == "shape"
        return
    assert levels.shape == (size,)
    assert pack(levels, encoding) == payload


@LAW
@given(packings, st.data())
def test_a_byte_more_or_less_is_refused(encoding: str, data: st.DataObject) -> None:
    levels = data.draw(levels_of(encoding))
    packed = pack(levels, encoding)
    for wrong in (packed + b"\0", packed[:-1]):
        if wrong != packed:
            with pytest.raises(PeerError) as caught:
                unpack(wrong, encoding, levels.size)
            assert caught.value.reason == "shape"


@pytest.mark.parametrize(
    ("encoding", "payload", "size", "why"),
    [
        ("int4", b"\x08\x00", 3, "-8"),
        ("int4", b"\x00\x10", 3, "last half byte"),
        ("sign", b"\x08", 3, "last bits"),
        ("topk", b"\x01\0\0\0\x03\x01", 3, "at 3"),
        ("topk", b"\x01\0\0\0\x00\x00", 3, "level of 0"),
        ("topk", b"\x01\0\0\0\xff\x00\x01", 255, "at 255"),
        ("topk", b"\x01\0\0\0\x00\xff\x01", 300, "gaps"),
        ("topk", b"\x02\0\0\0\x00\xff\x01\x01", 300, "gaps"),
        ("topk", b"\xff\xff\xff\xff\x00\x01", 3, "4294967295"),
        ("topk", b"\x00\0\0", 3, "bytes"),
    ],
)
def test_each_fault_is_refused_in_words(encoding: str, payload: bytes, size: int, why: str) -> None:
    with pytest.raises(PeerError, match=why) as caught:
        unpack(payload, encoding, size)
    assert caught.value.reason == "shape"


def test_the_bytes_are_as_documented() -> None:
    assert pack(np.array([1, -1, 7], np.int8), "int4") == b"\xf1\x07"
    assert pack(np.array([1, -1, 1, 1, -1, -1, -1, -1, 1], np.int8), "sign") == b"\x0d\x01"
    sparse = np.zeros(600, np.int8)
    sparse[[1, 2, 513]] = [5, -1, 127]
    gaps, levels = b"\x01\x00\xff\xff\x00", b"\x05\xff\x7f"
    assert pack(sparse, "topk") == b"\x03\0\0\0" + gaps + levels


# How many bytes an update takes, and what a link's bound makes of it.


@LAW
@given(st.sampled_from(FINEST_FIRST), st.data())
def test_sizes_are_known_beforehand(encoding: Encoding, data: st.DataObject) -> None:
    plan = data.draw(manifests().flatmap(plans))
    delta = data.draw(deltas(plan.size))
    k = data.draw(st.integers(0, plan.size))
    encoded = encode_delta(delta, plan, encoding, 1.0, k=k)
    size = len(encoded.scales) + len(encoded.payload)
    assert size <= encoded_bytes(encoding, plan, k)
    if encoding != "topk":
        assert size == encoded_bytes(encoding, plan)


@LAW
@given(
    st.lists(st.integers(0, 3000), min_size=1, max_size=3).filter(any),
    st.sampled_from(FINEST_FIRST),
    st.integers(1, 20_000),
)
def test_the_finest_that_fits_is_chosen(sizes: list[int], fleets: Encoding, bound: int) -> None:
    shapes = {f"u{at}": (size,) for at, size in enumerate(sizes)}
    plan = Plan.of(Manifest.of(shapes), shapes)
    chosen, k = choose_encoding(plan, fleets, bound)
    allowed = FINEST_FIRST[FINEST_FIRST.index(fleets) :]
    fitting = [name for name in allowed if encoded_bytes(name, plan) <= bound]
    if fitting:
        assert (chosen, k) == (fitting[0], default_k(plan))
        return
    assert chosen == "topk"
    assert encoded_bytes("topk", plan, k) <= bound or k == 1
    assert k >= plan.size or encoded_bytes("topk", plan, k + 1) > bound


def test_without_a_bound_the_fleets_encoding_is_taken() -> None:
    plan = Plan.of(Manifest.of({"u": (1005,)}), ["u"])
    for encoding in FINEST_FIRST:
        assert choose_encoding(plan, encoding) == (encoding, 101)
