"""What a gateway says of itself: nodes choose by it, and peers find their way by it."""

from gateway.peers import Route
from hedgerow.core import names
from hedgerow.core.effects import Announce, SetTimer
from hedgerow.core.messages import GatewayState
from hedgerow.core.outlet import Outlet

ANNOUNCE_TIMER = "announce"
_LEAST_US = 1_000_000
"""Between two announcements of other peers' changes, so that a flapping link does not flood the site."""

_LOAD_STEPS = 8


class Announcer:
    """Announces this gateway's state whenever it changed. `nodes` and `load` are as of the last `count`."""

    def __init__(self, gateway: str, boot: int, outlet: Outlet) -> None:
        self._gateway = gateway
        self._boot = boot
        self._outlet = outlet
        self._nodes = 0
        self._load = 0.0
        self._said: GatewayState | None = None
        self._said_us = 0
        self._timer_set = False
        self._again = False

    def count(self, nodes: int, load: float) -> None:
        """Take how many nodes there are and which share of the buffer is full; small changes are not said."""
        self._nodes = nodes
        self._load = int(load * _LOAD_STEPS) / _LOAD_STEPS

    def state(self, route: Route, acting: int, served: int) -> GatewayState:
        """Return what is true now."""
        return GatewayState(
            gateway=self._gateway,
            boot=self._boot,
            state="ready",
            nodes=self._nodes,
            uplink=route.hops == 0,
            hops=route.hops,
            via=route.via,
            load=self._load,
            acting=acting,
            served=served,
        )

    def say(self, state: GatewayState, now_us: int) -> None:
        """Announce a state that is another than the last: an own uplink's at once, others not too often."""
        said = self._said
        if state == said:
            return
        at_once = said is None or said.uplink != state.uplink or said.nodes != state.nodes
        wait_us = 0 if at_once else self._said_us + _LEAST_US - now_us
        if wait_us > 0:
            self._wait(wait_us)
            return
        self._said, self._said_us = state, now_us
        self._outlet.do(Announce(names.gateway_state_channel(self._gateway), state))

    def contradicted(self) -> None:
        """The site was told something else of this gateway: say it again, but not too often."""
        self._again = True
        self._wait(_LEAST_US)

    def timer_fired(self) -> None:
        """The wait is over; whoever calls says the state now."""
        self._timer_set = False
        if self._again:
            self._said, self._again = None, False

    def _wait(self, wait_us: int) -> None:
        if not self._timer_set:
            self._timer_set = True
            self._outlet.do(SetTimer(ANNOUNCE_TIMER, wait_us))
