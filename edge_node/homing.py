"""Which gateway a node belongs to."""

import zlib
from collections.abc import Mapping

from hedgerow.core.messages import NO_ROUTE, GatewayState

FULL_LOAD = 0.9
"""From this share of a gateway's buffer on, a node had better go elsewhere, or wait."""

PATIENCE_US = 30_000_000
"""How long a node stays where it was well off: an aggregator that restarts must not set a fleet moving."""


def choose_gateway(node: str, home: str, gateways: Mapping[str, GatewayState]) -> str:
    """Return the gateway that is best now, "" when none is ready.

    The configured home wins while it lives. Otherwise one with a way to the aggregator, then one with room,
    then the highest hash of node and gateway: nodes spread evenly, agree with themselves after a restart,
    and move only when theirs dies.
    """
    ready = [name for name, state in gateways.items() if state.state == "ready"]
    if home in ready:
        return home
    return max(ready, key=lambda name: (_merit(gateways[name]), _rank(node, name)), default="")


def _merit(state: GatewayState) -> tuple[bool, bool]:
    """Return whether a gateway has a way to the aggregator, and room."""
    return state.uplink or state.hops < NO_ROUTE, state.load < FULL_LOAD


def _rank(node: str, gateway: str) -> int:
    return zlib.crc32(f"{node} {gateway}".encode())


class Homing:
    """Chooses the gateway of one node, and keeps to it for a while when it becomes worse than others.

    A gateway that dies is left at once, and so is one that had never been better than now.
    """

    def __init__(self, node: str, home: str) -> None:
        self._node = node
        self._home = home
        self._gateway = ""
        self._best = (False, False)
        self._worse_since_us: int | None = None

    def choose(self, gateways: Mapping[str, GatewayState], now_us: int) -> str:
        """Return the gateway to use, "" when none is ready."""
        chosen = choose_gateway(self._node, self._home, gateways)
        if self._is_patient(chosen, gateways, now_us):
            return self._gateway
        if chosen != self._gateway:
            self._gateway, self._best = chosen, (False, False)
        self._worse_since_us = None
        if chosen:
            self._best = max(self._best, _merit(gateways[chosen]))
        return chosen

    def wait_us(self, now_us: int) -> int:
        """Return how long the node still keeps to its gateway, 0 when nothing draws it away."""
        if self._worse_since_us is None:
            return 0
        return max(self._worse_since_us + PATIENCE_US - now_us, 1)

    def _is_patient(self, chosen: str, gateways: Mapping[str, GatewayState], now_us: int) -> bool:
        """Whether to stay although `chosen` is better now."""
        own = gateways.get(self._gateway)
        if own is None or own.state != "ready" or chosen in ("", self._home, self._gateway):
            return False
        worse = _merit(own) < min(self._best, _merit(gateways[chosen]))
        if not worse:
            return False
        if self._worse_since_us is None:
            self._worse_since_us = now_us
        return now_us < self._worse_since_us + PATIENCE_US
