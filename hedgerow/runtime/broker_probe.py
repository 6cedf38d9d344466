"""Asks a broker whether it accepts a client, with a CONNECT of our own and nothing else."""

import asyncio
import os
from contextlib import suppress

from hedgerow.core.config import BrokerConfig
from hedgerow.runtime.mqtt_options import tls_context

_TIMEOUT_S = 3.0
_KEEPALIVE_S = 10
_CONNACK_ACCEPTED = b"\x20\x02\x00\x00"
_DISCONNECT = b"\xe0\x00"


async def probe(config: BrokerConfig) -> None:
    """Connect once as an MQTT client; raises OSError or EOFError unless the broker accepts it."""
    async with asyncio.timeout(_TIMEOUT_S):
        reader, writer = await asyncio.open_connection(
            config.host, config.port, ssl=tls_context(config)
        )
        try:
            writer.write(_connect_packet(config))
            answer = await reader.readexactly(len(_CONNACK_ACCEPTED))
            if answer != _CONNACK_ACCEPTED:
                raise ConnectionError(f"its answer to CONNECT was {answer.hex()}")
            writer.write(_DISCONNECT)
            await writer.drain()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()


def _connect_packet(config: BrokerConfig) -> bytes:
    """Return an MQTT 3.1.1 CONNECT with a clean session."""
    flags = 0x02 | (0xC0 if config.username else 0)
    texts = [f"hedgerow-probe-{os.getpid()}"]
    if config.username:
        texts += [config.username, config.password]
    body = b"\x00\x04MQTT\x04" + bytes([flags, 0, _KEEPALIVE_S])
    for text in texts:
        encoded = text.encode()
        body += len(encoded).to_bytes(2, "big") + encoded
    # MQTT's variable length: seven bits a byte, the eighth says that more follow.
    low, high = len(body) & 0x7F, len(body) >> 7
    length = bytes([low | 0x80, high]) if high else bytes([low])
    return b"\x10" + length + body
