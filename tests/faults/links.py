"""TCP links that can be cut, stalled, slowed, and made to repeat and reorder MQTT messages.

Every link of a fleet under test goes through one of these, on a thread of their own with one loop.
"""

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Coroutine
from typing import Any, TypeVar

from hedgerow.core.codec import decode
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Chunk
from tests.faults.mqtt_frames import Publish, Session

T = TypeVar("T")
_PIECE_BYTES = 65536
_HELD_BACK_S = 0.2
_RECORDED = 256
_CALL_S = 10.0


class LinkThread:
    """The loop all links live on."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="links", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(_CALL_S)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(_CALL_S)
        self.loop.close()


class Tap:
    """Counts the updates that pass upwards, and those that pass again; keeps some packets for a replay."""

    def __init__(self) -> None:
        self.passed: Counter[tuple[str, int, int]] = Counter()
        self.recorded: list[Publish] = []

    @property
    def repeats(self) -> int:
        """How many bodies were on the wire once more."""
        return sum(times - 1 for times in self.passed.values())

    def see(self, publish: Publish) -> None:
        if "/up/" not in publish.topic:
            return
        with contextlib.suppress(PeerError):
            chunk = decode(publish.payload)
            if isinstance(chunk, Chunk) and chunk.index == 0:
                self.passed[chunk.id.node, chunk.id.epoch, chunk.id.seq] += 1
                self.recorded = [*self.recorded, publish][-_RECORDED:]


class Link:
    """A port that forwards to `target`. Its attributes are its faults; set them at any time.

    `stalled` forwards nothing and keeps the sockets open: half-open TCP. `repeat` and `swap` are shares of
    MQTT messages that are sent twice, or after the one that follows them.
    """

    def __init__(self, thread: LinkThread, target: int, *, mqtt: bool) -> None:
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        self.repeat = 0.0
        self.swap = 0.0
        self.stalled = False
        self.repeated = 0
        self.swapped = 0
        self.refused = 0
        self.cut_connections = 0
        self.tap = Tap()
        self._thread = thread
        self._target = target
        self._mqtt = mqtt
        self._open = True
        self._random = random.Random(target)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server = thread.run(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        self._open = False
        self._thread.run(self._abort())

    def heal(self) -> None:
        """Take every fault back; what was stalled is cut, as a router that comes back has forgotten it."""
        was_stalled, self.stalled = self.stalled, False
        self.delay_s = self.bytes_per_s = self.repeat = self.swap = 0.0
        self._open = True
        if was_stalled:
            self._thread.run(self._abort())

    def close(self) -> None:
        self._thread.run(self._close())

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._connected, "127.0.0.1", 0)

    async def _abort(self) -> None:
        self.cut_connections += len(self._writers) // 2
        for writer in list(self._writers):
            writer.transport.abort()

    async def _close(self) -> None:
        self._server.close()
        await self._abort()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._forward(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # an end of a connection is what this is about
        finally:
            writer.transport.abort()
            self._tasks.discard(task)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            self.refused += 1
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        mine = {writer, far_writer}
        self._writers |= mine
        session = Session()
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(reader, far_writer, session, upward=True))
                pumps.create_task(self._pump(far_reader, writer, session, upward=False))
        except* OSError:
            pass  # as above
        finally:
            self._writers -= mine
            far_writer.transport.abort()

    async def _pump(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        session: Session,
        *,
        upward: bool,
    ) -> None:
        held: list[bytes] = []
        while True:
            try:
                async with asyncio.timeout(_HELD_BACK_S if held else None):
                    data = await reader.read(_PIECE_BYTES)
            except TimeoutError:
                writer.write(b"".join(held))
                held = []
                continue
            if not data:
                raise ConnectionError("the other end closed")
            if self._mqtt:
                packets = session.feed(data, upward=upward)
                data = b"".join(self._mangle(packets, held, session, upward=upward))
            await self._slow_down(len(data))
            writer.write(data)
            await writer.drain()

    async def _slow_down(self, size_bytes: int) -> None:
        while self.stalled:
            await asyncio.sleep(0.05)
        pause_s = self.delay_s
        if self.bytes_per_s:
            pause_s += size_bytes / self.bytes_per_s
        if pause_s:
            await asyncio.sleep(pause_s)

    def _mangle(
        self, packets: list[bytes], held: list[bytes], session: Session, *, upward: bool
    ) -> list[bytes]:
        """Return what goes on now; `held` is what is passed by the packet that follows it."""
        out = []
        for packet in packets:
            publish = session.publish(packet)
            if publish is None:
                out.append(packet)
                continue
            if upward:
                self.tap.see(publish)
            if not held and self._random.random() < self.swap:
                held.append(packet)
                continue
            out += [packet, *held]
            self.swapped += len(held)
            held.clear()
            if self._random.random() < self.repeat:
                self.repeated += 1
                out.append(packet)
                if upward:
                    self.tap.see(publish)
        return out
