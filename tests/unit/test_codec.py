"""Laws of the wire: what was sent arrives, and no bytes whatever do more than raise PeerError."""

import math
import struct
import tracemalloc
from typing import Any, get_args

import msgpack
import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hedgerow.core.codec import MAX_ITEMS, decode, encode
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    WIRE_VERSION,
    BodiesWanted,
    FleetReport,
    Header,
    Message,
    NodeState,
    Offer,
    Partial,
    Receipt,
    Receipts,
    Update,
    UpdateId,
)
from tests.unit.strategies import LAW, MESSAGES, messages

KINDS = get_args(Message)
STATE = NodeState(node="n", epoch=1, state="ready")

anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.floats(),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        st.binary(max_size=8),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text("abktv", max_size=2), inner, max_size=4),
    ),
    max_leaves=8,
)


def outcome(data: bytes) -> Message | None:
    """Decode; the only exception that may leave is PeerError."""
    try:
        message = decode(data)
    except PeerError:
        return None
    assert type(message) in KINDS
    return message


def fields_of(message: Message) -> dict[str, Any]:
    fields = msgpack.unpackb(encode(message), strict_map_key=True)
    assert isinstance(fields, dict)
    return fields


def map_header(items: int) -> bytes:
    return struct.pack(">BH", 0xDE, items)


def refusal(data: bytes) -> PeerError:
    with pytest.raises(PeerError) as caught:
        decode(data)
    return caught.value


# -- what was sent arrives -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_message_type_survives_the_wire(kind: type) -> None:
    @LAW
    @given(MESSAGES[kind])
    def law(message: Message) -> None:
        data = encode(message)
        decoded = decode(data)
        assert decoded == message
        assert type(decoded) is kind
        assert encode(decoded) == data

    law()


def test_not_a_number_survives_the_wire() -> None:
    """A node whose kappa says nothing sends NaN, which equals nothing; the bytes do."""
    header = Header(UpdateId("n", 1, 1), 0, 1, math.nan)
    data = encode(Partial(id="p", gateway="g", model="m", at_version=0, headers=[header]))
    decoded = decode(data)
    assert isinstance(decoded, Partial)
    assert math.isnan(decoded.headers[0].kappa)
    assert encode(decoded) == data


@LAW
@given(messages, st.dictionaries(st.text("xyz", min_size=3, max_size=6), anything, max_size=3))
def test_fields_of_a_later_release_are_ignored(message: Message, more: dict[str, Any]) -> None:
    assert decode(msgpack.packb(fields_of(message) | more)) == message


def test_places_of_a_later_release_are_ignored() -> None:
    message = Receipts(receipts=[Receipt(UpdateId("n", 1, 2), "settled")])
    fields = fields_of(message)
    fields["receipts"][0][0].append("new")
    fields["receipts"][0].append({"new": 1})
    assert decode(msgpack.packb(fields)) == message


# -- what was damaged does not ---------------------------------------------------------------------


@LAW
@given(messages, st.data())
def test_a_truncated_message_is_refused(message: Message, data: st.DataObject) -> None:
    whole = encode(message)
    cut = data.draw(st.integers(0, len(whole) - 1))
    assert outcome(whole[:cut]) is None


@LAW
@given(messages, st.data())
def test_flipped_bits_are_refused_or_another_message(message: Message, data: st.DataObject) -> None:
    damaged = bytearray(encode(message))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    outcome(bytes(damaged))


@LAW
@given(messages, st.binary(min_size=1, max_size=8))
def test_trailing_bytes_are_refused(message: Message, more: bytes) -> None:
    assert outcome(encode(message) + more) is None


@LAW
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(data: bytes) -> None:
    outcome(data)


@LAW
@given(messages, anything, st.data())
def test_a_field_of_any_other_value_is_refused_or_another_message(
    message: Message, value: Any, data: st.DataObject
) -> None:
    fields = fields_of(message)
    fields[data.draw(st.sampled_from(sorted(fields)))] = value
    outcome(msgpack.packb(fields))


@LAW
@given(anything)
@example([1, 2])
@example({})
def test_any_other_value_is_refused(value: Any) -> None:
    assert outcome(msgpack.packb(value)) is None


@pytest.mark.parametrize("version", [0, 2, -1, True, 1.0, "1", None, [[[1]]], {"v": 1}, 1 << 63])
def test_another_wire_version_is_refused(version: Any) -> None:
    error = refusal(msgpack.packb(fields_of(STATE) | {"v": version}))
    assert error.reason == "malformed"
    assert "wire version" in error.detail or "`$.v`" in error.detail


def test_a_message_without_wire_version_is_refused() -> None:
    fields = fields_of(STATE)
    assert fields.pop("v") == WIRE_VERSION
    assert "wire version" in refusal(msgpack.packb(fields)).detail


@LAW
@given(messages, anything, st.data())
def test_of_a_repeated_key_the_last_value_counts(
    message: Message, value: Any, data: st.DataObject
) -> None:
    """The kind and the wire version are read by themselves, and must not differ from the message's own."""
    fields = fields_of(message)
    key = data.draw(st.sampled_from(sorted(fields)))
    first = msgpack.packb(key) + msgpack.packb(value)
    last = b"".join(msgpack.packb(part) for item in fields.items() for part in item)
    decoded = outcome(map_header(len(fields) + 1) + first + last)
    assert decoded in (message, None)
    assert outcome(map_header(len(fields) + 1) + last + msgpack.packb("v") + b"\x02") is None


@pytest.mark.parametrize(
    "changes",
    [
        {"t": "no-such-type"},
        {"t": 1},
        {"node": "Not An Id"},
        {"node": "a\n"},
        {"node": ""},
        {"node": "x" * 33},
        {"epoch": -1},
        {"epoch": 1 << 62},
        {"epoch": 1.5},
        {"epoch": "1"},
        {"epoch": math.nan},
        {"state": "flying"},
        {"counters": {"x": -1}},
        {"counters": {str(n): n for n in range(65)}},
        {"memory_class": "x" * 65},
        {"t": b"node-state"},
        {b"node": "n"},
    ],
)
def test_a_field_out_of_its_range_is_refused(changes: dict[str, Any]) -> None:
    assert refusal(msgpack.packb(fields_of(STATE) | changes)).reason == "malformed"


@pytest.mark.parametrize("gamma", [0.0, -0.1, 1.0001, math.nan, math.inf])
def test_a_gamma_that_is_no_decay_is_refused(gamma: float) -> None:
    bucket = ["0" * 32, 1, gamma, b"", 0, 0, 0, 0, [], 1]
    header = [["n", 1, 1], 0, 1, 1.0]
    fields = {"v": 1, "t": "partial", "id": "p", "gateway": "g", "model": "m", "at_version": 1}
    assert outcome(msgpack.packb(fields | {"headers": [header]})) is not None
    assert outcome(msgpack.packb(fields | {"headers": [header], "sums": [bucket]})) is None


@pytest.mark.parametrize("key", ["t", "v", "node", "state", "gateway", "counters"])
def test_text_that_is_not_utf_8_is_refused(key: str) -> None:
    bad_text = b"\xa2\xff\xfe"
    value = b"\x81" + bad_text + b"\x01" if key == "counters" else bad_text
    fields = {**fields_of(STATE), key: "here"}
    data = msgpack.packb(fields).replace(msgpack.packb("here"), value)
    assert refusal(data).reason == "malformed"


def test_a_reason_is_short_whatever_it_quotes() -> None:
    error = refusal(msgpack.packb(fields_of(STATE) | {"state": "x" * 100_000}))
    assert "enum" in error.detail
    assert len(error.detail) <= 200


def test_a_missing_field_is_named() -> None:
    fields = fields_of(STATE)
    del fields["epoch"]
    assert "epoch" in refusal(msgpack.packb(fields)).detail


# -- bombs -----------------------------------------------------------------------------------------

HEAD = bytes([0x84]) + msgpack.packb("v") + b"\x01" + msgpack.packb("t") + msgpack.packb("offer")
BOMBS = {
    "deep lists": b"\x91" * 20_000,
    "deep maps": b"\x81\xa1a" * 10_000,
    "deep lists that claim 16k items each": b"\xdc\x40\x00" * 1000,
    "deep lists that claim 4G items each": b"\xdd\xff\xff\xff\xff" * 1000,
    "deep maps that claim 4k items each": b"\xde\x10\x00\xa1a" * 1000,
    "16k lists of 16k items, each level in the one above": (
        (b"\xdc\x40\x00" + b"\xcd\x12\x34" * 16383) * 64
    ),
    "a list that claims 4G items": b"\xdd\xff\xff\xff\xff",
    "a list that claims 16385 items": b"\xdc\x40\x01" + b"\xc0" * 16385,
    "a map that claims 4G items": b"\xdf\xff\xff\xff\xff",
    "a map of 4097 items": b"\xde\x10\x01"
    + b"".join(msgpack.packb(f"{n}") + b"\xc0" for n in range(4097)),
    "a text that claims 4 GB": b"\xdb\xff\xff\xff\xff",
    "a text of 2 kB": msgpack.packb({"v": 1, "t": "x" * 2048}),
    "bytes that claim 4 GB": b"\xc6\xff\xff\xff\xff",
    "an extension that claims 4 GB": b"\xc9\xff\xff\xff\xff\x01",
    "an extension": msgpack.packb(msgpack.ExtType(5, b"x")),
    "an empty extension": b"\xc7\x00\x05",
    "an empty timestamp": b"\xc7\x00\xff",
    "a timestamp": b"\xd6\xff\x00\x00\x00\x00",
    "text that is not UTF-8": b"\x81\xa1v\xa2\xff\xfe",
    "a key that is not UTF-8": b"\x81\xa2\xff\xfe\x01",
    "an integer as key": b"\x82\xa1v\x01\x01\x02",
    "bytes as key": b"\x82\xa1v\x01\xc4\x01t\xa5offer",
    "a list as key": b"\x81\x91\x01\x01",
    "NaN as key": b"\x81\xcb" + struct.pack(">d", math.nan) + b"\x01",
    "the code that is never used": b"\xc1",
    "nothing": b"",
}


def outcome_and_peak_bytes(data: bytes) -> tuple[Message | None, int]:
    tracemalloc.start()
    try:
        return outcome(data), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory(name: str) -> None:
    data = BOMBS[name]
    message, peak_bytes = outcome_and_peak_bytes(data)
    assert message is None
    assert peak_bytes <= (1 << 20) + 2 * len(data)


def test_the_largest_message_costs_what_its_items_cost() -> None:
    """As many items as are allowed, of the sort that costs most in Python for a byte on the wire."""
    lists = MAX_ITEMS // 16385 - 1
    body = bytes([0x90 + lists]) + (b"\xdc\x40\x00" + b"\x80" * 16384) * lists
    data = HEAD + msgpack.packb("ids") + b"\x90" + msgpack.packb("new") + body
    message, peak_bytes = outcome_and_peak_bytes(data)
    assert message == Offer(ids=[])
    assert peak_bytes <= 128 * MAX_ITEMS


def test_the_largest_report_costs_what_its_items_cost() -> None:
    counters = dict.fromkeys("abcde", 1 << 40)
    states = [
        NodeState(node=f"n{n}", epoch=1, state="ready", counters=counters) for n in range(7000)
    ]
    report = FleetReport(gateway="g", boot=1, nodes=states)
    message, peak_bytes = outcome_and_peak_bytes(encode(report))
    assert message == report
    assert peak_bytes <= 128 * MAX_ITEMS


@pytest.mark.parametrize("key", ["t", "node", "state", "memory_class", "counters"])
@pytest.mark.parametrize("length", [MAX_ITEMS - 200, MAX_ITEMS, 1 << 23])
def test_a_long_text_costs_no_multiple_of_a_long_message(key: str, length: int) -> None:
    """One wide character makes four bytes of each in Python, and ten where it is quoted."""
    text = "\x01" * (length - 4) + "\N{SNOWMAN}\U0001f600"
    value = {text: 1} if key == "counters" else text
    message, peak_bytes = outcome_and_peak_bytes(msgpack.packb({**fields_of(STATE), key: value}))
    assert message is None
    assert peak_bytes <= 64 * MAX_ITEMS


def test_more_items_than_allowed_are_refused_though_each_list_is_short() -> None:
    body = b"\xdc\x40\x00" + (b"\xdc\x40\x00" + b"\xc0" * 16384) * 64
    data = HEAD + msgpack.packb("ids") + b"\x90" + msgpack.packb("new") + body
    assert refusal(data).reason == "too-large"


def test_an_unknown_field_may_nest_no_deeper_than_the_decoder_can() -> None:
    head = HEAD + msgpack.packb("ids") + b"\x90" + msgpack.packb("new")
    assert outcome(head + b"\x91" * 100 + b"\xc0") == Offer(ids=[])
    assert outcome(head + b"\x91" * 10_000 + b"\xc0") is None


def test_the_largest_messages_of_the_protocol_pass() -> None:
    """The limits refuse bombs; they must not refuse what a neighbour may legally send."""
    ids = [UpdateId("n" * 32, 1 << 61, seq) for seq in range(8192)]
    headers = [Header(update_id, 1 << 40, 1, 0.5) for update_id in ids]
    partial = Partial(id="p", gateway="g", model="m", at_version=1, headers=headers)
    assert decode(encode(partial)) == partial
    receipts = Receipts(receipts=[Receipt(i, "rejected", "r" * 64) for i in ids])
    assert decode(encode(receipts)) == receipts
    wanted = BodiesWanted(ids=ids[:1024])
    assert decode(encode(wanted)) == wanted
    payload = bytes(8 << 20)
    update = Update(
        id=ids[0],
        model="m",
        base_version=1,
        plan_id="0" * 32,
        examples=1,
        kappa=1.0,
        encoding="int8",
        scales=bytes(4 * 4096),
        payload=payload,
    )
    assert decode(encode(update)) == update


def test_a_message_beyond_the_callers_bound_is_refused_unread() -> None:
    data = encode(STATE)
    assert decode(data, max_bytes=len(data)) == STATE
    with pytest.raises(PeerError) as caught:
        decode(data, max_bytes=len(data) - 1)
    assert caught.value.reason == "too-large"


def test_the_wire_format_is_plain_messagepack() -> None:
    """A neighbour in another language reads these bytes; they change with the wire version only."""
    state = NodeState(node="n1", epoch=7, state="lost", gateway="g1", counters={"x": 3})
    assert msgpack.unpackb(encode(state)) == {
        "t": "node-state",
        "v": 1,
        "node": "n1",
        "epoch": 7,
        "state": "lost",
        "gateway": "g1",
        "version": 0,
        "memory_class": "",
        "usual_us": 0,
        "peak_bytes": 0,
        "counters": {"x": 3},
        "metrics": {},
    }
    receipts = Receipts(receipts=[Receipt(UpdateId("n1", 7, 3), "rejected", "norm")], version=2)
    assert msgpack.unpackb(encode(receipts))["receipts"] == [[["n1", 7, 3], "rejected", "norm", 0]]
    assert msgspec.msgpack.decode(encode(STATE))["v"] == 1
