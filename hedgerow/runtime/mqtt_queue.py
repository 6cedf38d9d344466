"""What a session still has to publish: a bounded queue, the window in flight, the retained memory.

No I/O here. Messages leave in the order they were offered, except that a retained topic waits at
most once: what is sent is its newest payload. Sizes are bytes of the packet, header included.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

# What a PUBLISH adds at most: fixed header 5, topic length 2, packet id 2, empty properties 1.
_HEADER_BYTES = 10


@dataclass(frozen=True, slots=True)
class Message:
    """One publication, always QoS 1."""

    topic: str
    payload: bytes
    retain: bool

    @property
    def packet_bytes(self) -> int:
        """The size of the whole packet, at most."""
        return _HEADER_BYTES + len(self.topic.encode()) + len(self.payload)


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueLimits:
    """Bounds of an `Outgoing`; the retained bounds count topics that are remembered."""

    queued_messages: int = 4096
    queued_bytes: int = 16 << 20
    retained_topics: int = 4096
    retained_bytes: int = 128 << 20


class Outgoing:
    """Messages on their way to the broker.

    `record` is called with the name of the counter and an amount for everything refused or dropped.
    """

    def __init__(self, limits: QueueLimits, record: Callable[[str, int], None]) -> None:
        self._limits = limits
        self._record = record
        # A text is a retained topic whose payload is looked up when it is sent.
        self._queue: deque[Message | str] = deque()
        self._queued_messages = 0
        self._queued_bytes = 0
        self._due: set[str] = set()
        self._retained: dict[str, bytes] = {}
        self._retained_bytes = 0
        self._in_flight: dict[int, Message] = {}
        self._in_flight_bytes = 0
        self._window_messages = 1
        self._window_bytes = 0
        self._packet_bytes = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is queued and nothing waits for its acknowledgement."""
        return not self._queue and not self._in_flight

    @property
    def in_flight(self) -> int:
        """How many messages wait for the broker's acknowledgement."""
        return len(self._in_flight)

    def set_bounds(self, *, window_messages: int, window_bytes: int, packet_bytes: int) -> None:
        """Set what the peer accepts: messages and bytes in flight, and the largest packet."""
        self._window_messages = window_messages
        self._window_bytes = window_bytes
        self._packet_bytes = packet_bytes

    def offer(self, message: Message, *, connected: bool) -> bool:
        """Queue `message`; returns False, and counts why, when it is refused."""
        reason = self._objection(message, connected=connected)
        if reason:
            self._record(reason, 1)
            return False
        if message.retain:
            self._remember(message)
            self._enqueue_retained(message.topic)
        else:
            self._queue.append(message)
            self._queued_messages += 1
            self._queued_bytes += message.packet_bytes
        return True

    def take(self) -> Message | None:
        """Remove the next message, if the window has room; the caller sends it and calls `sent`.

        A message larger than the whole window may go alone.
        """
        while self._queue:
            message = self._peek()
            if self._in_flight and not self._fits(message):
                return None
            self._pop()
            if message.packet_bytes <= self._packet_bytes:
                return message
            # Remembered while offline, and this broker takes less than the last one.
            self._record("mqtt_dropped_oversize", 1)
            self._forget(message.topic)
        return None

    def sent(self, mid: int, message: Message) -> None:
        """Take note that `message` left with packet id `mid`."""
        self._in_flight[mid] = message
        self._in_flight_bytes += message.packet_bytes

    def acknowledged(self, mid: int) -> Message | None:
        """Take note of the acknowledgement of `mid`; returns the message, None when unknown."""
        message = self._in_flight.pop(mid, None)
        if message is None:
            return None
        self._in_flight_bytes -= message.packet_bytes
        # A cleared topic is forgotten only when the broker has cleared it too.
        cleared = message.retain and not message.payload
        if cleared and self._retained.get(message.topic) == b"" and message.topic not in self._due:
            self._forget(message.topic)
        return message

    def disconnected(self) -> None:
        """Drop and count what is not retained; every remembered retained message is due again."""
        unacknowledged = sum(not message.retain for message in self._in_flight.values())
        if self._queued_messages:
            self._record("mqtt_dropped_queued", self._queued_messages)
        if unacknowledged:
            self._record("mqtt_dropped_unacknowledged", unacknowledged)
        self._queue.clear()
        self._queued_messages = self._queued_bytes = 0
        self._in_flight.clear()
        self._in_flight_bytes = 0
        self._due.clear()
        for topic in self._retained:
            self._enqueue_retained(topic)

    def _objection(self, message: Message, *, connected: bool) -> str:
        """Return the counter's name of what speaks against `message`, "" for nothing."""
        size = message.packet_bytes
        if size > self._packet_bytes:
            return "mqtt_dropped_oversize"
        if message.retain:
            return "" if self._memory_has_room(message) else "mqtt_dropped_retained_overflow"
        if not connected:
            return "mqtt_dropped_offline"
        full = self._queued_messages >= self._limits.queued_messages
        if full or self._queued_bytes + size > self._limits.queued_bytes:
            return "mqtt_dropped_overflow"
        return ""

    def _memory_has_room(self, message: Message) -> bool:
        old = self._retained.get(message.topic)
        topics = len(self._retained) + (old is None)
        size = self._retained_bytes + len(message.payload) - len(old or b"")
        return topics <= self._limits.retained_topics and size <= self._limits.retained_bytes

    def _remember(self, message: Message) -> None:
        old = self._retained.get(message.topic, b"")
        self._retained[message.topic] = message.payload
        self._retained_bytes += len(message.payload) - len(old)

    def _forget(self, topic: str) -> None:
        self._retained_bytes -= len(self._retained.pop(topic, b""))

    def _enqueue_retained(self, topic: str) -> None:
        if topic not in self._due:
            self._due.add(topic)
            self._queue.append(topic)

    def _peek(self) -> Message:
        head = self._queue[0]
        if isinstance(head, str):
            return Message(head, self._retained[head], retain=True)
        return head

    def _fits(self, message: Message) -> bool:
        size = self._in_flight_bytes + message.packet_bytes
        return len(self._in_flight) < self._window_messages and size <= self._window_bytes

    def _pop(self) -> None:
        head = self._queue.popleft()
        if isinstance(head, str):
            self._due.discard(head)
        else:
            self._queued_messages -= 1
            self._queued_bytes -= head.packet_bytes
