"""One MQTT connection over paho-mqtt, from connecting to its end.

A `Wire` is thrown away with its connection, and with it whatever paho still held: paho's own
resending ignores the broker's Receive Maximum.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paho.mqtt import client as paho
from paho.mqtt.enums import LogLevel
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from hedgerow.core.config import BrokerConfig
from hedgerow.runtime.mqtt_options import (
    BrokerRefusedError,
    ProtocolVersion,
    Will,
    build_client,
    connect,
)
from hedgerow.runtime.mqtt_pump import Pump

_logger = logging.getLogger("hedgerow.mqtt")
_ANSWER_TIMEOUT_S = 10.0
# Some brokers refuse a SUBSCRIBE with more filters (AWS IoT Core).
_FILTERS_PER_PACKET = 8
_WRONG_PROTOCOL = 132
_DENIED = (134, 135, 138)


@dataclass(frozen=True, kw_only=True)
class WireEvents:
    """Where a wire reports, always on the loop's thread.

    `message` takes topic, payload and retain flag; the broker gets its acknowledgement when it has
    returned. `acknowledged` takes a packet id and the broker's objection, "" when there is none.
    `record` takes a counter's name and an amount.
    """

    message: Callable[[str, bytes, bool], None]
    acknowledged: Callable[[int, str], None]
    record: Callable[[str, int], None]


class Wire:
    """A connection to the broker.

    `receive_maximum` (messages) and `packet_bytes` are what the broker accepts, known after `open`.
    """

    def __init__(
        self,
        broker: BrokerConfig,
        *,
        client_id: str,
        will: Will | None,
        version: ProtocolVersion,
        tls: ssl.SSLContext | None,
        events: WireEvents,
    ) -> None:
        loop = asyncio.get_running_loop()
        self._broker = broker
        self._events = events
        self._trouble = ""
        self._asked: dict[int, list[str]] = {}
        self._answer: asyncio.Future[BrokerRefusedError | None] = loop.create_future()
        self._over: asyncio.Future[str] = loop.create_future()
        client = build_client(broker, client_id=client_id, will=will, version=version, tls=tls)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_log = self._on_log
        self._client = client
        self._pump = Pump(client, self._broken)
        self.receive_maximum = 65535
        self.packet_bytes = broker.max_packet_bytes

    @property
    def alive(self) -> bool:
        """Whether the broker has accepted the connection and it is not over."""
        return self._answer.done() and not self._over.done()

    async def open(self) -> None:
        """Connect and wait for the broker's answer.

        Raises BrokerRefusedError when the broker says no or nothing, OSError when it cannot be
        reached.
        """
        loop = asyncio.get_running_loop()
        attempt = loop.run_in_executor(None, connect, self._client, self._broker)
        try:
            await asyncio.shield(attempt)
        except asyncio.CancelledError:
            # The thread cannot be stopped, but its socket must not stay open.
            attempt.add_done_callback(self._abandoned)
            raise
        self._pump.attach()
        await asyncio.wait((self._answer,), timeout=_ANSWER_TIMEOUT_S)
        if not self._answer.done():
            # amqtt does not even close the connection after a CONNECT of MQTT 5 with a last will.
            raise BrokerRefusedError("the broker did not answer", silent=True)
        refusal = self._answer.result()
        if refusal is not None:
            raise refusal

    async def closed(self) -> str:
        """Keep the connection alive until it ends; returns why it did."""
        while not self._over.done():
            pause_s = min(max(self._client.keepalive / 8, 0.25), 2.0)
            await asyncio.wait((self._over,), timeout=pause_s)
            self._pump.catch_up()
            self._client.loop_misc()
        return self._over.result()

    async def disconnect(self, timeout_s: float) -> None:
        """Say goodbye, so that the broker keeps the last will to itself, and close."""
        if self._client.disconnect() == paho.MQTT_ERR_SUCCESS:
            self._pump.flush()
            await asyncio.wait((self._over,), timeout=timeout_s)
        self.drop()

    def drop(self) -> None:
        """Close without a word; the broker publishes the last will. Idempotent."""
        self._pump.drop()
        self._end("closed by this side")

    def publish(self, topic: str, payload: bytes, *, retain: bool) -> int:
        """Send a QoS 1 message; returns its packet id."""
        return self._client.publish(topic, payload, qos=1, retain=retain).mid

    def subscribe(self, filters: Sequence[str]) -> None:
        """Ask for the messages of these topic filters with QoS 1."""
        for start in range(0, len(filters), _FILTERS_PER_PACKET):
            some = list(filters[start : start + _FILTERS_PER_PACKET])
            _, mid = self._client.subscribe([(name, 1) for name in some])
            if mid is not None:
                self._asked[mid] = some

    def unsubscribe(self, topic_filter: str) -> None:
        """Take one topic filter back."""
        self._client.unsubscribe(topic_filter)

    def _abandoned(self, attempt: asyncio.Future[None]) -> None:
        if attempt.exception() is None:
            self.drop()

    def _broken(self) -> None:
        self._events.record("mqtt_malformed_packets", 1)
        self.drop()

    def _end(self, text: str) -> None:
        if not self._answer.done():
            because = f" ({self._trouble})" if self._trouble else ""
            silence = f"the broker closed the connection without an answer{because}"
            self._answer.set_result(BrokerRefusedError(silence, silent=True))
        if not self._over.done():
            self._over.set_result(text)

    def _on_log(self, _client: paho.Client, _data: Any, level: int, text: str) -> None:
        if level == LogLevel.MQTT_LOG_ERR:
            self._trouble = text

    def _on_connect(
        self,
        client: paho.Client,
        _data: Any,
        _flags: paho.ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        # Formatting paho's log lines costs more than the packets they are about.
        client.on_log = None
        if self._answer.done():
            return
        self.receive_maximum = getattr(properties, "ReceiveMaximum", self.receive_maximum)
        limit = getattr(properties, "MaximumPacketSize", self.packet_bytes)
        self.packet_bytes = min(limit, self.packet_bytes)
        self._answer.set_result(_refusal(reason) if reason.is_failure else None)

    def _on_disconnect(
        self,
        _client: paho.Client,
        _data: Any,
        flags: paho.DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        by_broker = flags.is_disconnect_packet_from_server
        self._end(f"{'the broker ended' if by_broker else 'lost'} the connection: {reason}")

    def _on_message(self, client: paho.Client, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            self._events.message(message.topic, bytes(message.payload), message.retain)
        except Exception:
            _logger.exception("a message could not be handled")
            self._events.record("mqtt_handler_errors", 1)
        client.ack(message.mid, message.qos)

    def _on_publish(
        self, _client: paho.Client, _data: Any, mid: int, reason: ReasonCode, _properties: Any
    ) -> None:
        self._events.acknowledged(mid, str(reason) if reason.is_failure else "")

    def _on_subscribe(
        self, _client: paho.Client, _data: Any, mid: int, reasons: list[ReasonCode], _props: Any
    ) -> None:
        for topic_filter, reason in zip(self._asked.pop(mid, []), reasons, strict=False):
            if reason.is_failure:
                _logger.warning("the broker refused to subscribe %r: %s", topic_filter, reason)
                self._events.record("mqtt_subscribe_refused", 1)


def _refusal(reason: ReasonCode) -> BrokerRefusedError:
    denied = reason.value in _DENIED
    hint = "; check broker.username, broker.password and broker.cert_file" if denied else ""
    return BrokerRefusedError(
        f"the broker refused the connection: {reason}{hint}",
        denied=denied,
        wrong_protocol=reason.value == _WRONG_PROTOCOL,
    )
