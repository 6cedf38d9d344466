"""The way from gateways to the aggregator: posts, blobs and the stream, and how each of them breaks."""

import random
from typing import Any

import msgspec
import pytest

from aggregator.refusal import Refusal
from hedgerow.core import names
from hedgerow.core.codec import encode
from hedgerow.core.effects import LinkDown, LinkUp, Undelivered
from hedgerow.core.messages import (
    BlobPart,
    BlobsWanted,
    Bundle,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    Subscribe,
    UpdateId,
)
from sims.clock import SECOND_US, VirtualLoop, virtual_loop
from sims.links import LinkModel
from sims.uplink import REQUEST_BYTES, Line, Uplinks
from tests.protocol.scenarios import MODEL, make_lineage, make_partial, make_update
from tests.simulation.fleets import fair_link

DIGEST = "a" * 32


def partial(number: int = 1) -> Partial:
    return make_partial([make_update(number)], make_lineage(1), partial_id=f"gw-1-1-{number}")


def reply(number: int = 1) -> PartialReply:
    return PartialReply(partial_id=f"gw-1-1-{number}", status="accepted")


def receipts(seq: int = 1) -> Receipts:
    return Receipts(receipts=[Receipt(UpdateId("node-1", 1, seq), "settled")])


SUBSCRIBE = Subscribe(gateway="gw-1", after=0)


class Way:
    """One gateway's line, and what arrived at either end with its virtual time."""

    def __init__(self, link: LinkModel | None = None) -> None:
        self.loop: VirtualLoop = virtual_loop()
        self.heard: list[tuple[str, str]] = []
        self.uplinks = Uplinks(
            self.loop, {DIGEST: b"unit"}.get, lambda to, of, _: self.heard.append((to, of))
        )
        self.line = Line("gw/gw-1", link or fair_link(), random.Random("line"))
        self.uplinks.lines[self.line.name] = self.line
        self.up: list[tuple[int, Any]] = []
        self.down: list[tuple[int, Any]] = []
        self.start_gateway()
        self.start_aggregator()

    def start_gateway(self) -> None:
        self.line.life += 1
        self.line.deliver = lambda _, message: self.down.append((self.loop.now_us, message))

    def start_aggregator(self) -> None:
        self.uplinks.aggregator = lambda _, message: self.up.append((self.loop.now_us, message))

    def send(self, message: Any) -> None:
        self.uplinks.send(self.line, message)

    def answer(self, message: Any) -> None:
        self.uplinks.answer(self.line.name, message)

    def settle(self, seconds: float = 60) -> None:
        self.loop.run_until_us(self.loop.now_us + round(seconds * SECOND_US))

    def arrived(self, entries: list[tuple[int, Any]]) -> list[Any]:
        messages = [message for _, message in entries]
        entries.clear()
        return messages


@pytest.fixture
def way() -> Way:
    return Way()


# Posts.


def test_a_post_and_its_answer_arrive(way: Way) -> None:
    way.send(partial())
    way.settle(1)
    assert way.arrived(way.up) == [partial()]
    way.answer(reply())
    way.settle()
    assert way.arrived(way.down) == [reply()]
    assert way.heard == [(names.AGGREGATOR, "gw/gw-1")]


def test_a_peers_partial_is_posted_in_a_bundle_and_may_be_refused(way: Way) -> None:
    bundle = Bundle(gateway="gw-1", path=["gw-2", "gw-1"], partials=[partial()])
    way.send(bundle)
    way.settle(1)
    assert way.arrived(way.up) == [bundle]
    way.answer(Refusal(partial().id, "disk", 10))
    way.answer(Refusal(partial().id, "disk", 10))
    way.settle()
    assert way.arrived(way.down) == [Undelivered(bundle, "disk", 10 * SECOND_US)]
    assert way.uplinks.seen["refused disk"] == 2


def test_a_second_answer_to_a_post_is_dropped(way: Way) -> None:
    way.send(partial())
    way.settle(1)
    way.answer(reply())
    way.answer(reply())
    way.settle()
    assert way.arrived(way.down) == [reply()]


def test_a_post_without_an_answer_is_undelivered_after_the_timeout(way: Way) -> None:
    way.send(partial())
    way.settle(14.9)
    assert way.down == []
    way.settle(1)
    assert way.arrived(way.down) == [Undelivered(partial(), "no answer in time", SECOND_US)]
    way.answer(reply())
    way.settle()
    assert way.down == []
    assert way.uplinks.seen["post undelivered"] == 1


def test_a_post_is_refused_sooner_where_nobody_listens(way: Way) -> None:
    way.line.cut = True
    way.send(partial())
    way.settle(1.1)
    assert way.arrived(way.down) == [Undelivered(partial(), "no answer in time", SECOND_US)]
    assert way.up == []


def test_nothing_passes_a_cut_line_in_either_direction(way: Way) -> None:
    way.send(SUBSCRIBE)
    way.send(partial())
    way.settle(1)
    way.arrived(way.up)
    way.arrived(way.down)
    way.line.cut = True
    way.uplinks.break_line(way.line)
    way.answer(reply())
    way.answer(receipts())
    way.settle(5)
    assert way.arrived(way.down) == [LinkDown()]
    assert way.arrived(way.up) == [LinkDown()]
    way.settle()
    assert way.arrived(way.down) == [Undelivered(partial(), "no answer in time", SECOND_US)]


@pytest.mark.parametrize(("loss", "repeat"), [(0.3, 0.0), (0.0, 0.3)])
def test_posts_are_lost_and_repeated_as_often_as_the_link_says(loss: float, repeat: float) -> None:
    link = fair_link()
    link.loss, link.repeat = loss, repeat
    way = Way(link)
    for number in range(1, 501):
        way.send(msgspec.structs.replace(partial(), id=f"gw-1-1-{number}"))
    way.settle(10)
    lost, repeated = way.uplinks.seen["lost"], way.uplinks.seen["repeated"]
    assert len(way.up) == 500 - lost + repeated
    assert lost == pytest.approx(500 * loss, rel=0.2)
    assert repeated == pytest.approx(500 * repeat, rel=0.2)


def test_an_answer_may_be_lost_too() -> None:
    way = Way()
    way.send(partial())
    way.settle(1)
    way.line.link.loss = 0.999999
    way.answer(reply())
    way.settle(30)
    assert way.arrived(way.down) == [Undelivered(partial(), "no answer in time", SECOND_US)]


def test_posts_overtake_one_another_and_the_stream_does_not() -> None:
    link = fair_link()
    link.reorder_us = SECOND_US
    way = Way(link)
    way.send(SUBSCRIBE)
    way.settle(1)
    way.arrived(way.up)
    way.arrived(way.down)
    for number in range(1, 31):
        way.send(msgspec.structs.replace(partial(), id=f"gw-1-1-{number}"))
        way.answer(receipts(number))
    way.settle(5)
    posts = [int(message.id.rpartition("-")[2]) for message in way.arrived(way.up)]
    assert sorted(posts) == list(range(1, 31))
    assert posts != sorted(posts)
    assert way.arrived(way.down) == [receipts(number) for number in range(1, 31)]


def test_an_answer_to_a_former_life_is_not_heard(way: Way) -> None:
    way.send(partial())
    way.settle(1)
    way.uplinks.gateway_died(way.line)
    way.start_gateway()
    way.answer(reply())
    way.settle()
    assert way.down == []


# Blobs.


def test_blobs_are_served_and_missing_ones_named(way: Way) -> None:
    way.send(BlobsWanted(model=MODEL, digests=[DIGEST, "b" * 32]))
    way.settle()
    missing = Undelivered(BlobsWanted(model=MODEL, digests=["b" * 32]), "not found")
    assert way.arrived(way.down) == [
        BlobPart(digest=DIGEST, index=0, count=1, body=b"unit"),
        missing,
    ]


def test_no_blob_passes_a_cut_line(way: Way) -> None:
    way.line.cut = True
    way.send(BlobsWanted(model=MODEL, digests=[DIGEST]))
    way.settle()
    assert way.arrived(way.down) == [
        Undelivered(BlobsWanted(model=MODEL, digests=[DIGEST]), "not found")
    ]


# The stream.


def test_the_stream_opens_with_the_subscription_and_carries_in_order(way: Way) -> None:
    way.answer(receipts(0))
    way.send(SUBSCRIBE)
    way.settle(1)
    assert way.arrived(way.up) == [SUBSCRIBE]
    for seq in range(1, 20):
        way.answer(receipts(seq))
    way.settle()
    assert way.arrived(way.down) == [LinkUp(), *(receipts(seq) for seq in range(1, 20))]


def test_both_ends_hear_of_a_broken_stream_and_what_was_on_it_is_lost(way: Way) -> None:
    way.send(SUBSCRIBE)
    way.settle(1)
    way.arrived(way.up)
    way.arrived(way.down)
    way.answer(receipts())
    way.uplinks.break_line(way.line)
    way.answer(receipts())
    way.settle()
    assert way.arrived(way.down) == [LinkDown()]
    assert way.arrived(way.up) == [LinkDown()]


def test_a_new_stream_replaces_the_old_one_in_silence(way: Way) -> None:
    for _ in range(2):
        way.send(SUBSCRIBE)
        way.settle(1)
    assert way.arrived(way.up) == [SUBSCRIBE, SUBSCRIBE]
    assert way.arrived(way.down) == [LinkUp(), LinkUp()]


def test_a_dead_aggregator_ends_streams_and_takes_nothing(way: Way) -> None:
    way.send(SUBSCRIBE)
    way.settle(1)
    way.arrived(way.up)
    way.arrived(way.down)
    way.uplinks.aggregator_died()
    way.settle(1)
    assert way.arrived(way.down) == [LinkDown()]
    way.send(SUBSCRIBE)
    way.send(partial())
    way.settle(5)
    assert way.arrived(way.down) == [
        LinkDown(),
        Undelivered(partial(), "no answer in time", SECOND_US),
    ]
    way.start_aggregator()
    way.send(SUBSCRIBE)
    way.settle(1)
    assert way.arrived(way.down) == [LinkUp()]
    assert way.arrived(way.up) == [SUBSCRIBE]


def test_the_aggregator_hears_of_a_dead_gateway(way: Way) -> None:
    way.send(SUBSCRIBE)
    way.settle(1)
    way.arrived(way.up)
    way.arrived(way.down)
    way.uplinks.gateway_died(way.line)
    way.settle()
    assert way.arrived(way.up) == [LinkDown()]
    assert way.down == []


# Time and bytes.


def test_posts_and_answers_take_the_lines_rate_and_latency() -> None:
    link = LinkModel(
        5_000, up_bps=80_000, down_bps=8_000, loss=0, repeat=0, reorder_us=0, trace=None
    )
    way = Way(link)
    size = len(encode(partial())) + REQUEST_BYTES
    way.send(partial())
    way.settle(5)
    assert way.up == [(size * 100 + 5_000, partial())]
    way.answer(reply())
    answered_us = way.loop.now_us
    way.settle(5)
    answer_bytes = len(encode(reply()))
    assert way.down == [(answered_us + answer_bytes * 1_000 + 5_000, reply())]
    assert way.line.meter() == {"http_bytes_up": size, "http_bytes_down": answer_bytes}


def test_a_slow_line_has_its_own_time_for_a_large_post() -> None:
    link = fair_link()
    link.up_bps = 50.0
    way = Way(link)
    way.send(partial())
    own_s = way.line.up_free_us / SECOND_US
    assert own_s > 30
    way.settle(own_s + 14)
    assert way.down == []
    way.settle(2)
    assert way.arrived(way.down) == [Undelivered(partial(), "no answer in time", SECOND_US)]
