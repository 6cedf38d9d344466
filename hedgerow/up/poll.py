"""Asks the aggregator for the picture of the run, and adds up what restarts set back."""

import asyncio
import ssl
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from aggregator.status import Status
from hedgerow.core.config import HttpConfig
from hedgerow.runtime.http_wire import base_url, client_tls

TIMEOUT_S = 5.0
MAX_STATUS_BYTES = 64 << 20
NODE_UP, NODE_DOWN = "mqtt_bytes_up", "mqtt_bytes_down"
GATEWAY_UP, GATEWAY_DOWN = "http_bytes_up", "http_bytes_down"


class Poller:
    """Fetches `GET /v1/fleet`."""

    def __init__(self, http: HttpConfig) -> None:
        self.page = base_url(http) + "/"
        headers = {"Authorization": f"Bearer {http.token}"} if http.token else {}
        self._request = urllib.request.Request(f"{base_url(http)}/v1/fleet", headers=headers)  # noqa: S310 - http.url is checked
        self._tls: ssl.SSLContext | None = (
            client_tls(http) if self.page.startswith("https") else None
        )
        # A proxy of the environment must not stand between processes of one machine.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self._tls)
        )

    async def status(self) -> Status | None:
        """Return the picture, or None while the aggregator cannot be reached."""
        try:
            body = await asyncio.to_thread(self._fetch)
            return msgspec.json.decode(body, type=Status)
        except (OSError, urllib.error.URLError, msgspec.MsgspecError):
            return None

    def _fetch(self) -> bytes:
        with self._opener.open(self._request, timeout=TIMEOUT_S) as answer:
            body: bytes = answer.read(MAX_STATUS_BYTES)
            return body


@dataclass
class Meter:
    """One source's counters, summed over its restarts: a fall means that it began again from zero."""

    totals: Counter[str] = field(default_factory=Counter)
    _last: dict[str, int] = field(default_factory=dict)

    def take(self, values: Mapping[str, int]) -> None:
        """Add what the counters grew by since the last call."""
        for name, value in values.items():
            last = self._last.get(name, 0)
            self.totals[name] += value - last if value >= last else value
            self._last[name] = value

    def rebase(self, values: Mapping[str, int]) -> None:
        """Take the counters as they stand without counting: their observer began anew, not their owner."""
        self._last = dict(values)


class Traffic:
    """Bytes of every node and gateway over all restarts, also the aggregator's.

    `earlier` are the totals of earlier sessions of a resumed run.
    """

    def __init__(self, earlier: Mapping[str, Mapping[str, int]]) -> None:
        self._meters = {name: Meter(Counter(counters)) for name, counters in earlier.items()}
        self._terms: dict[str, int] = {}

    def take(self, status: Status) -> None:
        """Take the counters of one picture."""
        for node in status.nodes:
            # These are the node's own, whoever observes them.
            self._meter(node.state.node).take(_only(node.state.counters, NODE_UP, NODE_DOWN))
        for gateway in status.gateways:
            # These are the aggregator's sums: a new term of it begins with what the gateway has now.
            counters = _only(gateway.counters, GATEWAY_UP, GATEWAY_DOWN)
            if not counters:
                continue
            term = self._terms.setdefault(gateway.gateway, status.term)
            if term == status.term:
                self._meter(gateway.gateway).take(counters)
            else:
                self._meter(gateway.gateway).rebase(counters)
                self._terms[gateway.gateway] = status.term

    def total(self, counter: str) -> int:
        """Return one counter's sum over all sources."""
        return sum(meter.totals[counter] for meter in self._meters.values())

    def by_source(self) -> dict[str, dict[str, int]]:
        """Return every source's totals."""
        return {name: dict(meter.totals) for name, meter in self._meters.items()}

    def _meter(self, source: str) -> Meter:
        return self._meters.setdefault(source, Meter())


def _only(counters: Mapping[str, int], *names: str) -> dict[str, int]:
    return {name: counters[name] for name in names if name in counters}


@dataclass(frozen=True)
class Point:
    """A version's metric beside what it had cost when it was first seen."""

    version: int
    value: float
    bytes_up: int
    at_s: float


class History:
    """The curve of one metric, also over restarts; `earlier` are the points of earlier sessions."""

    def __init__(self, earlier: Iterable[Point] = ()) -> None:
        self._points = {point.version: point for point in earlier}

    def take(self, status: Status, bytes_up: int, at_s: float) -> list[Point]:
        """Return the points that are new, oldest first."""
        fresh = []
        for point in status.curve:
            value = point.metrics.get(status.metric)
            if value is not None and point.version not in self._points:
                self._points[point.version] = Point(point.version, value, bytes_up, at_s)
                fresh.append(self._points[point.version])
        return fresh

    @property
    def points(self) -> list[Point]:
        """All points by version."""
        return [self._points[version] for version in sorted(self._points)]
