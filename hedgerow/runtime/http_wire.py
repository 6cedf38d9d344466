"""What both ends of the HTTP link share: frames of the version stream, addresses, TLS settings."""

import asyncio
import ssl
from collections.abc import AsyncIterator

from aiohttp import StreamReader

from hedgerow.core.config import HttpConfig
from hedgerow.core.errors import ConfigError, PeerError

KEEPALIVE_S = 10.0
"""The aggregator sends an empty frame on a quiet stream this often."""

SILENCE_S = 30.0
"""A gateway gives up a stream that has been silent for this long: the connection is half-open."""

CONTENT_TYPE = "application/vnd.msgpack"
_LENGTH_BYTES = 4


def frame(data: bytes) -> bytes:
    """Return `data` behind its length, 4 bytes big-endian; empty data is a keepalive."""
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


async def read_frames(reader: StreamReader, max_bytes: int) -> AsyncIterator[bytes]:
    """Yield each frame's data, keepalives left out, until the stream ends.

    Raises PeerError for a frame of more than `max_bytes` or one that is cut off.
    """
    try:
        while True:
            size = int.from_bytes(await reader.readexactly(_LENGTH_BYTES), "big")
            if size > max_bytes:
                raise PeerError("too-large", f"frame of {size} bytes, at most {max_bytes}")
            if size:
                yield await reader.readexactly(size)
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise PeerError("malformed", "the stream ended inside a frame") from None


async def read_bounded(reader: StreamReader, max_bytes: int) -> bytes:
    """Return a whole body. Raises PeerError for one of more than `max_bytes`."""
    data = bytearray()
    async for piece in reader.iter_any():
        data += piece
        if len(data) > max_bytes:
            raise PeerError("too-large", f"body of more than {max_bytes} bytes")
    return bytes(data)


def base_url(http: HttpConfig) -> str:
    """Return the aggregator's address as a gateway uses it, without a slash at the end."""
    if http.url:
        return http.url.rstrip("/")
    scheme = "https" if http.ca_file or http.cert_file else "http"
    return f"{scheme}://{http.host}:{http.port}"


def client_tls(http: HttpConfig) -> ssl.SSLContext:
    """Return how a gateway checks the aggregator, and with which certificate it shows itself.

    Raises ConfigError for a file that is missing or no certificate.
    """
    context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH)
    _load(context, http)
    return context


def server_tls(http: HttpConfig) -> ssl.SSLContext | None:
    """Return the aggregator's TLS settings, None without a certificate.

    With `http.ca_file` every client must show a certificate of that authority. Raises ConfigError
    for a file that is missing or no certificate, and for an authority without a certificate.
    """
    if not http.cert_file:
        if http.ca_file:
            raise ConfigError('http.cert_file: "" with http.ca_file set; name the certificate')
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    _load(context, http)
    if http.ca_file:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _load(context: ssl.SSLContext, http: HttpConfig) -> None:
    key, value = "ca_file", http.ca_file
    try:
        if http.ca_file:
            context.load_verify_locations(http.ca_file)
        key, value = "cert_file", http.cert_file
        if http.cert_file:
            context.load_cert_chain(http.cert_file, http.key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"http.{key}: {value!r} cannot be used: {error}; name a PEM file that exists"
        ) from error
