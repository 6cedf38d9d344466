"""Misbehaving peers on loopback: a broker that follows a script, and a slow wire."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from hedgerow.core.config import BrokerConfig
from tests.contract.brokers import Watched

CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9


def packet(kind: int, body: bytes, flags: int = 0) -> bytes:
    length = bytearray()
    rest = len(body)
    while rest > 127:
        length.append(rest % 128 | 128)
        rest //= 128
    return bytes([kind << 4 | flags, *length, rest]) + body


def publish_packet(topic: str, payload: bytes, mid: int, *, version5: bool = True) -> bytes:
    name = topic.encode()
    properties = b"\x00" if version5 else b""
    head = len(name).to_bytes(2, "big") + name + mid.to_bytes(2, "big")
    return packet(PUBLISH, head + properties + payload, flags=2)


@dataclass
class Client:
    """One connection as the fake broker sees it."""

    writer: asyncio.StreamWriter
    connect: bytes = b""
    publishes: list[tuple[int, bytes]] = field(default_factory=list)
    unacknowledged: list[int] = field(default_factory=list)
    most_unacknowledged: int = 0
    acknowledged: list[int] = field(default_factory=list)

    def ack(self, count: int) -> None:
        for mid in self.unacknowledged[:count]:
            self.writer.write(packet(PUBACK, mid.to_bytes(2, "big")))
        del self.unacknowledged[:count]


class FakeBroker(Watched):
    """Answers CONNECT with `connack` and SUBSCRIBE with success; everything else is the test's.

    `on_subscribed`: raw bytes sent after each SUBACK. An empty `connack` closes the connection.
    """

    def __init__(self, connack: bytes, on_subscribed: bytes = b"") -> None:
        super().__init__()
        self.connack = connack
        self.on_subscribed = on_subscribed
        self.clients: list[Client] = []
        self.config = BrokerConfig()

    @property
    def last(self) -> Client:
        return self.clients[-1]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        client = Client(writer)
        self.clients.append(client)
        try:
            while True:
                first = (await reader.readexactly(1))[0]
                length = shift = 0
                while True:
                    byte = (await reader.readexactly(1))[0]
                    length |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                self._take(client, first, await reader.readexactly(length))
                self.changed()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.changed()
            writer.close()

    def _take(self, client: Client, first: int, body: bytes) -> None:
        kind = first >> 4
        if kind == CONNECT:
            client.connect = body
            if not self.connack:
                client.writer.close()
            client.writer.write(self.connack)
        elif kind == SUBSCRIBE:
            answer = packet(SUBACK, body[:2] + b"\x00\x01")
            client.writer.write(answer + self.on_subscribed)
        elif kind == PUBACK:
            client.acknowledged.append(int.from_bytes(body[:2], "big"))
        elif kind == PUBLISH:
            client.publishes.append((first, body))
            start = 2 + int.from_bytes(body[:2], "big")
            client.unacknowledged.append(int.from_bytes(body[start : start + 2], "big"))
            most = max(client.most_unacknowledged, len(client.unacknowledged))
            client.most_unacknowledged = most


def connack5(properties: bytes = b"") -> bytes:
    return packet(CONNACK, b"\x00\x00" + bytes([len(properties)]) + properties)


@asynccontextmanager
async def fake_broker(
    connack: bytes, *, on_subscribed: bytes = b"", tls: ssl.SSLContext | None = None
) -> AsyncIterator[FakeBroker]:
    fake = FakeBroker(connack, on_subscribed)
    server = await asyncio.start_server(fake.serve, "127.0.0.1", 0, ssl=tls)
    fake.config = BrokerConfig(kind="external", port=server.sockets[0].getsockname()[1])
    try:
        yield fake
    finally:
        server.close()
        for client in fake.clients:
            client.writer.close()


@asynccontextmanager
async def slow_uplink(broker: BrokerConfig, bytes_per_s: int) -> AsyncIterator[BrokerConfig]:
    """A wire to `broker` that carries `bytes_per_s` towards it, with small buffers."""
    slice_s = 0.05
    tasks: set[asyncio.Task[None]] = set()

    async def carry(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, most: int, pause_s: float
    ) -> None:
        try:
            while data := await source.read(most):
                sink.write(data)
                await sink.drain()
                await asyncio.sleep(pause_s)
        except ConnectionError:
            pass
        finally:
            sink.close()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_broker, from_broker = await asyncio.open_connection(broker.host, broker.port)
        slow = carry(reader, from_broker, int(bytes_per_s * slice_s), slice_s)
        for work in (slow, carry(to_broker, writer, 65536, 0)):
            task = asyncio.create_task(work)
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=4096)
    port = server.sockets[0].getsockname()[1]
    try:
        yield BrokerConfig(kind="external", port=port, protocol=broker.protocol)
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
