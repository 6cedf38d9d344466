"""Gateway ingest without sockets: chunks as bytes in, partial aggregates as bytes out, and a profile."""

import cProfile
import pstats
import random
import time
from pathlib import Path

from bench.measure import Row, Settings
from bench.subjects import (
    BUFFER_SIZE,
    FLUSH_COUNT,
    GATEWAY,
    MODEL,
    NODES,
    SUBJECTS,
    Subject,
    UpdateMaker,
    first_descriptor,
    node_state,
)
from gateway.protocol import GatewayProtocol
from hedgerow.core import names
from hedgerow.core.chunks import chunk_update
from hedgerow.core.codec import decode, encode
from hedgerow.core.config import BrokerConfig, GatewayConfig
from hedgerow.core.effects import Announce, LinkUp, Send
from hedgerow.core.messages import (
    BlobPart,
    Message,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    UpdateId,
)
from hedgerow.core.units import digest

FIGURE = "gateway-core"
PROFILE_LINES = 8
CHUNK_BYTES = BrokerConfig().chunk_bytes

Wire = list[tuple[str, bytes]]
"""Encoded messages with the peers they come from."""


class Bench:
    """A gateway between nodes that send `wire` and an aggregator that accepts and settles at once."""

    def __init__(self, subject: Subject) -> None:
        config = GatewayConfig(flush_count=FLUSH_COUNT, held_bytes=256 << 20)
        self._gateway = GatewayProtocol(
            GATEWAY,
            1,
            config,
            model=MODEL,
            chunk_bytes=CHUNK_BYTES,
            packet_bytes=1 << 20,
            rng=random.Random(1),
            meter=dict,
        )
        self._unsettled: list[UpdateId] = []
        self.settled = 0
        units = subject.plan.manifest.split(subject.params())
        bodies = {name: values.tobytes() for name, values in units.items()}
        digests = {name: digest(body) for name, body in bodies.items()}
        self._gateway.start(0)
        self._gateway.receive(names.AGGREGATOR, LinkUp(), 0)
        self._gateway.receive(names.AGGREGATOR, first_descriptor(subject, digests), 0)
        for name, body in bodies.items():
            part = BlobPart(digest=digests[name], index=0, count=1, body=body)
            self._gateway.receive(names.AGGREGATOR, part, 0)
        self._perform()

    def feed(self, wire: Wire) -> None:
        """Take messages as the links would hand them over, and encode what leaves."""
        for now_us, (peer, data) in enumerate(wire):
            self._gateway.receive(peer, decode(data), now_us)
            self._perform()

    def _perform(self) -> None:
        for effect in self._gateway.effects():
            if isinstance(effect, Send):
                encode(effect.message)
                if isinstance(effect.message, Partial):
                    self._answer(effect.message)
            elif isinstance(effect, Announce) and effect.message is not None:
                encode(effect.message)

    def _answer(self, partial: Partial) -> None:
        reply = PartialReply(partial_id=partial.id, status="accepted")
        self._gateway.receive(names.AGGREGATOR, reply, 0)
        self._unsettled += [header.id for header in partial.headers]
        if len(self._unsettled) >= BUFFER_SIZE:
            receipts = [Receipt(update_id, "settled") for update_id in self._unsettled]
            self.settled += len(receipts)
            self._unsettled = []
            self._gateway.receive(names.AGGREGATOR, Receipts(receipts=receipts, version=1), 0)
        self._perform()


def make_wire(subject: Subject, updates: int) -> Wire:
    """Return what nodes send for so many updates, with half of the nodes training at any time."""
    maker = UpdateMaker(subject.plan, subject.encoding)
    wire: Wire = []
    begin: list[Wire] = []
    for number in range(updates):
        node, seq = f"light-{number % NODES:03d}", number // NODES + 1
        peer = names.node_peer(node)
        update = maker.update(UpdateId(node, 1, seq), 0)
        chunks = chunk_update(update, encode(update), CHUNK_BYTES)
        wire.append((peer, encode(node_state(node, "training", seq - 1, 0))))
        states = [node_state(node, "ready", seq, outbox) for outbox in (0, 1)]
        settled = node_state(node, "ready", seq, 0)
        rest: list[Message] = [states[0], *chunks, states[1], settled]
        begin.append([(peer, encode(message)) for message in rest])
        if len(begin) > NODES // 2:
            wire += begin.pop(0)
    for messages in begin:
        wire += messages
    return wire


def measure(settings: Settings) -> list[Row]:
    """Measure every payload size; the profile is of the 400 KB int8 one."""
    rows = []
    for subject in SUBJECTS:
        settings.say(f"gateway, in process: {subject.name}")
        count = BUFFER_SIZE * (1 if settings.quick else 20 if subject.payload_bytes < 1e5 else 4)
        wire = make_wire(subject, count)
        Bench(subject).feed(wire)
        rates = tuple(count / _feed_cpu_s(subject, wire, count) for _ in range(settings.repeats))
        unit = "updates per CPU-second"
        note = f"{subject.payload_bytes:,} bytes; decode, check, sum, encode"
        rows.append(Row(FIGURE, subject.name, unit, rates, note))
        if subject.name == "400 KB int8":
            profile = _profile(subject, wire)
    return rows + profile


def _feed_cpu_s(subject: Subject, wire: Wire, count: int) -> float:
    bench = Bench(subject)
    before = time.process_time()
    bench.feed(wire)
    spent = time.process_time() - before
    assert bench.settled == count, f"{bench.settled} of {count} updates were settled"
    return spent


def _profile(subject: Subject, wire: Wire) -> list[Row]:
    """Return the functions with most time of their own, as shares of all."""
    bench = Bench(subject)
    profiler = cProfile.Profile()
    profiler.runcall(bench.feed, wire)
    stats = pstats.Stats(profiler).get_stats_profile()
    own = sorted(stats.func_profiles.items(), key=lambda item: -item[1].tottime)
    rows = []
    for name, function in own[:PROFILE_LINES]:
        share = 100 * function.tottime / stats.total_tt
        where = Path(function.file_name).name
        note = f"{where}:{function.line_number}" if function.line_number else ""
        rows.append(Row(FIGURE, f"profile of {subject.name}: {name}", "% of CPU", (share,), note))
    return rows
