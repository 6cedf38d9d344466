"""The session against real brokers: delivery, reconnection, retained memory, last will."""

import asyncio
import os
from pathlib import Path

import msgspec
import pytest
import uvloop

from hedgerow.core.config import BrokerConfig
from hedgerow.runtime.broker import RunningBroker
from hedgerow.runtime.mqtt import Will
from tests.contract.brokers import Peer, kill, peer, require, running_broker, subscribed


async def test_messages_arrive_once_and_in_order(broker: RunningBroker) -> None:
    async with (
        peer(broker.config, "receiver", "t/#") as receiver,
        peer(broker.config, "sender") as sender,
    ):
        await subscribed(receiver, sender, "t/probe")
        before = receiver.session.bytes_down
        first = len(receiver.messages)
        sent = [f"{number}".encode() * 100 for number in range(200)]
        for payload in sent:
            assert sender.session.publish("t/x", payload)
        await receiver.until(lambda: len(receiver.messages) >= first + len(sent))
        assert receiver.payloads[first:] == sent
        expected = sum(len(payload) + len("t/x") for payload in sent)
        assert receiver.session.bytes_down - before == expected
        assert sender.session.bytes_up >= expected
        assert sender.session.connected
    assert not sender.session.connected


async def test_a_failing_handler_is_counted_and_the_next_message_arrives(
    broker: RunningBroker,
) -> None:
    async with peer(broker.config, "both", "t") as both:
        both.fail_on = b"bad"
        both.session.publish("t", b"bad")
        both.session.publish("t", b"good")
        await both.until(lambda: b"good" in both.payloads)
        assert both.counts["mqtt_handler_errors"] == 1
        assert both.payloads == [b"bad", b"good"]


async def test_unsubscribed_topics_stay_silent_over_a_reconnection(broker: RunningBroker) -> None:
    async with peer(broker.config, "one", "keep", "leave") as one:
        one.session.unsubscribe("leave")
        one.session.unsubscribe("leave")
        one.session.subscribe("keep")
        await kill(broker)
        await broker.restart()
        await one.until(lambda: one.ups == 2)
        one.session.publish("leave", b"unheard")
        one.session.publish("keep", b"heard")
        await one.until(lambda: b"heard" in one.payloads)
        assert one.payloads == [b"heard"]


async def test_after_kill_9_the_session_comes_back_and_publishes_what_was_retained(
    broker: RunningBroker,
) -> None:
    port = broker.port
    async with peer(broker.config, "source", "echo") as source:
        source.session.publish("state", b"old", retain=True)
        source.session.publish("state", b"new", retain=True)
        source.session.publish("cleared", b"x", retain=True)
        source.session.publish("echo", b"1")
        await source.until(lambda: b"1" in source.payloads)
        source.session.publish("cleared", b"", retain=True)
        source.session.publish("echo", b"2")
        await source.until(lambda: b"2" in source.payloads)
        await kill(broker)
        await source.until(lambda: bool(source.downs))
        assert not source.session.connected
        assert not source.session.publish("echo", b"refused while offline")
        assert source.session.publish("offline", b"remembered", retain=True)
        await broker.restart()
        assert broker.port == port
        await source.until(lambda: source.ups == 2)
        assert source.counts["mqtt_reconnects"] == 1
        assert source.counts["mqtt_dropped_offline"] == 1
        source.session.publish("echo", b"3")
        await source.until(lambda: b"3" in source.payloads)
        async with peer(broker.config, "late", "state", "cleared", "offline") as late:
            await late.until(lambda: len(late.messages) >= 2)
            assert sorted(late.messages) == [
                ("offline", b"remembered", True),
                ("state", b"new", True),
            ]


async def test_the_will_is_sent_for_a_crash_and_not_for_a_goodbye(broker: RunningBroker) -> None:
    async with peer(broker.config, "watcher", "will/+", "probe") as watcher:
        await subscribed(watcher, watcher, "probe")
        async with peer(broker.config, "polite", will=Will("will/polite", b"lost")):
            pass
        crashing = Peer(broker.config, "crashing", Will("will/crashing", b"lost"))
        running = asyncio.create_task(crashing.session.run())
        await crashing.until(lambda: crashing.ups == 1)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await watcher.until(
            lambda: any(topic == "will/crashing" for topic, _, _ in watcher.messages)
        )
        assert not any(topic == "will/polite" for topic, _, _ in watcher.messages)
        async with peer(broker.config, "late", "will/+") as late:
            await late.until(lambda: bool(late.messages))
            assert late.messages == [("will/crashing", b"lost", True)]


async def test_close_sends_what_is_queued(broker: RunningBroker) -> None:
    async with peer(broker.config, "receiver", "t") as receiver:
        await subscribed(receiver, receiver, "t")
        seen = len(receiver.messages)
        async with peer(broker.config, "sender") as sender:
            for number in range(100):
                assert sender.session.publish("t", b"%d" % number)
        await receiver.until(lambda: len(receiver.messages) >= seen + 100)
        assert receiver.payloads[seen:] == [b"%d" % number for number in range(100)]


async def test_close_ends_a_session_that_never_connected() -> None:
    async with peer(BrokerConfig(kind="external", port=1), "lonely", wait=False) as lonely:
        await lonely.until(lambda: bool(lonely.downs))
        assert "cannot be reached" in lonely.downs[0]
        await lonely.until(lambda: lonely.counts["mqtt_connect_failures"] >= 3)
    assert len(lonely.downs) == 1


async def test_a_topic_with_a_wildcard_is_our_own_fault(broker: RunningBroker) -> None:
    async with peer(broker.config, "one") as one:
        for topic in ("", "a/+", "#", "nul\0"):
            with pytest.raises(ValueError, match="topic"):
                one.session.publish(topic, b"x")


async def test_file_descriptors_beyond_select_work(mosquitto: RunningBroker) -> None:
    filler = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while filler[-1] < 1030:
            filler.append(os.dup(filler[0]))
        async with peer(mosquitto.config, "high", "t") as high:
            high.session.publish("t", b"x")
            await high.until(lambda: high.payloads == [b"x"])
    finally:
        for descriptor in filler:
            os.close(descriptor)


def test_the_session_works_on_uvloop(tmp_path: Path) -> None:
    require("mosquitto")

    async def scenario() -> None:
        async with (
            running_broker(BrokerConfig(kind="mosquitto"), tmp_path) as broker,
            peer(broker.config, "one", "t") as one,
        ):
            one.session.publish("t", b"x" * 300_000)
            await one.until(lambda: one.payloads == [b"x" * 300_000])
            await kill(broker)
            await broker.restart()
            await one.until(lambda: one.ups == 2)
            one.session.publish("t", b"y")
            await one.until(lambda: b"y" in one.payloads)

    uvloop.run(scenario())


@pytest.mark.parametrize("protocol", ["5", "3.1.1", "auto"])
async def test_mosquitto_takes_every_protocol_setting(
    mosquitto: RunningBroker, protocol: str
) -> None:
    config = msgspec.structs.replace(mosquitto.config, protocol=protocol)
    async with peer(config, "one", "t") as one:
        one.session.publish("t", b"x")
        await one.until(lambda: one.payloads == [b"x"])


async def test_auto_falls_back_to_3_1_1_where_mqtt_5_gets_no_answer(tmp_path: Path) -> None:
    async with running_broker(BrokerConfig(kind="embedded"), tmp_path) as broker:
        config = msgspec.structs.replace(broker.config, protocol="auto")
        async with peer(config, "one", "t", will=Will("w", b"lost")) as one:
            one.session.publish("t", b"x")
            await one.until(lambda: one.payloads == [b"x"])
            await kill(broker)
            await broker.restart()
            await one.until(lambda: one.ups == 2)
