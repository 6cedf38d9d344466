"""Laws of the outlet: effects keep their order, and no row is lost between asking and the disk."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from hedgerow.core.effects import JobFailed, Record, Save, SetTimer
from hedgerow.core.outlet import SAVE_TIMER, Outlet, Saves
from tests.unit.strategies import LAW


def test_effects_come_out_once_in_their_order() -> None:
    outlet = Outlet()
    outlet.do(SetTimer("a", 1))
    outlet.record("seen", 2, reason="x")
    outlet.do(SetTimer("b", 3))
    assert outlet.drain() == [
        SetTimer("a", 1),
        Record("seen", 2, {"reason": "x"}),
        SetTimer("b", 3),
    ]
    assert outlet.drain() == []


def test_job_numbers_are_never_reused() -> None:
    outlet = Outlet()
    saves = Saves[str](outlet)
    numbers = [outlet.next_job()]
    saves.save("row")
    numbers += [effect.job for effect in outlet.drain() if isinstance(effect, Save)]
    numbers.append(outlet.next_job())
    assert len(set(numbers)) == 3


class SavesMachine(RuleBasedStateMachine):
    """A disk that takes some transactions, fails others, and answers in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.outlet = Outlet()
        self.saves: Saves[int] = Saves(self.outlet)
        self.asked: list[int] = []
        self.durable: list[int] = []
        self.disk: dict[int, tuple[int, ...]] = {}
        self.failures = 0

    def collect(self) -> list[object]:
        """Take the effects; what is to be saved goes to the disk."""
        effects = self.outlet.drain()
        for effect in effects:
            if isinstance(effect, Save):
                assert effect.job not in self.disk
                self.disk[effect.job] = effect.rows
        return [effect for effect in effects if not isinstance(effect, Save)]

    @rule(count=st.integers(0, 3))
    def save(self, count: int) -> None:
        rows = range(len(self.asked), len(self.asked) + count)
        self.asked += rows
        self.saves.save(*rows)
        assert self.collect() == []
        assert list(self.disk.values())[-1] == tuple(rows)

    @precondition(lambda self: self.disk)
    @rule(data=st.data())
    def succeed(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.disk)))
        rows = self.disk.pop(job)
        assert self.saves.done(job) == rows
        self.durable += rows

    @precondition(lambda self: self.disk)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        job = data.draw(st.sampled_from(sorted(self.disk)))
        del self.disk[job]
        self.saves.failed(JobFailed(job, "no space left"))
        record, timer = self.collect()
        assert record == Record("save_failed", 1, {"reason": "disk", "detail": "no space left"})
        assert isinstance(timer, SetTimer)
        assert timer.name == SAVE_TIMER
        assert timer.after_us > 0

    @rule()
    def retry(self) -> None:
        self.saves.retry()
        assert self.collect() == []
        under_way = sorted(row for rows in self.disk.values() for row in rows)
        assert under_way == sorted(set(self.asked) - set(self.durable))

    @invariant()
    def every_row_is_durable_or_waiting(self) -> None:
        assert sorted(self.durable + self.saves.waiting) == self.asked
        assert all(job in self.saves for job in self.disk)


TestSaves = SavesMachine.TestCase
TestSaves.settings = LAW


def test_an_answer_to_an_unknown_job_is_our_own_fault() -> None:
    saves = Saves[str](Outlet())
    with pytest.raises(KeyError):
        saves.done(1)
    assert 1 not in saves


def test_failed_rows_are_tried_again_oldest_first() -> None:
    outlet = Outlet()
    saves = Saves[str](outlet)
    saves.save("a", "b")
    saves.save("c")
    for effect in outlet.drain():
        assert isinstance(effect, Save)
        saves.failed(JobFailed(effect.job, ""))
    outlet.drain()
    saves.retry()
    assert [effect.rows for effect in outlet.drain() if isinstance(effect, Save)] == [
        ("a", "b"),
        ("c",),
    ]
