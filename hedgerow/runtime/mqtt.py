"""The MQTT session of a process: bytes on topics, over as many connections as it takes.

Every connection starts clean. What a lost connection had not delivered is dropped and counted, for
the layers above offer it again; only the last retained payload of each topic is published anew.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from hedgerow.core.config import BrokerConfig
from hedgerow.runtime.mqtt_options import (
    Backoff,
    BrokerRefusedError,
    ProtocolVersion,
    Retry,
    Will,
    tls_context,
)
from hedgerow.runtime.mqtt_queue import Message, Outgoing, QueueLimits
from hedgerow.runtime.mqtt_wire import Wire, WireEvents

__all__ = ["Backoff", "MqttSession", "Will"]

_logger = logging.getLogger("hedgerow.mqtt")
_WINDOW_MESSAGES = 10
# On a slow link everything urgent, pings included, waits behind what is in flight.
_WINDOW_CHUNKS = 4
_FLUSH_TIMEOUT_S = 2.0
_GOODBYE_TIMEOUT_S = 1.0


class MqttSession:
    """A connection that comes back, a bounded queue and the subscriptions that outlive both.

    `on_message` takes topic, payload and retain flag on the loop; the broker gets its
    acknowledgement after it has returned or raised. `on_up` is called after every connection,
    `on_down` when one is lost and once for each new reason why none comes about. `record` takes a
    counter's name and an amount. `bytes_up` and `bytes_down` count topics and payloads.
    """

    def __init__(
        self,
        broker: BrokerConfig,
        *,
        client_id: str,
        will: Will | None,
        on_message: Callable[[str, bytes, bool], None],
        on_up: Callable[[], None],
        on_down: Callable[[str], None],
        record: Callable[[str, int], None],
        backoff: Backoff | None = None,
    ) -> None:
        self._broker = broker
        self._client_id = client_id
        self._will = will
        self._on_message = on_message
        self._on_up = on_up
        self._on_down = on_down
        self._record = record
        self._tls = tls_context(broker)
        self._version: ProtocolVersion = "3.1.1" if broker.protocol == "3.1.1" else "5"
        self._version_settled = broker.protocol != "auto"
        self._retry = Retry(backoff or Backoff(), client_id)
        self._last_failure = ""
        self._was_up = False
        self._filters: dict[str, None] = {}
        self._wire: Wire | None = None
        self._outgoing = Outgoing(QueueLimits(), record)
        self._set_bounds(_WINDOW_MESSAGES, broker.max_packet_bytes)
        self._idle = asyncio.Event()
        self._closing = asyncio.Event()
        self._finished = asyncio.Event()
        self._finished.set()
        self.bytes_up = 0
        self.bytes_down = 0

    @property
    def connected(self) -> bool:
        """Whether the broker has accepted us and the connection is not known to be lost."""
        return self._wire is not None and self._wire.alive

    async def run(self) -> None:
        """Connect and stay connected until `close`.

        Cancelling it drops the connection without a goodbye: the broker publishes the last will.
        """
        self._finished.clear()
        try:
            while not self._closing.is_set():
                pause_s = await self._live_once()
                await _unless(self._closing, asyncio.sleep(pause_s))
        finally:
            self._finished.set()

    async def close(self) -> None:
        """Send what is queued, for at most 2 s, disconnect without the last will and end `run`."""
        if self.connected:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_TIMEOUT_S):
                    await self._idle.wait()
        self._closing.set()
        if self._wire is not None:
            await self._wire.disconnect(_GOODBYE_TIMEOUT_S)
        await self._finished.wait()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> bool:
        """Queue a message with QoS 1; returns False, and counts why, when it is refused.

        A retained message is accepted offline too; it is remembered and published after every
        reconnection, until an empty payload clears the topic. Raises ValueError for a bad topic.
        """
        if not topic or any(sign in topic for sign in "+#\0"):
            raise ValueError(f"topic {topic!r} must not be empty or hold '+', '#' or NUL")
        accepted = self._outgoing.offer(Message(topic, payload, retain), connected=self.connected)
        self._send_more()
        return accepted

    def subscribe(self, topic_filter: str) -> None:
        """Receive the messages of a topic filter, over reconnections too. Idempotent."""
        if topic_filter in self._filters:
            return
        self._filters[topic_filter] = None
        if self._wire is not None and self._wire.alive:
            self._wire.subscribe([topic_filter])

    def unsubscribe(self, topic_filter: str) -> None:
        """Stop receiving the messages of a topic filter. Idempotent."""
        if topic_filter not in self._filters:
            return
        del self._filters[topic_filter]
        if self._wire is not None and self._wire.alive:
            self._wire.unsubscribe(topic_filter)

    async def _live_once(self) -> float:
        """Make one connection and live with it; returns the pause before the next, in seconds."""
        wire = Wire(
            self._broker,
            client_id=self._client_id,
            will=self._will,
            version=self._version,
            tls=self._tls,
            events=WireEvents(
                message=self._receive, acknowledged=self._acknowledged, record=self._record
            ),
        )
        try:
            await _unless(self._closing, wire.open())
            if not self._closing.is_set():
                return await self._serve(wire)
            await wire.disconnect(_GOODBYE_TIMEOUT_S)
        except BrokerRefusedError as refusal:
            return self._refused(refusal)
        except OSError as error:
            self._failed(f"the broker cannot be reached: {error}")
            return self._retry.failed()
        finally:
            wire.drop()
        return 0.0

    async def _serve(self, wire: Wire) -> float:
        """Bring the session up and wait for the connection's end; returns the pause after it."""
        loop = asyncio.get_running_loop()
        since = loop.time()
        self._record("mqtt_reconnects" if self._was_up else "mqtt_connects", 1)
        self._was_up = self._version_settled = True
        self._last_failure = ""
        self._set_bounds(wire.receive_maximum, wire.packet_bytes)
        self._wire = wire
        try:
            wire.subscribe(list(self._filters))
            self._on_up()
            self._send_more()
            text = await wire.closed()
        finally:
            self._wire = None
            self._outgoing.disconnected()
        if not self._closing.is_set():
            self._record("mqtt_disconnects", 1)
            _logger.warning("%s: %s", self._client_id, text)
            self._on_down(text)
        return self._retry.lost(loop.time() - since)

    def _refused(self, refusal: BrokerRefusedError) -> float:
        """Try the other protocol version if that may help; returns the pause in seconds."""
        if not self._version_settled and (refusal.wrong_protocol or refusal.silent):
            self._version = "3.1.1" if self._version == "5" else "5"
            if refusal.wrong_protocol and self._version == "3.1.1":
                _logger.info("%s: the broker does not speak MQTT 5", self._client_id)
                return 0.0
        self._failed(str(refusal))
        return self._retry.denied() if refusal.denied else self._retry.failed()

    def _failed(self, text: str) -> None:
        self._record("mqtt_connect_failures", 1)
        if text != self._last_failure:
            self._last_failure = text
            _logger.warning("%s: %s", self._client_id, text)
            self._on_down(text)

    def _set_bounds(self, receive_maximum: int, packet_bytes: int) -> None:
        self._outgoing.set_bounds(
            window_messages=min(_WINDOW_MESSAGES, receive_maximum),
            window_bytes=_WINDOW_CHUNKS * self._broker.chunk_bytes,
            packet_bytes=packet_bytes,
        )

    def _send_more(self) -> None:
        """Hand over as much as the window takes."""
        while self._wire is not None and self._wire.alive:
            message = self._outgoing.take()
            if message is None:
                break
            mid = self._wire.publish(message.topic, message.payload, retain=message.retain)
            self._outgoing.sent(mid, message)
            self.bytes_up += len(message.topic.encode()) + len(message.payload)
        if self._outgoing.idle:
            self._idle.set()
        else:
            self._idle.clear()

    def _receive(self, topic: str, payload: bytes, retain: bool) -> None:  # noqa: FBT001 - a port
        self.bytes_down += len(topic.encode()) + len(payload)
        self._on_message(topic, payload, retain)

    def _acknowledged(self, mid: int, objection: str) -> None:
        message = self._outgoing.acknowledged(mid)
        if message is not None and objection:
            self._record("mqtt_publish_refused", 1)
            _logger.warning("the broker refused a message on %r: %s", message.topic, objection)
        self._send_more()


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, but give it up when `stop` is set."""
    task = asyncio.create_task(work)
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, stopped), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    finally:
        task.cancel()
        stopped.cancel()
        await asyncio.gather(task, stopped, return_exceptions=True)
