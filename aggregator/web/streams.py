"""The version streams: one long response per gateway, fed from a bounded queue."""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from aiohttp import web

from hedgerow.core.codec import encode
from hedgerow.core.messages import Message
from hedgerow.runtime.http_wire import frame

MAX_QUEUED = 256
"""Messages for one gateway; one more ends its stream, and it subscribes again."""

CountDrop = Callable[[str], None]
"""Called with the reason of each message that is dropped."""


class Stream:
    """What still has to be written to one gateway; `ended` is set to end its response."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(MAX_QUEUED)
        self.ended = asyncio.Event()


class Streams:
    """The open streams by gateway; a gateway has one, and its newest replaces the one before."""

    def __init__(self, keepalive_s: float, count_drop: CountDrop) -> None:
        self.bytes_down = 0
        """Bytes of all frames put into streams so far."""
        self._keepalive_s = keepalive_s
        self._count_drop = count_drop
        self._open: dict[str, Stream] = {}

    def open(self, gateway: str) -> Stream:
        """Begin the gateway's stream and end an older one of the same name."""
        older = self._open.pop(gateway, None)
        if older is not None:
            older.ended.set()
        stream = self._open[gateway] = Stream()
        return stream

    def close(self, gateway: str, stream: Stream) -> bool:
        """Forget the stream; return whether it was the gateway's current one."""
        current = self._open.get(gateway) is stream
        if current:
            del self._open[gateway]
        return current

    def close_all(self) -> None:
        """End every stream."""
        for stream in self._open.values():
            stream.ended.set()

    def send(self, gateway: str, message: Message) -> None:
        """Queue a message; without a stream, or with a full one, it is dropped and counted.

        A gateway that subscribes again is told everything it lacks, so a drop loses nothing.
        """
        stream = self._open.get(gateway)
        if stream is None or stream.ended.is_set():
            self._count_drop("no-stream")
            return
        data = frame(encode(message))
        try:
            stream.queue.put_nowait(data)
        except asyncio.QueueFull:
            self._count_drop("slow-consumer")
            stream.ended.set()
            return
        self.bytes_down += len(data)

    async def write(self, stream: Stream, response: web.StreamResponse) -> None:
        """Write frames, and keepalives in between, until the stream ends or the gateway is gone."""
        writer = asyncio.create_task(self._write(stream, response))
        ended = asyncio.create_task(stream.ended.wait())
        try:
            await asyncio.wait((writer, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (writer, ended):
                task.cancel()
            await asyncio.gather(writer, ended, return_exceptions=True)

    async def _write(self, stream: Stream, response: web.StreamResponse) -> None:
        with suppress(ConnectionError):
            while True:
                try:
                    async with asyncio.timeout(self._keepalive_s):
                        data = await stream.queue.get()
                except TimeoutError:
                    data = frame(b"")
                await response.write(data)
