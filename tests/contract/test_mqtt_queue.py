"""Laws of the outgoing queue: bounds, window, retained memory, and that every loss is counted."""

from collections import Counter

import hypothesis.strategies as st
from hypothesis import given, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from hedgerow.runtime.mqtt_queue import Message, Outgoing, QueueLimits

LIMITS = QueueLimits(queued_messages=5, queued_bytes=200, retained_topics=3, retained_bytes=90)
WINDOW_MESSAGES, WINDOW_BYTES, PACKET_BYTES = 3, 100, 60
TOPICS = st.sampled_from("abcdef")


class OutgoingMachine(RuleBasedStateMachine):
    """A peer that takes, acknowledges and loses as it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: Counter[str] = Counter()
        self.queue = Outgoing(LIMITS, self._record)
        self.queue.set_bounds(
            window_messages=WINDOW_MESSAGES, window_bytes=WINDOW_BYTES, packet_bytes=PACKET_BYTES
        )
        self.flying: dict[int, Message] = {}
        self.mids = 0
        self.offered = self.refused = self.delivered = 0
        self.wanted: dict[str, bytes] = {}
        self.held: dict[str, bytes] = {}

    def _record(self, event: str, amount: int) -> None:
        self.lost[event] += amount

    @rule(topic=TOPICS, size=st.integers(0, 60), retain=st.booleans(), connected=st.booleans())
    def offer(self, topic: str, size: int, retain: bool, connected: bool) -> None:  # noqa: FBT001
        message = Message(topic, bytes([self.mids % 256]) * size, retain)
        before = self.lost.total()
        accepted = self.queue.offer(message, connected=connected)
        assert accepted == (self.lost.total() == before)
        if accepted:
            assert message.packet_bytes <= PACKET_BYTES
            assert retain or connected
        if retain and accepted:
            self.wanted[topic] = message.payload
        elif not retain:
            self.offered += 1
            self.refused += not accepted

    @rule()
    def take(self) -> None:
        message = self.queue.take()
        if message is None:
            return
        self.mids += 1
        self.queue.sent(self.mids, message)
        self.flying[self.mids] = message

    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        if not self.flying:
            return
        mid = data.draw(st.sampled_from(sorted(self.flying)))
        message = self.flying.pop(mid)
        assert self.queue.acknowledged(mid) is message
        assert self.queue.acknowledged(mid) is None
        if not message.retain:
            self.delivered += 1

    @rule()
    def lose_the_connection(self) -> None:
        self.queue.disconnected()
        self.flying.clear()

    @rule()
    def drain_after_a_reconnection(self) -> None:
        """The broker lost everything; afterwards it holds the last payload of every topic."""
        self.lose_the_connection()
        self.held = {}
        while (message := self.queue.take()) is not None:
            assert message.retain
            assert message.topic not in self.held, "a topic was sent twice"
            self.held[message.topic] = message.payload
            self.mids += 1
            self.queue.sent(self.mids, message)
            self.queue.acknowledged(self.mids)
        kept = {topic: payload for topic, payload in self.wanted.items() if payload}
        assert {topic: payload for topic, payload in self.held.items() if payload} == kept
        assert len(kept) <= LIMITS.retained_topics
        self.wanted = kept
        assert self.queue.idle

    @invariant()
    def the_window_holds(self) -> None:
        assert self.queue.in_flight == len(self.flying) <= WINDOW_MESSAGES
        flying_bytes = sum(message.packet_bytes for message in self.flying.values())
        assert flying_bytes <= WINDOW_BYTES or len(self.flying) == 1

    @invariant()
    def nothing_is_lost_uncounted(self) -> None:
        dropped = self.lost["mqtt_dropped_queued"] + self.lost["mqtt_dropped_unacknowledged"]
        under_way = self.offered - self.refused - self.delivered - dropped
        flying = sum(not message.retain for message in self.flying.values())
        assert flying <= under_way <= flying + LIMITS.queued_messages


OutgoingMachine.TestCase.settings = settings(max_examples=150, deadline=None)
TestOutgoing = OutgoingMachine.TestCase


@given(st.integers(1, 50))
def test_a_message_larger_than_the_window_goes_alone(extra: int) -> None:
    queue = Outgoing(QueueLimits(), lambda _event, _amount: None)
    queue.set_bounds(window_messages=10, window_bytes=100, packet_bytes=10_000)
    large = Message("t", b"x" * (100 + extra), retain=False)
    small = Message("t", b"x", retain=False)
    for message in (small, large, small):
        assert queue.offer(message, connected=True)
    assert queue.take() is small
    queue.sent(1, small)
    assert queue.take() is None
    queue.acknowledged(1)
    assert queue.take() is large
    queue.sent(2, large)
    assert queue.take() is None
