"""Which gateway a node belongs to."""

import zlib
from collections.abc import Mapping

from hedgerow.core.messages import GatewayState


def choose_gateway(node: str, home: str, gateways: Mapping[str, GatewayState]) -> str:
    """Return the gateway to use, "" when none is ready.

    The configured home wins while it lives. Otherwise one with an uplink, then the highest hash of node
    and gateway: nodes spread evenly, agree with themselves after a restart, and move only when theirs dies.
    """
    ready = [name for name, state in gateways.items() if state.state == "ready"]
    if home in ready:
        return home
    return max(
        ready,
        key=lambda name: (gateways[name].uplink, zlib.crc32(f"{node} {name}".encode())),
        default="",
    )
