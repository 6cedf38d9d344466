"""The two ends of the HTTP link for tests: a running aggregator server, and a gateway's client."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from aggregator.refusal import Refusal
from aggregator.status import Status
from aggregator.web.api import AggregatorServer
from hedgerow.core.config import HttpConfig
from hedgerow.core.messages import (
    Bundle,
    Header,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    UpdateId,
)
from hedgerow.core.units import digest
from hedgerow.runtime.http import AggregatorClient
from hedgerow.runtime.metrics import Metrics
from hedgerow.runtime.ports import StoreError
from tests.browser.sample_status import sample

UNIT = b"\x00\x01\x02\x03" * 50
BAD = "b" * 32
TIMEOUT_S = 20.0
TOKEN = "schlüssel"  # noqa: S105 - of this test only


class Inbox:
    """What was delivered, and a way to wait for it."""

    def __init__(self, answer: Callable[[str, Any], None] | None = None) -> None:
        self.items: list[tuple[str, Any]] = []
        self._answer = answer
        self._changed = asyncio.Event()

    def deliver(self, peer: str, message: Any) -> None:
        self.items.append((peer, message))
        self._changed.set()
        if self._answer is not None:
            self._answer(peer, message)

    def of(self, kind: type) -> list[Any]:
        return [message for _, message in self.items if isinstance(message, kind)]

    async def wait(self, kind: type, count: int = 1) -> Any:
        """Return the `count`-th message of a kind once it is there."""
        async with asyncio.timeout(TIMEOUT_S):
            while len(self.of(kind)) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.of(kind)[count - 1]


async def _blob(name: str) -> bytes | None:
    if name == BAD:
        raise StoreError("the file is damaged")
    return UNIT if name == digest(UNIT) else None


@dataclass
class Site:
    """A running aggregator server and what reached it."""

    http: HttpConfig
    url: str = ""
    inbox: Inbox = field(default_factory=Inbox)
    metrics: Metrics = field(default_factory=Metrics)
    ready: bool = True
    degraded: str = ""
    status: Status = field(default_factory=sample)
    verdict: str = "accepted"
    send: Callable[[str, Any], None] = field(init=False)

    def client_config(self, **changes: Any) -> HttpConfig:
        return msgspec.structs.replace(self.http, **{"url": self.url, **changes})


@asynccontextmanager
async def running(http: HttpConfig, keepalive_s: float = 10.0) -> AsyncIterator[Site]:
    """Serve; every partial is answered with the site's verdict, "" for silence.

    "busy", "disk" and "new-life" refuse it for seven seconds.
    """
    site = Site(http)

    def answer(peer: str, message: Any) -> None:
        if isinstance(message, Partial | Bundle) and site.verdict:
            reply = _answer(message, site.verdict)
            asyncio.get_running_loop().call_soon(server.send, peer, reply)

    site.inbox = Inbox(answer)
    server = AggregatorServer(
        http,
        site.inbox.deliver,
        _blob,
        lambda: site.status,
        site.metrics,
        lambda: site.ready,
        degraded=lambda: site.degraded,
        keepalive_s=keepalive_s,
    )
    site.send = server.send
    site.url = await server.start()
    try:
        yield site
    finally:
        await server.stop()


def _answer(message: Partial | Bundle, verdict: Any) -> PartialReply | Refusal:
    partial = message if isinstance(message, Partial) else message.partials[0]
    if verdict in ("busy", "disk", "new-life"):
        return Refusal(partial.id, verdict, 7)
    settled = [Receipt(header.id, "settled") for header in partial.headers]
    return PartialReply(partial_id=partial.id, status=verdict, receipts=settled)


@asynccontextmanager
async def connected(
    http: HttpConfig, silence_s: float = 30.0
) -> AsyncIterator[tuple[AggregatorClient, Inbox, Metrics]]:
    inbox, metrics = Inbox(), Metrics()
    client = AggregatorClient(http, "gw-1", inbox.deliver, metrics, silence_s=silence_s)
    try:
        yield client, inbox, metrics
    finally:
        await client.close()


def http_config(**changes: Any) -> HttpConfig:
    return HttpConfig(**{"port": 0, "timeout_s": 5.0, **changes})


def partial(number: int = 1, gateway: str = "gw-1", count: int = 1) -> Partial:
    headers = [Header(UpdateId("node-1", 1, n), 0, 5, 1.0) for n in range(count)]
    return Partial(id=f"p{number}", gateway=gateway, model="m", at_version=0, headers=headers)


def receipts(version: int, count: int = 1) -> Receipts:
    settled = [Receipt(UpdateId("node-1", 1, n), "settled") for n in range(count)]
    return Receipts(receipts=settled, version=version)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.01)


@asynccontextmanager
async def stand_in(route: web.RouteDef) -> AsyncIterator[HttpConfig]:
    """Serve one route in the aggregator's place."""
    app = web.Application()
    app.add_routes([route])
    runner = web.AppRunner(app, shutdown_timeout=0.5)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield http_config(url=f"http://127.0.0.1:{runner.addresses[0][1]}")
    finally:
        await runner.cleanup()
