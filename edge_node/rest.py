"""A node's rest: after each training as its configuration says, and longer while its gateway has no room."""

from edge_node.backoff import Backoff
from edge_node.presence import Presence
from edge_node.turns import Turns
from hedgerow.core.effects import SetTimer
from hedgerow.core.outlet import Outlet

REST_TIMER = "rest"


class Rest:
    """Says whether the node rests now."""

    def __init__(self, turns: Turns, backoff: Backoff, presence: Presence, outlet: Outlet) -> None:
        self._turns = turns
        self._backoff = backoff
        self._presence = presence
        self._outlet = outlet

    def lasts(self, now_us: int) -> bool:
        """Whether the node is to rest; then it says so, and its timer is set."""
        rest_us = max(self._turns.rest_us(now_us), self._backoff.pause_us(now_us))
        if rest_us > 0 and self._presence.state != "sleeping":
            self._presence.state = "sleeping"
            self._outlet.do(SetTimer(REST_TIMER, rest_us))
        return rest_us > 0

    def timer_fired(self) -> None:
        """The node's own rest is over; it may have become longer meanwhile."""
        self._turns.rested()
        # It may also have been cut short, and a training begun meanwhile.
        if self._presence.state == "sleeping":
            self._presence.state = "ready"
