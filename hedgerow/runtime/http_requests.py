"""Bounded HTTP requests of a gateway: every one ends with a body, or with a failure in words."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from hedgerow.core.config import HttpConfig
from hedgerow.core.errors import PeerError
from hedgerow.runtime.http_wire import (
    CONTENT_TYPE,
    base_url,
    client_tls,
    read_bounded,
    read_frames,
)

PARALLEL_REQUESTS = 4
SLOWEST_BYTES_PER_S = 4096
"""The slowest link on which a large body still arrives: its timeout grows by this."""

_MAX_RETRY_AFTER_S = 3600
_MAX_REFUSAL_BYTES = 1 << 16
_EXPLAINED = {
    401: "the aggregator refused the token: http.token must be the same there and here",
    403: "the aggregator refused this gateway's name",
    404: "the aggregator does not know it (any more)",
    413: "too large for the aggregator: raise http.max_body_bytes there",
}


class FailedError(Exception):
    """A request was certainly or possibly not served; `retry_after_us` is what was asked for."""

    def __init__(self, detail: str, retry_after_us: int = 0) -> None:
        super().__init__(detail)
        self.retry_after_us = retry_after_us


@dataclass(frozen=True, slots=True)
class Request:
    """What to ask for, and the statuses whose bodies are answers."""

    method: str
    path: str
    wanted: frozenset[int]
    body: bytes = b""
    params: dict[str, str] = field(default_factory=dict)


class Requests:
    """A session with the aggregator. Raises ConfigError for unusable TLS files."""

    def __init__(self, http: HttpConfig) -> None:
        self.bytes_up = 0
        self.bytes_down = 0
        self._http = http
        self._url = base_url(http)
        self._tls = client_tls(http) if self._url.startswith("https:") else True
        headers = {"Authorization": f"Bearer {http.token}"} if http.token else {}
        self._session = ClientSession(headers=headers)
        self._slots = asyncio.Semaphore(PARALLEL_REQUESTS)

    async def close(self) -> None:
        """Close every connection."""
        await self._session.close()

    async def ask(self, request: Request) -> bytes:
        """Return the body of a response with a wanted status; raises FailedError for all else."""
        total_s = self._http.timeout_s + len(request.body) / SLOWEST_BYTES_PER_S
        timeout = ClientTimeout(total=total_s, sock_connect=self._http.timeout_s)
        try:
            async with (
                self._slots,
                self._session.request(
                    request.method,
                    self._url + request.path,
                    params=request.params,
                    data=request.body or None,
                    headers={"Content-Type": CONTENT_TYPE} if request.body else None,
                    timeout=timeout,
                    ssl=self._tls,
                    allow_redirects=False,
                ) as response,
            ):
                self.bytes_up += len(request.body)
                data = await read_bounded(response.content, self._http.max_body_bytes)
        except (ClientError, OSError, PeerError) as error:
            raise self._failure(error) from error
        self.bytes_down += len(data)
        if response.status not in request.wanted:
            raise _refusal(response, data)
        return data

    async def stream(self, request: Request, silence_s: float) -> AsyncIterator[bytes]:
        """Yield b"" once the stream is open, then each frame until it ends.

        Raises FailedError where it cannot be opened, breaks, or is silent for too long.
        """
        timeout = ClientTimeout(total=None, sock_connect=self._http.timeout_s, sock_read=silence_s)
        try:
            async with self._session.request(
                request.method,
                self._url + request.path,
                params=request.params,
                timeout=timeout,
                ssl=self._tls,
                allow_redirects=False,
            ) as response:
                if response.status not in request.wanted:
                    raise _refusal(
                        response, await read_bounded(response.content, _MAX_REFUSAL_BYTES)
                    )
                yield b""
                async for data in read_frames(response.content, self._http.max_body_bytes):
                    self.bytes_down += len(data)
                    yield data
        except (ClientError, OSError, PeerError) as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> FailedError:
        if isinstance(error, PeerError):
            return FailedError(str(error))
        if isinstance(error, TimeoutError):
            return FailedError(f"no answer from {self._url} in time")
        return FailedError(f"{type(error).__name__} with {self._url}: {error}")


def _refusal(response: ClientResponse, body: bytes) -> FailedError:
    text = _EXPLAINED.get(response.status, body[:200].decode(errors="replace").strip())
    seconds = response.headers.get("Retry-After", "0")
    wait_s = min(int(seconds), _MAX_RETRY_AFTER_S) if seconds.isdecimal() else 0
    return FailedError(f"HTTP {response.status}: {text}", wait_s * 1_000_000)
