"""Laws of the known updates: a set, whatever the order, in the memory of its gaps."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from hedgerow.core.messages import UpdateId
from hedgerow.core.seqset import KnownUpdates, SeqSet
from tests.unit.strategies import LAW, update_ids


@LAW
@given(st.lists(st.integers(0, 12), max_size=20))
def test_it_is_a_set_after_every_step(numbers: list[int]) -> None:
    seqs, model = SeqSet(), set[int]()
    for number in numbers:
        seqs.add(number)
        model.add(number)
        held = {n for first, last in seqs.ranges for n in range(first, last + 1)}
        assert held == model
    assert [n for n in range(-1, 15) if n in seqs] == sorted(model)


@LAW
@given(st.sets(st.integers(0, 12)), st.data())
def test_it_holds_one_range_more_than_gaps(numbers: set[int], data: st.DataObject) -> None:
    seqs = SeqSet()
    for number in data.draw(st.permutations(sorted(numbers))):
        seqs.add(number)
    ordered = sorted(numbers)
    gaps = sum(b - a > 1 for a, b in pairwise(ordered))
    assert len(seqs.ranges) == (gaps + 1 if numbers else 0)
    assert seqs.ranges == sorted(seqs.ranges)


def test_a_long_history_without_gaps_is_one_range() -> None:
    seqs = SeqSet()
    for number in [*range(0, 10_000, 2), *range(9_999, 0, -2)]:
        seqs.add(number)
    assert seqs.ranges == [(0, 9_999)]


@LAW
@given(st.lists(update_ids), update_ids)
def test_known_updates_are_a_set_of_ids(ids: list[UpdateId], asked: UpdateId) -> None:
    half = len(ids) // 2
    known = KnownUpdates(ids[:half])
    for update_id in ids[half:]:
        known.add(update_id)
    assert (asked in known) == (asked in set(ids))
    assert all(update_id in known for update_id in ids)
