"""A gateway's protocol as a simulation starts it."""

import random
from collections.abc import Callable, Mapping

from gateway.protocol import GatewayProtocol
from hedgerow.core.config import Config
from sims.gatewaydisk import GatewayDisk


def gateway_protocol(
    kind: type[GatewayProtocol],
    name: str,
    boot: int,
    config: Config,
    disk: GatewayDisk,
    meter: Callable[[], Mapping[str, int]],
) -> GatewayProtocol:
    """Return a gateway that begins a life from its disk; `meter` reads its links' counters."""
    return kind(
        name,
        boot,
        config.gateway,
        model=config.fleet.model,
        chunk_bytes=config.broker.chunk_bytes,
        packet_bytes=config.broker.max_packet_bytes,
        rng=random.Random(boot),
        meter=meter,
        spooled=disk.load(),
        island=config.island,
    )
