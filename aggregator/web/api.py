"""The aggregator's HTTP server: partials and reports in, versions, receipts and units out.

Bodies are the messages of `hedgerow.core.messages`. A gateway names itself in the query, and what it
sends must carry the same name: a partial of its own, or a bundle with the partial of a peer.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from aiohttp import web

from aggregator.refusal import Refusal
from aggregator.status import Status
from aggregator.web.access import require_token
from aggregator.web.gauges import export_account
from aggregator.web.page import render_page
from aggregator.web.pending import Pending
from aggregator.web.streams import Streams
from hedgerow.core import names
from hedgerow.core.codec import decode, encode
from hedgerow.core.config import HttpConfig
from hedgerow.core.effects import LinkDown
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    Bundle,
    FleetReport,
    Message,
    Partial,
    PartialReply,
    Subscribe,
)
from hedgerow.runtime.health import health_routes
from hedgerow.runtime.http_wire import CONTENT_TYPE, KEEPALIVE_S, server_tls
from hedgerow.runtime.metrics import Metrics
from hedgerow.runtime.ports import Deliver, StoreError

MAX_PENDING = 1024
"""Partials waiting for their reply at once; one more is asked to come again."""

_RETRY_AFTER_S = 1
_REFUSED: dict[str, type[web.HTTPException]] = {"busy": web.HTTPTooManyRequests}
_REFUSED_WORDS = {
    "busy": "too many updates wait for a merge",
    "disk": "the disk does not take it",
    "new-life": "it speaks of versions that are lost here",
}
_REPLY_STATUS = {"accepted": 200, "known": 200, "overlap": 409, "rejected": 422}
_PAGE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Posted = Partial | Bundle | FleetReport


class AggregatorServer:
    """Serves one aggregator on `http.host` and `http.port` (0 takes a free one).

    `blobs` finds a unit's bytes by digest; `status`, `ready` and `degraded` (what it cannot do although it
    runs, "" for nothing) are asked at each request. What gateways send goes to `deliver` under the peer name
    "gw/ID"; `send` is the way back.
    """

    def __init__(
        self,
        http: HttpConfig,
        deliver: Deliver,
        blobs: Callable[[str], Awaitable[bytes | None]],
        status: Callable[[], Status],
        metrics: Metrics,
        ready: Callable[[], bool],
        *,
        degraded: Callable[[], str] = lambda: "",
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        self.bytes_up = 0
        """Bytes of all bodies received from gateways so far."""
        self._http = http
        self._deliver = deliver
        self._blobs = blobs
        self._status = status
        self._metrics = metrics
        self._streams = Streams(keepalive_s, self._count_drop)
        self._pending = Pending()
        check = require_token(http.token, lambda: self._count("http_refused", "token"))
        app = web.Application(client_max_size=http.max_body_bytes, middlewares=[check])
        app.add_routes(
            health_routes(
                ready,
                metrics,
                degraded=degraded,
                refresh=lambda: export_account(metrics, status()),
            )
        )
        app.add_routes(
            [
                web.post("/v1/partials", self._post_partial),
                web.post("/v1/fleet", self._post_fleet),
                web.get("/v1/fleet", self._get_fleet),
                web.get("/v1/versions/stream", self._get_stream),
                web.get("/v1/blobs/{digest:[0-9a-f]{32}}", self._get_blob),
                web.get("/", self._get_page),
            ]
        )
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0
        )

    @property
    def bytes_down(self) -> int:
        """Bytes of all frames sent to gateways so far."""
        return self._streams.bytes_down

    async def start(self) -> str:
        """Begin to serve and return the address, such as http://127.0.0.1:8480.

        Raises ConfigError for unusable TLS files, OSError for a port that is in use.
        """
        tls = server_tls(self._http)
        await self._runner.setup()
        await web.TCPSite(self._runner, self._http.host, self._http.port, ssl_context=tls).start()
        port = self._runner.addresses[0][1]
        return f"{'https' if tls else 'http'}://{self._http.host}:{port}"

    async def stop(self) -> None:
        """End every stream and request, and stop serving."""
        self._streams.close_all()
        await self._runner.cleanup()

    def send(self, peer: str, message: Any) -> None:
        """Send to "gw/ID": a reply answers the post that waits for it, all else goes down the stream."""
        gateway = names.peer_id(peer)
        if isinstance(message, PartialReply | Refusal):
            if not self._pending.answer(gateway, message):
                self._count_drop("no-post")
        else:
            self._streams.send(gateway, message)

    async def _post_partial(self, request: web.Request) -> web.Response:
        message = await self._message(request, (Partial, Bundle))
        partial = self._only(message)
        if self._pending.count >= MAX_PENDING:
            self._count("http_refused", "busy")
            raise _come_again(
                web.HTTPTooManyRequests, f"{MAX_PENDING} partials are waiting already"
            )
        gateway = message.gateway
        try:
            reply = await self._pending.wait(
                gateway,
                partial.id,
                lambda: self._deliver(names.gateway_peer(gateway), message),
                # Half of the gateway's own timeout, so that it hears this answer and not silence.
                self._http.timeout_s / 2,
            )
        except TimeoutError:
            self._count("http_refused", "slow")
            raise _come_again(
                web.HTTPServiceUnavailable, "the aggregator did not decide in time"
            ) from None
        if isinstance(reply, Refusal):
            self._count("http_refused", reply.reason)
            kind = _REFUSED.get(reply.reason, web.HTTPServiceUnavailable)
            raise _come_again(kind, _REFUSED_WORDS[reply.reason], reply.retry_after_s)
        status = _REPLY_STATUS[reply.status]
        return web.Response(body=encode(reply), status=status, content_type=CONTENT_TYPE)

    def _only(self, message: Posted) -> Partial:
        """Return the one partial of a post. Answers 400 for a bundle of more: each has its own answer."""
        if isinstance(message, Partial):
            return message
        assert isinstance(message, Bundle)
        if len(message.partials) > 1:
            self._count("http_refused", "malformed")
            text = f"a bundle of {len(message.partials)} partials, one belongs here\n"
            raise web.HTTPBadRequest(text=text)
        return message.partials[0]

    async def _post_fleet(self, request: web.Request) -> web.Response:
        report = await self._message(request, (FleetReport,))
        self._deliver(names.gateway_peer(report.gateway), report)
        return web.Response(status=204)

    async def _get_fleet(self, _request: web.Request) -> web.Response:
        data = msgspec.json.encode(self._status())
        return web.Response(body=data, content_type="application/json")

    async def _get_stream(self, request: web.Request) -> web.StreamResponse:
        subscribe = _subscription(request)
        peer = names.gateway_peer(subscribe.gateway)
        response = web.StreamResponse(headers={"Content-Type": CONTENT_TYPE})
        await response.prepare(request)
        stream = self._streams.open(subscribe.gateway)
        try:
            self._deliver(peer, subscribe)
            await self._streams.write(stream, response)
        finally:
            if self._streams.close(subscribe.gateway, stream):
                self._deliver(peer, LinkDown())
            # A gateway that does not read would hold up an orderly end for ever.
            if request.transport is not None:
                request.transport.abort()
        return response

    async def _get_blob(self, request: web.Request) -> web.Response:
        digest = request.match_info["digest"]
        try:
            body = await self._blobs(digest)
        except StoreError as error:
            self._metrics.record("blob_unreadable", 1, {"level": "error", "detail": str(error)})
            raise _come_again(web.HTTPServiceUnavailable, "the unit cannot be read here") from error
        if body is None:
            raise web.HTTPNotFound(text=f"unit {digest} is not kept here\n")
        scope = "private" if self._http.token else "public"
        headers = {"Cache-Control": f"{scope}, max-age=31536000, immutable"}
        return web.Response(body=body, headers=headers, content_type="application/octet-stream")

    async def _get_page(self, _request: web.Request) -> web.Response:
        text = render_page(self._status())
        return web.Response(text=text, content_type="text/html", headers=_PAGE_HEADERS)

    async def _message(self, request: web.Request, kinds: tuple[type[Posted], ...]) -> Posted:
        """Return the body's message. Answers 400 for a bad one, 403 for another gateway's, 413."""
        data = await request.read()
        self.bytes_up += len(data)
        try:
            message: Message = decode(data, self._http.max_body_bytes)
        except PeerError as error:
            self._count("http_refused", error.reason)
            raise web.HTTPBadRequest(text=f"{error}\n") from error
        if not isinstance(message, kinds):
            self._count("http_refused", "malformed")
            wanted = " or ".join(kind.__name__ for kind in kinds)
            text = f"{type(message).__name__} does not belong here, {wanted} does\n"
            raise web.HTTPBadRequest(text=text)
        if request.query.get("gateway") != message.gateway:
            self._count("http_refused", "wrong-source")
            text = f"?gateway={request.query.get('gateway', '')} sent as {message.gateway}\n"
            raise web.HTTPForbidden(text=text)
        return message

    def _count(self, event: str, reason: str) -> None:
        self._metrics.record(event, 1, {"reason": reason})

    def _count_drop(self, reason: str) -> None:
        self._count("http_dropped", reason)


def _subscription(request: web.Request) -> Subscribe:
    query = request.query
    try:
        fields = {"gateway": query.get("gateway"), "after": int(query.get("after", "0"))}
        return msgspec.convert({"t": "subscribe", **fields}, Subscribe)
    except (ValueError, msgspec.ValidationError) as error:
        raise web.HTTPBadRequest(text=f"?gateway= and ?after= are needed: {error}\n") from error


def _come_again(
    kind: type[web.HTTPException], text: str, after_s: int = _RETRY_AFTER_S
) -> web.HTTPException:
    return kind(text=f"{text}\n", headers={"Retry-After": str(after_s)})
