"""The two links of a fleet, in memory and lossy: a broker with channels, and posts and streams upwards.

Real bytes travel: every message is encoded, named by the real topics and decoded again.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from hedgerow.core import names
from hedgerow.core.codec import decode, encode
from hedgerow.core.effects import LinkDown, LinkUp, Undelivered
from hedgerow.core.messages import BlobPart, BlobsWanted, FleetReport, Partial, PartialReply
from hedgerow.runtime.mqtt_link import Topics
from tests.protocol.engine import Clock, Process

SITE = "site"
read = lru_cache(maxsize=1024)(decode)
"""Messages are immutable: what many followers receive is decoded once."""

_TIMEOUT_US = 15_000_000


@dataclass
class Weather:
    """How bad a link is: rates of loss and repetition, and the longest latency."""

    drop: float = 0.0
    repeat: float = 0.0
    latency_us: int = 50_000


@dataclass
class Session:
    """One process's link to the broker."""

    process: Process
    topics: Topics
    will: Callable[[], tuple[str, bytes]]
    connected: bool = False
    connection: int = 0
    reachable: bool = True
    will_due: tuple[str, bytes] | None = None
    filters: set[str] = field(default_factory=set)
    memory: dict[str, bytes] = field(default_factory=dict)
    free_us: int = 0


class Broker:
    """Keeps the last message of each channel; promises nothing else."""

    def __init__(self, clock: Clock, weather: Weather) -> None:
        self.clock = clock
        self.weather = weather
        self.sessions: dict[str, Session] = {}
        self.retained: dict[str, bytes] = {}
        self.seen: Counter[str] = Counter()

    def connect(self, session: Session) -> None:
        """Open the session, as the real one does after every loss: subscribe, announce, go on."""
        if session.connected or not session.process.alive or not session.reachable:
            return
        if session.will_due is not None:
            self._publish(*session.will_due)
            session.will_due = None
        session.connected = True
        session.connection += 1
        session.process.receive(names.BROKER, LinkUp())
        for topic, body in list(session.memory.items()):
            self._announce(session, topic, body)
        for topic_filter in sorted(session.filters):
            self._replay(session, topic_filter)

    def disconnect(self, session: Session) -> None:
        """Break the session; the process hears of it later, if it lives, and the others of its will."""
        if not session.connected:
            return
        session.connected = False
        connection = session.connection = session.connection + 1
        session.will_due = session.will()
        self.clock.after(
            self.clock.between(100_000, 8_000_000), lambda: self._bury(session, connection)
        )

    def _bury(self, session: Session, connection: int) -> None:
        if session.connection == connection and session.will_due is not None:
            self._publish(*session.will_due)
            session.will_due = None

    def forget(self) -> None:
        """Lose everything, as a broker that is killed does."""
        self.retained = {}

    def send(self, session: Session, peer: str, message: Any) -> None:
        if not session.connected:
            self.seen["sent offline"] += 1
            return
        topic, body = session.topics.send(peer, message), encode(message)
        copies = 1 + (self.clock.random.random() < self.weather.repeat)
        if self.clock.random.random() < self.weather.drop:
            copies = 0
            self.seen["dropped"] += 1
        self.seen["repeated"] += copies > 1
        for _ in range(copies):
            self.clock.after(self._latency_us(), lambda: self._route(topic, body))

    def _route(self, topic: str, body: bytes) -> None:
        parts = topic.split("/")[3:]
        target = f"node/{parts[1]}" if parts[0] == "to" else f"gw/{parts[1]}"
        session = self.sessions[target]
        if session.connected:
            session.process.receive(session.topics.sender(topic), read(body))

    def announce(self, session: Session, channel: str, message: Any | None) -> None:
        topic = session.topics.channel(channel)
        body = b"" if message is None else encode(message)
        session.memory[topic] = body
        if not body:
            del session.memory[topic]
        if session.connected:
            self._announce(session, topic, body)

    def _announce(self, session: Session, topic: str, body: bytes) -> None:
        self._in_order(session, lambda: self._publish(topic, body))

    def _publish(self, topic: str, body: bytes) -> None:
        if body:
            self.retained[topic] = body
        else:
            self.retained.pop(topic, None)
        for session in self.sessions.values():
            if body and any(_matches(wanted, topic) for wanted in session.filters):
                self._deliver(session, topic, body)

    def follow(self, session: Session, channel: str) -> None:
        topic_filter = session.topics.channel(channel)
        session.filters.add(topic_filter)
        if session.connected:
            self._replay(session, topic_filter)

    def unfollow(self, session: Session, channel: str) -> None:
        session.filters.discard(session.topics.channel(channel))

    def _replay(self, session: Session, topic_filter: str) -> None:
        for topic, body in sorted(self.retained.items()):
            if _matches(topic_filter, topic):
                self._deliver(session, topic, body)

    def _deliver(self, session: Session, topic: str, body: bytes) -> None:
        if session.connected:
            sender, message = session.topics.sender(topic), read(body)
            self._in_order(session, lambda: session.process.receive(sender, message))

    def _in_order(self, session: Session, call: Callable[[], None]) -> None:
        """Channels keep their order within a connection; what is on its way dies with it."""
        connection = session.connection
        session.free_us = max(session.free_us, self.clock.now_us + self._latency_us())

        def run() -> None:
            if session.connection == connection:
                call()

        self.clock.after(session.free_us - self.clock.now_us, run)

    def _latency_us(self) -> int:
        return self.clock.between(500, self.weather.latency_us)


@cache
def _matches(topic_filter: str, topic: str) -> bool:
    wanted, found = topic_filter.split("/"), topic.split("/")
    return len(wanted) == len(found) and all(
        w in ("+", f) for w, f in zip(wanted, found, strict=True)
    )


class Uplinks:
    """Every gateway's way to the aggregator: posts that may be lost either way, one stream down."""

    def __init__(self, clock: Clock, weather: Weather, blob: Callable[[str], bytes | None]) -> None:
        self.clock = clock
        self.weather = weather
        self.blob = blob
        self.aggregator: Process | None = None
        self.gateways: dict[str, Process] = {}
        self.cut: set[str] = set()
        self.seen: Counter[str] = Counter()
        self._streams: dict[str, int] = defaultdict(int)
        self._open: set[str] = set()
        self._free_us: dict[str, int] = defaultdict(int)
        self._posts: dict[tuple[str, str], int] = {}

    def from_gateway(self, gateway: Process, message: Any) -> None:
        body, life = encode(message), gateway.life
        match message:
            case Partial():
                self._post(gateway, message, body)
            case BlobsWanted():
                self._later(lambda: self._serve(gateway, life, message))
            case FleetReport():
                self._later(lambda: self._up(gateway, body))
            case _:
                self._close(gateway.name, tell=False)
                self._later(lambda: self._open_stream(gateway, life, body))

    def _reachable(self, gateway: Process) -> bool:
        up = self.aggregator is not None and self.aggregator.alive
        return up and gateway.name not in self.cut

    def _up(self, gateway: Process, body: bytes) -> bool:
        if not self._reachable(gateway) or self.aggregator is None:
            return False
        self.aggregator.receive(gateway.name, read(body))
        return True

    def _post(self, gateway: Process, partial: Partial, body: bytes) -> None:
        key, life = (gateway.name, partial.id), gateway.life
        self._posts[key] = life
        if self.clock.random.random() >= self.weather.drop:
            repeat = self.clock.random.random() < self.weather.repeat
            self.seen["post repeated"] += repeat
            for _ in range(1 + repeat):
                self._later(lambda: self._up(gateway, body))

        def give_up() -> None:
            if self._posts.pop(key, None) == life:
                self.seen["post undelivered"] += 1
                self._down(gateway, life, Undelivered(partial, "no answer in time", 1_000_000))

        soon = self.clock.between(200_000, 2_000_000)
        self.clock.after(_TIMEOUT_US if self._reachable(gateway) else soon, give_up)

    def _serve(self, gateway: Process, life: int, wanted: BlobsWanted) -> None:
        lost = []
        for name in wanted.digests:
            body = self.blob(name) if self._reachable(gateway) else None
            if body is None or self.clock.random.random() < self.weather.drop:
                lost.append(name)
            else:
                self._down(gateway, life, BlobPart(digest=name, index=0, count=1, body=body))
        if lost:
            failed = BlobsWanted(model=wanted.model, digests=lost)
            self._down(gateway, life, Undelivered(failed, "not found"))

    def _open_stream(self, gateway: Process, life: int, body: bytes) -> None:
        if not gateway.alive or gateway.life != life:
            return
        if not self._reachable(gateway):
            self._down(gateway, life, LinkDown())
            return
        self._streams[gateway.name] += 1
        self._open.add(gateway.name)
        gateway.receive(names.AGGREGATOR, LinkUp())
        self._up(gateway, body)

    def from_aggregator(self, peer: str, message: Any) -> None:
        gateway = self.gateways[peer]
        data = read(encode(message))
        if isinstance(message, PartialReply):
            self._answer(gateway, message, data)
        elif peer in self._open:
            stream = self._streams[peer]

            def arrive() -> None:
                if self._streams[peer] == stream and peer in self._open:
                    gateway.receive(names.AGGREGATOR, data)

            latency_us = self.clock.between(500, self.weather.latency_us)
            self._free_us[peer] = max(self._free_us[peer], self.clock.now_us + latency_us)
            self.clock.after(self._free_us[peer] - self.clock.now_us, arrive)

    def _answer(self, gateway: Process, reply: PartialReply, data: Any) -> None:
        key = (gateway.name, reply.partial_id)
        self.seen[f"answer {reply.status}"] += 1
        if key not in self._posts or self.clock.random.random() < self.weather.drop:
            return

        def arrive() -> None:
            life = self._posts.pop(key, None)
            if life is not None and gateway.life == life and gateway.name not in self.cut:
                gateway.receive(names.AGGREGATOR, data)
            elif life is not None:
                self._posts[key] = life

        self._later(arrive)

    def break_stream(self, peer: str) -> None:
        self._close(peer, tell=True)

    def aggregator_died(self) -> None:
        for peer in sorted(self._open):
            self._close(peer, tell=True)

    def gateway_died(self, peer: str) -> None:
        self._close(peer, tell=True)

    def _close(self, peer: str, *, tell: bool) -> None:
        """End a stream; a gateway's own new one replaces it in silence."""
        if peer not in self._open:
            return
        self._open.discard(peer)
        self._streams[peer] += 1
        gateway, stream = self.gateways[peer], self._streams[peer]
        if not tell:
            return
        life = gateway.life
        self._later(lambda: self._down(gateway, life, LinkDown()))

        def hear() -> None:
            if self.aggregator is not None and self._streams[peer] == stream:
                self.aggregator.receive(peer, LinkDown())

        self._later(hear)

    def _down(self, gateway: Process, life: int, message: Any) -> None:
        def arrive() -> None:
            if gateway.alive and gateway.life == life:
                gateway.receive(names.AGGREGATOR, message)

        self._later(arrive)

    def _later(self, call: Callable[[], Any]) -> None:
        self.clock.after(self.clock.between(500, 4 * self.weather.latency_us), call)
