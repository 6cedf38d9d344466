"""A small HTTP server for the gateway: is it alive, is it ready, what has it counted."""

from collections.abc import Callable

from aiohttp import web

from hedgerow.runtime.metrics import Metrics

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def health_routes(
    ready: Callable[[], bool],
    metrics: Metrics,
    *,
    degraded: Callable[[], str] = lambda: "",
    refresh: Callable[[], None] = lambda: None,
) -> list[web.RouteDef]:
    """Return the routes /healthz, /readyz (503 while not ready, or degraded) and /metrics.

    `degraded` says what the process cannot do although it runs, "" for nothing; `refresh` brings gauges up
    to date before they are read.
    """

    async def healthz(_request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_request: web.Request) -> web.Response:
        trouble = degraded()
        if ready() and not trouble:
            return web.Response(text="ready\n")
        return web.Response(text=f"degraded: {trouble}\n" if trouble else "not yet\n", status=503)

    async def counters(_request: web.Request) -> web.Response:
        refresh()
        return web.Response(body=metrics.render(), headers={"Content-Type": METRICS_TYPE})

    return [
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
        web.get("/metrics", counters),
    ]


class HealthServer:
    """Serves the health routes on `host` and `port` (0 takes a free one)."""

    def __init__(
        self,
        host: str,
        port: int,
        ready: Callable[[], bool],
        metrics: Metrics,
        *,
        degraded: Callable[[], str] = lambda: "",
    ) -> None:
        self._host = host
        self._port = port
        app = web.Application()
        app.add_routes(health_routes(ready, metrics, degraded=degraded))
        self._runner = web.AppRunner(app, access_log=None)

    async def start(self) -> str:
        """Begin and return the address, http://HOST:PORT. Raises OSError for a port in use."""
        await self._runner.setup()
        await web.TCPSite(self._runner, self._host, self._port).start()
        port = self._runner.addresses[0][1]
        return f"http://{self._host}:{port}"

    async def stop(self) -> None:
        """Stop serving."""
        await self._runner.cleanup()
