"""The way from gateways to the aggregator, in memory: posts, blobs and a stream of versions, as over HTTP.

A post or its answer may be lost, and a lost one is reported as undelivered, as the HTTP client does after its
timeout. Requests and answers may overtake one another; the stream keeps its order and breaks with either end.
"""

import random
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aggregator.refusal import Refusal
from hedgerow.core import names
from hedgerow.core.codec import decode, encode
from hedgerow.core.effects import LinkDown, LinkUp, Undelivered
from hedgerow.core.messages import (
    BlobPart,
    BlobsWanted,
    Bundle,
    FleetReport,
    Partial,
    PartialReply,
)
from hedgerow.runtime.ports import Deliver
from sims.clock import SECOND_US, VirtualLoop
from sims.links import LinkModel

REQUEST_BYTES = 250
"""HTTP's own head of a request and its answer."""
_TIMEOUT_US = 15 * SECOND_US
_REFUSED_US = SECOND_US


@dataclass(eq=False)
class Line:
    """One gateway's way up. `life` changes with each start of its process, `stream` with each stream."""

    name: str
    link: LinkModel
    random: random.Random
    deliver: Deliver | None = None
    life: int = 0
    cut: bool = False
    stream: int = 0
    open: bool = False
    up_free_us: int = 0
    down_free_us: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    posts: dict[str, tuple[int, Partial | Bundle]] = field(default_factory=dict)

    def meter(self) -> dict[str, int]:
        """Return the bytes so far, as the real client names them."""
        return {"http_bytes_up": self.bytes_up, "http_bytes_down": self.bytes_down}


class Uplinks:
    """All gateways' lines to one aggregator. `blob` reads its store, `hear` is told of every arrival."""

    def __init__(
        self,
        loop: VirtualLoop,
        blob: Callable[[str], bytes | None],
        hear: Callable[[str, str, int], None],
    ) -> None:
        self.lines: dict[str, Line] = {}
        self.aggregator: Deliver | None = None
        self.seen: Counter[str] = Counter()
        self._loop = loop
        self._blob = blob
        self._hear = hear

    # From a gateway.

    def send(self, line: Line, message: Any) -> None:
        """Take what a gateway sends to the aggregator."""
        match message:
            case Partial():
                self._post(line, message, message.id)
            case Bundle():
                self._post(line, message, message.partials[0].id)
            case BlobsWanted():
                self._up(line, REQUEST_BYTES, lambda: self._serve(line, message), _late_us(line))
            case FleetReport():
                body = encode(message)
                self._up(line, len(body) + REQUEST_BYTES, lambda: self._arrive(line, body))
            case _:
                self._close(line, tell=False)
                body = encode(message)
                life = line.life
                self._up(line, len(body) + REQUEST_BYTES, lambda: self._open(line, life, body))

    def _post(self, line: Line, message: Partial | Bundle, partial_id: str) -> None:
        """Post a partial, or a bundle of one."""
        body, life = encode(message), line.life
        post = line.posts[partial_id] = (life, message)
        if not self._lost(line):
            for _ in range(1 + _repeated(line, self.seen)):
                late_us = _late_us(line)
                self._up(line, len(body) + REQUEST_BYTES, lambda: self._arrive(line, body), late_us)

        def give_up() -> None:
            if line.posts.get(partial_id) is post and line.life == life:
                del line.posts[partial_id]
                self.seen["post undelivered"] += 1
                self._down(line, 0, lambda: Undelivered(message, "no answer in time", SECOND_US))

        wait_us = _TIMEOUT_US if self._reachable(line) else _REFUSED_US
        # A slow line takes its own time for a large body.
        self._loop.at_us(max(self._loop.now_us, line.up_free_us) + wait_us, give_up)

    def _reachable(self, line: Line) -> bool:
        return self.aggregator is not None and not line.cut

    def _arrive(self, line: Line, body: bytes) -> None:
        if self.aggregator is None or line.cut:
            self.seen["aggregator unreachable"] += 1
            return
        self._hear(names.AGGREGATOR, line.name, zlib.crc32(body))
        self.aggregator(line.name, decode(body))

    def _serve(self, line: Line, wanted: BlobsWanted) -> None:
        lost = []
        for name in wanted.digests:
            body = self._blob(name) if self._reachable(line) and not self._lost(line) else None
            if body is None:
                lost.append(name)
            else:
                part = BlobPart(digest=name, index=0, count=1, body=body)
                self._down(line, len(body) + REQUEST_BYTES, lambda part=part: part)  # type: ignore[misc]
        if lost:
            failed = BlobsWanted(model=wanted.model, digests=lost)
            self._down(line, REQUEST_BYTES, lambda: Undelivered(failed, "not found"))

    def _open(self, line: Line, life: int, body: bytes) -> None:
        if line.deliver is None or line.life != life:
            return
        if not self._reachable(line):
            self._down(line, 0, LinkDown)
            return
        line.stream += 1
        line.open = True
        line.deliver(names.AGGREGATOR, LinkUp())
        self._arrive(line, body)

    # From the aggregator.

    def answer(self, peer: str, message: Any) -> None:
        """Take what the aggregator sends to a gateway: an answer to a post, or something for its stream."""
        line = self.lines[peer]
        if isinstance(message, Refusal):
            self.seen[f"refused {message.reason}"] += 1
            self._down(line, REQUEST_BYTES, lambda: self._refused(line, message), _late_us(line))
            return
        body = encode(message)
        if isinstance(message, PartialReply):
            self.seen[f"answer {message.status}"] += 1
            if message.partial_id in line.posts and not self._lost(line):
                self._down(
                    line,
                    len(body),
                    lambda: self._answered(line, message.partial_id, body),
                    _late_us(line),
                )
        elif line.open:
            stream = line.stream
            self._down(line, len(body), lambda: self._streamed(line, stream, body))

    def _answered(self, line: Line, partial_id: str, body: bytes) -> Any:
        if line.cut:
            return None
        life, _ = line.posts.pop(partial_id, (0, None))
        return decode(body) if life == line.life else None

    def _refused(self, line: Line, refusal: Refusal) -> Any:
        if line.cut:
            return None
        life, post = line.posts.pop(refusal.partial_id, (0, None))
        if life != line.life:
            return None
        return Undelivered(post, refusal.reason, refusal.retry_after_s * SECOND_US)

    def _streamed(self, line: Line, stream: int, body: bytes) -> Any:
        if line.stream != stream or not line.open:
            return None
        self._hear(line.name, names.AGGREGATOR, zlib.crc32(body))
        return decode(body)

    # The ends.

    def break_line(self, line: Line) -> None:
        """Break the stream; both ends hear of it."""
        self._close(line, tell=True)

    def aggregator_died(self) -> None:
        """End every stream."""
        self.aggregator = None
        for line in self.lines.values():
            self._close(line, tell=True)

    def gateway_died(self, line: Line) -> None:
        """End a dead gateway's stream; the aggregator hears of it."""
        line.deliver = None
        self._close(line, tell=True)

    def _close(self, line: Line, *, tell: bool) -> None:
        """End a stream; a gateway's own new one replaces it in silence."""
        if not line.open:
            return
        line.open = False
        line.stream += 1
        if not tell:
            return
        stream = line.stream
        self._down(line, 0, LinkDown)

        def hear() -> None:
            if self.aggregator is not None and line.stream == stream:
                self.aggregator(line.name, LinkDown())

        self._loop.after_us(line.link.latency_us, hear)

    # The way through a line.

    def _lost(self, line: Line) -> bool:
        lost = line.link.loss > 0 and line.random.random() < line.link.loss
        self.seen["lost"] += lost
        return lost

    def _up(self, line: Line, size_bytes: int, call: Callable[[], None], late_us: int = 0) -> None:
        line.bytes_up += size_bytes
        start_us = max(self._loop.now_us, line.up_free_us)
        line.up_free_us = start_us + line.link.up_us(size_bytes, start_us)
        # What is on its way arrives even if its sender dies meanwhile.
        self._loop.at_us(line.up_free_us + line.link.latency_us + late_us, call)

    def _down(
        self, line: Line, size_bytes: int, message: Callable[[], Any], late_us: int = 0
    ) -> None:
        """Bring what `message` returns, unless it is None, to the gateway that lives now."""
        line.bytes_down += size_bytes
        start_us = max(self._loop.now_us, line.down_free_us)
        line.down_free_us = start_us + line.link.down_us(size_bytes, start_us)
        life = line.life

        def arrive() -> None:
            if line.deliver is None or line.life != life:
                return
            found = message()
            if found is not None:
                line.deliver(names.AGGREGATOR, found)

        self._loop.at_us(line.down_free_us + line.link.latency_us + late_us, arrive)


def _late_us(line: Line) -> int:
    """Return by how much a request or an answer is late, so that others overtake it."""
    return line.random.randrange(line.link.reorder_us) if line.link.reorder_us else 0


def _repeated(line: Line, seen: Counter[str]) -> int:
    """Return 1 where a message is to arrive twice, counting it, else 0."""
    repeated = line.link.repeat > 0 and line.random.random() < line.link.repeat
    seen["repeated"] += repeated
    return int(repeated)
