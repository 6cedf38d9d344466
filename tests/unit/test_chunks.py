"""Laws of chunks: any order, repeats and mixtures rebuild the bytes, and no bound is ever passed."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from hedgerow.core.chunks import (
    PIECE_OVERHEAD_BYTES,
    Pieces,
    Reassembler,
    chunk_blob,
    chunk_update,
    cut,
)
from hedgerow.core.codec import decode, encode
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Chunk, ChunksWanted, Update, UpdateId
from hedgerow.core.units import digest
from tests.unit.strategies import LAW

ROOMY = (1 << 20, 1 << 20, 64)


def update(seq: int, payload: bytes = b"") -> Update:
    return Update(
        id=UpdateId("n1", 1, seq),
        model="m",
        base_version=3,
        plan_id="0" * 32,
        examples=1,
        kappa=1.0,
        encoding="int8",
        scales=b"",
        payload=payload,
    )


def chunks_of(seq: int, data: bytes, chunk_bytes: int) -> list[Chunk]:
    return chunk_update(update(seq), data, chunk_bytes)


def refusal(reassembler: Reassembler, chunk: Chunk) -> PeerError:
    with pytest.raises(PeerError) as caught:
        reassembler.put(chunk, 0)
    return caught.value


# -- cutting ---------------------------------------------------------------------------------------


@LAW
@given(st.binary(max_size=500), st.integers(1, 200))
def test_cut_pieces_are_short_and_join_to_the_whole(data: bytes, piece_bytes: int) -> None:
    pieces = cut(data, piece_bytes)
    assert b"".join(pieces) == data
    assert all(len(piece) <= piece_bytes for piece in pieces)
    assert len(pieces) == max(1, -(-len(data) // piece_bytes))


@LAW
@given(st.binary(max_size=300), st.integers(1, 100), st.randoms(use_true_random=False))
def test_a_blob_is_rebuilt_from_its_parts_in_any_order(
    data: bytes, chunk_bytes: int, chance: Any
) -> None:
    parts = chunk_blob(data, chunk_bytes)
    assert {part.digest for part in parts} == {digest(data)}
    pieces = Pieces(len(parts))
    chance.shuffle(parts)
    for put, part in enumerate([*parts, *parts[:1]]):
        assert pieces.missing == sorted(p.index for p in parts[put:])
        pieces.put(part.index, part.count, part.body)
    assert pieces.join() == data
    assert pieces.held_bytes == len(data)


@pytest.mark.parametrize(("index", "count"), [(0, 2), (0, 4), (3, 3), (9, 3)])
def test_a_piece_of_another_whole_is_refused(index: int, count: int) -> None:
    pieces = Pieces(3)
    with pytest.raises(PeerError) as caught:
        pieces.put(index, count, b"x")
    assert caught.value.reason == "inconsistent"
    assert pieces.missing == [0, 1, 2]


# -- putting together ------------------------------------------------------------------------------


@LAW
@given(
    st.lists(st.tuples(st.binary(max_size=300), st.integers(1, 100)), min_size=1, max_size=4),
    st.data(),
)
def test_updates_are_rebuilt_from_mixed_repeated_chunks_in_any_order(
    wholes: list[tuple[bytes, int]], data: st.DataObject
) -> None:
    sent = [c for seq, (whole, size) in enumerate(wholes) for c in chunks_of(seq, whole, size)]
    repeats = data.draw(st.lists(st.sampled_from(sent), max_size=10))
    arriving = data.draw(st.permutations(sent + repeats))
    reassembler = Reassembler(*ROOMY)
    rebuilt: dict[int, bytes] = {}
    for now_us, chunk in enumerate(arriving):
        # Once it is whole the caller knows the update and puts in no more of it.
        if chunk.id.seq not in rebuilt:
            on_the_wire = decode(encode(chunk))
            assert isinstance(on_the_wire, Chunk)
            whole = reassembler.put(on_the_wire, now_us)
            if whole is not None:
                rebuilt[chunk.id.seq] = whole
    assert rebuilt == {seq: whole for seq, (whole, _) in enumerate(wholes)}
    assert len(reassembler) == reassembler.held_bytes == reassembler.dropped == 0


@LAW
@given(st.binary(min_size=1, max_size=300), st.integers(1, 100), st.data())
def test_a_damaged_chunk_is_refused_and_the_good_one_still_counts(
    whole: bytes, chunk_bytes: int, data: st.DataObject
) -> None:
    chunks = chunks_of(1, whole, chunk_bytes)
    hit = data.draw(st.integers(0, len(chunks) - 1))
    body = bytearray(chunks[hit].body)
    body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    reassembler = Reassembler(*ROOMY)
    for chunk in chunks[:hit]:
        reassembler.put(chunk, 0)
    assert refusal(reassembler, replace(chunks[hit], body=bytes(body))).reason == "checksum"
    results = [reassembler.put(chunk, 0) for chunk in chunks[hit:]]
    assert results[-1] == whole


def test_an_update_that_does_not_match_its_digest_is_refused_and_forgotten() -> None:
    first, last = chunks_of(1, b"abcd", 2)
    other, _ = chunks_of(1, b"xxcd", 2)
    reassembler = Reassembler(*ROOMY)
    reassembler.put(other, 0)
    assert refusal(reassembler, last).reason == "checksum"
    assert len(reassembler) == 0
    assert reassembler.put(first, 0) is None
    assert refusal(reassembler, replace(last, digest="")).reason == "checksum"
    assert reassembler.put(first, 0) is None
    assert reassembler.put(last, 0) == b"abcd"


@pytest.mark.parametrize(
    "changes",
    [
        {"total_bytes": 5},
        {"total_bytes": 7},
        {"count": 2},
        {"count": 4},
        {"index": 3},
        {"body": b"abcde", "crc32": 2240272485},
    ],
)
def test_a_chunk_that_contradicts_the_others_is_refused_with_the_whole_update(
    changes: dict[str, Any],
) -> None:
    first, second, third = chunks_of(1, b"abcdef", 2)
    reassembler = Reassembler(*ROOMY)
    reassembler.put(first, 0)
    assert refusal(reassembler, replace(second, **changes)).reason == "inconsistent"
    assert (len(reassembler), reassembler.held_bytes) == (0, 0)
    assert [reassembler.put(chunk, 0) for chunk in (third, second, first)][-1] == b"abcdef"


def test_a_repeated_chunk_must_agree_too() -> None:
    first, _, _ = chunks_of(1, b"abcdef", 2)
    reassembler = Reassembler(*ROOMY)
    assert reassembler.put(first, 0) is None
    assert reassembler.put(first, 0) is None
    assert refusal(reassembler, replace(first, count=2)).reason == "inconsistent"


def test_chunks_shorter_than_the_update_are_refused() -> None:
    reassembler = Reassembler(*ROOMY)
    for chunk in chunks_of(1, b"abcd", 2)[:1]:
        reassembler.put(replace(chunk, total_bytes=5), 0)
    last = chunks_of(1, b"abcd", 2)[1]
    assert refusal(reassembler, replace(last, total_bytes=5)).reason == "checksum"


@pytest.mark.parametrize(("total", "count"), [(101, 1), (0, 2), (5, 6), (1 << 61, 65536)])
def test_an_update_too_large_or_too_finely_cut_is_refused(total: int, count: int) -> None:
    reassembler = Reassembler(100, 1 << 20, 4)
    chunk = replace(chunks_of(1, b"x", 1)[0], total_bytes=total, count=count)
    assert refusal(reassembler, chunk).reason == "too-large"
    assert len(reassembler) == 0


# -- bounds ----------------------------------------------------------------------------------------


WHOLES = {seq: bytes([seq]) * (100 + 40 * seq) for seq in range(5)}


@LAW
@given(st.integers(1, 5), st.integers(150, 1200), st.integers(30, 60), st.data())
def test_no_bound_is_ever_passed(
    max_updates: int, max_bytes: int, chunk_bytes: int, data: st.DataObject
) -> None:
    """Chunks of five updates, claims that contradict them among them, in any order."""
    sent = [c for seq, whole in WHOLES.items() for c in chunks_of(seq, whole, chunk_bytes)]
    sent += [replace(chunk, total_bytes=200) for chunk in sent[::5]]
    reassembler = Reassembler(250, max_bytes, max_updates)
    for now_us, chunk in enumerate(data.draw(st.permutations(sent))):
        try:
            whole = reassembler.put(chunk, now_us)
        except PeerError:
            whole = None
        assert whole in (None, WHOLES[chunk.id.seq])
        held = [entry.pieces for entry in reassembler._incoming.values()]
        bodies = sum(len(body) for pieces in held for body in pieces.parts.values())
        pieces = sum(len(pieces.parts) for pieces in held)
        assert reassembler.held_bytes == bodies + PIECE_OVERHEAD_BYTES * pieces
        assert reassembler.held_bytes <= max_bytes
        assert len(reassembler) <= max_updates


def test_room_is_made_by_the_updates_that_were_quiet_longest() -> None:
    two_pieces = 2 * (10 + PIECE_OVERHEAD_BYTES)
    reassembler = Reassembler(100, two_pieces, 64)
    a, b, c = (chunks_of(seq, b"0123456789" * 3, 10) for seq in range(3))
    reassembler.put(a[0], 1)
    reassembler.put(b[0], 2)
    reassembler.put(a[0], 3)
    reassembler.put(c[0], 4)
    assert set(reassembler.stalled(before_us=100)) == {a[0].id, c[0].id}
    assert reassembler.dropped == 1
    reassembler.put(c[1], 5)
    assert set(reassembler.stalled(before_us=100)) == {c[0].id}
    assert refusal(reassembler, c[2]).reason == "too-large"
    assert (len(reassembler), reassembler.held_bytes) == (0, 0)


def test_the_number_of_updates_under_way_is_bounded() -> None:
    reassembler = Reassembler(100, 1 << 20, 2)
    firsts = [chunks_of(seq, b"abcd", 2)[0] for seq in range(3)]
    for now_us, chunk in enumerate(firsts):
        reassembler.put(chunk, now_us)
    assert set(reassembler.stalled(before_us=100)) == {firsts[1].id, firsts[2].id}
    assert reassembler.dropped == 1


# -- what is missing -------------------------------------------------------------------------------


@LAW
@given(st.integers(1, 300), st.integers(1, 40), st.data())
def test_stalled_names_what_has_not_arrived(
    size: int, chunk_bytes: int, data: st.DataObject
) -> None:
    whole = bytes(size)
    chunks = chunks_of(1, whole, chunk_bytes)
    arrived = data.draw(st.sets(st.sampled_from(range(len(chunks)))))
    reassembler = Reassembler(*ROOMY)
    for index in sorted(arrived):
        reassembler.put(chunks[index], 50)
    missing = [index for index in range(len(chunks)) if index not in arrived]
    expected = {chunks[0].id: missing} if missing and arrived else {}
    assert reassembler.stalled(before_us=51) == expected
    assert reassembler.stalled(before_us=50) == {}
    reassembler.forget(chunks[0].id)
    reassembler.forget(chunks[0].id)
    assert reassembler.stalled(before_us=51) == {}
    assert reassembler.held_bytes == 0


def test_what_an_update_in_very_many_chunks_lacks_fits_a_message() -> None:
    reassembler = Reassembler(1 << 20, 1 << 20, 4)
    chunk = chunks_of(1, bytes(60_000), 1)[0]
    reassembler.put(chunk, 0)
    ((update_id, missing),) = reassembler.stalled(before_us=1).items()
    wanted = ChunksWanted(id=update_id, missing=missing)
    assert decode(encode(wanted)) == wanted
    assert missing == list(range(1, len(missing) + 1))
