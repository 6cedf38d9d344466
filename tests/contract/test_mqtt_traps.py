"""What goes wrong with paho on asyncio, each thing provoked once."""

import asyncio
import ssl
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import pytest

from hedgerow.core.config import BrokerConfig
from hedgerow.runtime.broker import RunningBroker
from tests.contract.brokers import peer, require, running_broker
from tests.contract.certificates import Certificates
from tests.contract.fakes import (
    CONNECT,
    PUBACK,
    PUBLISH,
    SUBSCRIBE,
    Client,
    connack5,
    fake_broker,
    packet,
    publish_packet,
    slow_uplink,
)

RECEIVE_MAXIMUM_3 = b"\x21\x00\x03"
PACKET_MAXIMUM_1000 = b"\x27\x00\x00\x03\xe8"
TOPIC_ALIAS_MAXIMUM_10 = b"\x22\x00\x0a"


@pytest.mark.parametrize(("properties", "window"), [(RECEIVE_MAXIMUM_3, 3), (b"", 10)])
async def test_1_never_more_in_flight_than_the_broker_takes(properties: bytes, window: int) -> None:
    async with (
        fake_broker(connack5(properties)) as fake,
        peer(fake.config, "one") as one,
    ):
        for number in range(25):
            assert one.session.publish("t", b"%d" % number)
        await fake.until(lambda: len(fake.last.unacknowledged) == window)
        # The connection is lost with messages in flight; nothing of them may come back unasked.
        fake.last.writer.close()
        await one.until(lambda: one.ups == 2)
        assert one.counts["mqtt_dropped_queued"] == 25 - window
        assert one.counts["mqtt_dropped_unacknowledged"] == window
        for number in range(25):
            assert one.session.publish("t", b"again %d" % number)
        again = fake.last
        for done in range(window, 25 + window, window):
            await fake.until(partial(_received, again, min(done, 25)))
            again.ack(window)
        assert [client.most_unacknowledged for client in fake.clients] == [window, window]
        assert all(b"again" in body for _, body in again.publishes)


async def test_2_a_message_the_broker_would_not_take_is_refused_before() -> None:
    async with (
        fake_broker(connack5(PACKET_MAXIMUM_1000)) as fake,
        peer(fake.config, "one") as one,
    ):
        assert not one.session.publish("t", b"x" * 1000)
        assert not one.session.publish("t", b"x" * 1000, retain=True)
        assert one.session.publish("t", b"x" * 900)
        await fake.until(lambda: len(fake.last.publishes) == 1)
        assert one.counts["mqtt_dropped_oversize"] == 2
        assert one.ups == 1
        fake.last.ack(1)


async def test_2_what_was_remembered_offline_is_checked_again_once_the_limit_is_known() -> None:
    async with (
        fake_broker(connack5(PACKET_MAXIMUM_1000)) as fake,
        peer(fake.config, "one", wait=False) as one,
    ):
        assert one.session.publish("large", b"x" * 1000, retain=True)
        assert one.session.publish("small", b"x", retain=True)
        await fake.until(lambda: bool(fake.clients) and len(fake.last.publishes) == 1)
        assert b"small" in fake.last.publishes[0][1]
        assert one.counts["mqtt_dropped_oversize"] == 1
        fake.last.ack(1)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
async def test_2_mosquitto_keeps_the_connection_of_a_client_that_offers_too_much(
    tmp_path: Path, protocol: Literal["5", "3.1.1"]
) -> None:
    require("mosquitto")
    config = BrokerConfig(kind="mosquitto", max_packet_bytes=4096, protocol=protocol)
    async with (
        running_broker(config, tmp_path) as broker,
        peer(broker.config, "one", "t") as one,
    ):
        assert not one.session.publish("t", b"x" * 4096)
        largest = b"x" * (4096 - 10 - len("t"))
        assert one.session.publish("t", largest)
        await one.until(lambda: one.payloads == [largest])
        assert one.ups == 1


async def test_3_chunks_pass_a_slow_uplink_that_one_large_message_never_passes(
    mosquitto: RunningBroker,
) -> None:
    async with slow_uplink(mosquitto.config, bytes_per_s=8192) as slow:
        config = msgspec.structs.replace(slow, keepalive_s=2, chunk_bytes=4096)
        async with peer(config, "one", "t") as one:
            for number in range(10):
                assert one.session.publish("t", bytes([number]) * 4096)
            await one.until(lambda: len(one.messages) == 10 or bool(one.downs), timeout_s=30)
            assert not one.downs
            # The same bytes at once: no whole packet arrives within the keepalive.
            assert one.session.publish("t", b"x" * 40960)
            await one.until_down()
            assert len(one.messages) == 10


async def test_3_the_bytes_in_flight_are_bounded() -> None:
    async with fake_broker(connack5()) as fake:
        config = msgspec.structs.replace(fake.config, chunk_bytes=4096)
        async with peer(config, "one") as one:
            for _ in range(9):
                assert one.session.publish("t", b"x" * 4000)
            for done in (4, 8, 9):
                await fake.until(partial(_received, fake.last, done))
                fake.last.ack(4)
            assert fake.last.most_unacknowledged == 4


async def test_4_what_is_published_while_offline_is_refused_and_never_sent_later() -> None:
    async with fake_broker(connack5()) as fake, peer(fake.config, "one", wait=False) as one:
        assert not one.session.publish("t", b"too early")
        await one.until(lambda: one.ups == 1)
        assert one.session.publish("t", b"in time")
        await fake.until(lambda: bool(fake.last.publishes))
        assert b"in time" in fake.last.publishes[0][1]
        assert one.counts["mqtt_dropped_offline"] == 1
        fake.last.ack(1)


async def test_5_messages_coalesced_in_one_tls_record_all_arrive(
    certificates: Certificates,
) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificates.server, certificates.server_key)
    burst = b"".join(publish_packet("t", b"%d" % number, number + 1) for number in range(300))
    assert len(burst) < 16384
    # Trap 8 too: server and client share this loop, so a handshake that blocked it would fail.
    async with fake_broker(connack5(), on_subscribed=burst, tls=server) as fake:
        config = msgspec.structs.replace(fake.config, tls=True, ca_file=certificates.ca)
        async with peer(config, "one", "t") as one:
            await one.until(lambda: len(one.messages) == 300)
            assert one.payloads == [b"%d" % number for number in range(300)]
            await fake.until(lambda: fake.last.acknowledged == list(range(1, 301)))


async def test_6_the_largest_packet_is_announced_and_no_topic_alias_is_used() -> None:
    async with (
        fake_broker(connack5(TOPIC_ALIAS_MAXIMUM_10)) as fake,
        peer(fake.config, "one") as one,
    ):
        one.session.publish("t", b"1")
        one.session.publish("t", b"2")
        await fake.until(lambda: len(fake.last.publishes) == 2)
        body = fake.last.connect
        properties = body[11 : 11 + body[10]]
        assert body[6] == 5
        assert body[7] & 0x02, "not a clean start"
        assert properties == b"\x27" + fake.config.max_packet_bytes.to_bytes(4, "big")
        # QoS 1, the whole topic, a packet id, no properties: and no QoS 0 queue (trap 7).
        for (first, publish), payload in zip(fake.last.publishes, (b"1", b"2"), strict=True):
            assert first == PUBLISH << 4 | 0x02
            assert publish[:3] == b"\x00\x01t"
            assert publish[5:] == b"\x00" + payload
        fake.last.ack(2)


async def test_7_the_queue_is_bounded_and_counts_what_it_refuses() -> None:
    async with fake_broker(connack5()) as fake, peer(fake.config, "one") as one:
        accepted = sum(one.session.publish("t", b"x") for _ in range(6000))
        assert 4096 <= accepted < 6000
        assert one.counts["mqtt_dropped_overflow"] == 6000 - accepted
        assert not one.session.publish("t", b"x" * 900_000)
        fake.last.writer.close()
        await one.until(lambda: bool(one.downs))


async def test_9_every_connection_subscribes_anew() -> None:
    burst = publish_packet("t", b"hello", 1)
    async with (
        fake_broker(connack5(), on_subscribed=burst) as fake,
        peer(fake.config, "one", "t") as one,
    ):
        await one.until(lambda: one.payloads == [b"hello"])
        fake.last.writer.close()
        await one.until(lambda: one.payloads == [b"hello", b"hello"])
        assert one.ups == 2


async def test_10_a_slow_reader_gets_more_than_the_1000_messages_mosquitto_would_keep(
    mosquitto: RunningBroker,
) -> None:
    count = 1500
    reader, writer = await asyncio.open_connection(mosquitto.host, mosquitto.port)
    name = b"\x00\x04slow"
    writer.write(packet(CONNECT, b"\x00\x04MQTT\x04\x02\x00\x00" + name))
    writer.write(packet(SUBSCRIBE, b"\x00\x01\x00\x01t\x01", flags=2))
    await reader.readexactly(4 + 5)
    async with peer(mosquitto.config, "sender", "t") as sender:
        for number in range(count):
            assert sender.session.publish("t", number.to_bytes(2, "big"))
        await sender.until(lambda: len(sender.messages) == count)
    received: list[int] = []
    async with asyncio.timeout(20):
        while len(received) < count:
            head = await reader.readexactly(2)
            body = await reader.readexactly(head[1])
            received.append(int.from_bytes(body[5:], "big"))
            writer.write(packet(PUBACK, body[3:5]))
    writer.close()
    assert received == list(range(count))


async def test_a_refused_protocol_version_is_remembered() -> None:
    refuse5 = b"\x20\x02\x00\x01"
    accept3 = b"\x20\x02\x00\x00"
    async with fake_broker(refuse5) as fake, peer(fake.config, "one", wait=False) as one:
        await fake.until(lambda: len(fake.clients) == 1)
        fake.connack = accept3
        await one.until(lambda: one.ups == 1)
        fake.last.writer.close()
        await one.until(lambda: one.ups == 2)
        assert [client.connect[6] for client in fake.clients] == [5, 4, 4]


async def test_a_broker_that_hangs_up_on_mqtt_5_is_asked_with_3_1_1() -> None:
    async with fake_broker(b"") as fake, peer(fake.config, "one", wait=False) as one:
        await one.until(lambda: bool(one.downs))
        assert "without an answer" in one.downs[0]
        fake.connack = b"\x20\x02\x00\x00"
        await fake.until(lambda: any(client.connect[6:7] == b"\x04" for client in fake.clients))


def _received(client: Client, count: int) -> bool:
    return len(client.publishes) == count


def _malformed() -> list[bytes]:
    return [
        b"\xf0\x00",
        packet(PUBLISH, b"\x00\xff", flags=2),
        packet(PUBLISH, b"\x00\x01\xff\x00\x01\x00x", flags=2),
        packet(PUBACK, b""),
        b"\x30\xff\xff\xff\xff\xff",
    ]


@pytest.mark.parametrize("junk", _malformed())
async def test_malformed_packets_end_the_connection_and_not_the_session(junk: bytes) -> None:
    async with (
        fake_broker(connack5(), on_subscribed=junk) as fake,
        peer(fake.config, "one", "t") as one,
    ):
        await fake.until(lambda: bool(fake.last.acknowledged) or len(fake.clients) > 1)
        fake.on_subscribed = publish_packet("t", b"fine", 1)
        fake.last.writer.close()
        await one.until(lambda: b"fine" in one.payloads)
