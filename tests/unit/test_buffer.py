"""The law of the bounded buffer: admitted = drained + evicted + held, at any time, within its bounds."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from hedgerow.core.buffer import Buffer
from tests.unit.strategies import LAW

KEYS = st.integers(0, 6)


class BufferMachine(RuleBasedStateMachine):
    """A caller who does anything, mistakes included, beside a plain model of the buffer."""

    @initialize(max_items=st.integers(0, 4), max_bytes=st.integers(0, 30))
    def make(self, max_items: int, max_bytes: int) -> None:
        self.buffer: Buffer[int, str] = Buffer(max_items, max_bytes)
        self.model: dict[int, tuple[str, int]] = {}
        self.offered = 0

    @rule(key=KEYS, size=st.integers(0, 12))
    def admit(self, key: int, size: int) -> None:
        value = f"{key}/{size}"
        if key in self.model:
            with pytest.raises(KeyError):
                self.buffer.admit(key, value, size)
            return
        self.offered += 1
        held = sum(size for _, size in self.model.values())
        fits = len(self.model) < self.buffer.max_items and held + size <= self.buffer.max_bytes
        assert self.buffer.admit(key, value, size) == fits
        if fits:
            self.model[key] = (value, size)

    @rule(key=KEYS, drain=st.booleans())
    def take(self, key: int, drain: bool) -> None:  # noqa: FBT001
        method = self.buffer.drain if drain else self.buffer.evict
        if key in self.model:
            assert method(key) == self.model.pop(key)[0]
        else:
            with pytest.raises(KeyError):
                method(key)

    @invariant()
    def books_balance(self) -> None:
        buffer = self.buffer
        assert buffer.admitted == buffer.drained + buffer.evicted + len(buffer)
        assert self.offered == buffer.admitted + buffer.refused
        assert len(buffer) <= buffer.max_items
        assert buffer.held_bytes <= buffer.max_bytes
        assert buffer.held_bytes == sum(size for _, size in self.model.values())

    @invariant()
    def it_holds_what_was_admitted_in_order(self) -> None:
        assert list(self.buffer) == list(self.model)
        assert self.buffer.values() == [value for value, _ in self.model.values()]
        assert all(self.buffer[key] == value for key, (value, _) in self.model.items())
        assert [key for key in range(7) if key in self.buffer] == sorted(self.model)


TestBuffer = BufferMachine.TestCase
TestBuffer.settings = LAW
