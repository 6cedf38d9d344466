"""The merge deadline: the latest time at which what is buffered becomes a version."""

from hedgerow.core.effects import CancelTimer, SetTimer
from hedgerow.core.outlet import Outlet

DEADLINE_TIMER = "deadline"


class Deadline:
    """One timer, set by the first update that waits and cancelled by the merge."""

    def __init__(self, outlet: Outlet, after_us: int) -> None:
        self._outlet = outlet
        self._after_us = after_us
        self._armed = False

    def arm(self) -> None:
        """Something waits from now on, or did already."""
        if not self._armed:
            self._armed = True
            self._outlet.do(SetTimer(DEADLINE_TIMER, self._after_us))

    def fired(self) -> None:
        """The timer fired."""
        self._armed = False

    def cancel(self) -> None:
        """Nothing waits any more."""
        self._armed = False
        self._outlet.do(CancelTimer(DEADLINE_TIMER))
