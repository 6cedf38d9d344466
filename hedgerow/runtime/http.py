"""The gateway's side of the HTTP link to the aggregator."""

import asyncio
from collections import deque
from collections.abc import Coroutine
from typing import Any

from hedgerow.core import names
from hedgerow.core.codec import decode, encode
from hedgerow.core.config import HttpConfig
from hedgerow.core.effects import LinkDown, LinkUp, Undelivered
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BlobPart,
    BlobsWanted,
    Bundle,
    FleetReport,
    Message,
    Partial,
    PartialReply,
    Subscribe,
)
from hedgerow.core.units import digest
from hedgerow.runtime.http_requests import PARALLEL_REQUESTS, FailedError, Request, Requests
from hedgerow.runtime.http_wire import SILENCE_S
from hedgerow.runtime.ports import Deliver, Recorder

MAX_PARTIALS = 64
"""Partials on their way at once; one more is undelivered at once."""

_OK = frozenset({200})
_TAKEN = frozenset({204})
_REPLY = frozenset({200, 409, 422})


class AggregatorClient:
    """Carries a gateway's messages to the peer "aggregator" and brings back what it answers.

    `send` is the part of the Link port that this link has; the aggregator has no channels to announce
    on or to follow. Make it on the running loop. Raises ConfigError for unusable TLS files.
    """

    def __init__(
        self,
        http: HttpConfig,
        gateway_id: str,
        deliver: Deliver,
        recorder: Recorder,
        *,
        silence_s: float = SILENCE_S,
    ) -> None:
        self._http = http
        self._requests = Requests(http)
        self._gateway = gateway_id
        self._deliver = deliver
        self._recorder = recorder
        self._silence_s = silence_s
        self._tasks: set[asyncio.Task[None]] = set()
        self._partials = 0
        self._reporting = False
        self._fetching: set[str] = set()
        self._stream: asyncio.Task[None] | None = None

    @property
    def bytes_up(self) -> int:
        """Bytes of all bodies sent so far."""
        return self._requests.bytes_up

    @property
    def bytes_down(self) -> int:
        """Bytes of all bodies and frames received so far."""
        return self._requests.bytes_down

    def send(self, peer: str, message: Any) -> None:
        """Send to the aggregator; what it answers, or that it did not, is delivered later.

        Raises ValueError for another peer and TypeError for a message that has no way there.
        """
        if peer != names.AGGREGATOR:
            raise ValueError(f"this link leads to the aggregator only, not to {peer!r}")
        match message:
            case Partial():
                self._send_partial(message, message.id)
            case Bundle():
                self._send_partial(message, message.partials[0].id)
            case FleetReport():
                self._send_report(message)
            case BlobsWanted():
                self._start(self._fetch(message))
            case Subscribe():
                if self._stream is not None:
                    self._stream.cancel()
                self._stream = self._start(self._follow(message))
            case _:
                raise TypeError(f"{type(message).__name__} is not sent to the aggregator")

    async def close(self) -> None:
        """End the stream and every request under way; nothing more is delivered."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._requests.close()

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _send_partial(self, message: Partial | Bundle, partial_id: str) -> None:
        """Post a partial of our own, or one of another gateway in a bundle by itself."""
        if self._partials >= MAX_PARTIALS:
            detail = f"{MAX_PARTIALS} partials are on their way already"
            self._deliver(names.AGGREGATOR, Undelivered(message, detail))
            return
        self._partials += 1
        self._start(self._post_partial(message, partial_id))

    async def _post_partial(self, message: Partial | Bundle, partial_id: str) -> None:
        answer: PartialReply | Undelivered
        try:
            data = await self._post("/v1/partials", message, _REPLY)
            answer = _reply(data, partial_id)
        except FailedError as error:
            answer = Undelivered(message, str(error), error.retry_after_us)
        finally:
            self._partials -= 1
        self._deliver(names.AGGREGATOR, answer)

    def _send_report(self, report: FleetReport) -> None:
        if self._reporting:
            self._drop_report(report, {"reason": "busy"})
            return
        self._reporting = True
        self._start(self._post_report(report))

    async def _post_report(self, report: FleetReport) -> None:
        try:
            await self._post("/v1/fleet", report, _TAKEN)
        except FailedError as error:
            self._drop_report(report, {"reason": "undelivered", "detail": str(error)})
        finally:
            self._reporting = False

    def _drop_report(self, report: FleetReport, fields: dict[str, str]) -> None:
        self._recorder.record("fleet_report_dropped", 1, fields)
        if report.values:
            self._recorder.record("probe_answer_dropped", len(report.values), fields)

    async def _fetch(self, wanted: BlobsWanted) -> None:
        """Fetch units side by side; after one failure the rest is not tried."""
        todo = deque(name for name in wanted.digests if name not in self._fetching)
        self._fetching.update(todo)
        mine, failed = set(todo), []
        failures: list[FailedError] = []

        async def fetch_some() -> None:
            while todo:
                name = todo.popleft()
                try:
                    await self._fetch_one(name)
                except FailedError as error:
                    failures.append(error)
                    failed.extend([name, *todo])
                    todo.clear()

        try:
            await asyncio.gather(*(fetch_some() for _ in range(PARALLEL_REQUESTS)))
        finally:
            self._fetching -= mine
        if failures:
            lost = BlobsWanted(model=wanted.model, digests=failed)
            first = failures[0]
            self._deliver(names.AGGREGATOR, Undelivered(lost, str(first), first.retry_after_us))

    async def _fetch_one(self, name: str) -> None:
        body = await self._requests.ask(Request("GET", f"/v1/blobs/{name}", _OK))
        if digest(body) != name:
            raise FailedError(f"unit {name} arrived damaged")
        part = BlobPart(digest=name, index=0, count=1, body=body)
        self._deliver(names.AGGREGATOR, part)

    async def _post(self, path: str, message: Message, wanted: frozenset[int]) -> bytes:
        request = Request("POST", path, wanted, encode(message), {"gateway": self._gateway})
        return await self._requests.ask(request)

    async def _follow(self, subscribe: Subscribe) -> None:
        params = {"gateway": subscribe.gateway, "after": str(subscribe.after)}
        request = Request("GET", "/v1/versions/stream", _OK, params=params)
        detail = "the aggregator ended the stream"
        try:
            async for data in self._requests.stream(request, self._silence_s):
                if data:
                    self._take(data)
                else:
                    self._deliver(names.AGGREGATOR, LinkUp())
        except FailedError as error:
            detail = str(error)
        self._recorder.record("version_stream_ended", 1, {"detail": detail})
        self._deliver(names.AGGREGATOR, LinkDown())

    def _take(self, data: bytes) -> None:
        try:
            message = decode(data, self._http.max_body_bytes)
        except PeerError as error:
            fields = {"peer": names.AGGREGATOR, "reason": error.reason, "detail": error.detail}
            self._recorder.record("peer_fault", 1, fields)
            return
        self._deliver(names.AGGREGATOR, message)


def _reply(data: bytes, partial_id: str) -> PartialReply:
    try:
        reply = decode(data)
    except PeerError as error:
        raise FailedError(f"the aggregator's answer cannot be read: {error}") from error
    if not isinstance(reply, PartialReply) or reply.partial_id != partial_id:
        raise FailedError(f"the aggregator's answer is not one to partial {partial_id}")
    return reply
