"""When a gateway flushes: enough is pending, nobody else is expected, or the timer fires."""

from gateway.forward import Forwarder
from gateway.held import HeldUpdates
from gateway.leases import Leases
from gateway.pace import Pace
from hedgerow.core.config import GatewayConfig
from hedgerow.core.effects import CancelTimer, SetTimer
from hedgerow.core.outlet import Outlet

FLUSH_TIMER = "flush"
_SECOND_US = 1_000_000


class Flushing:
    """Decides when the forwarder posts; `deadline_us`, 0 for none, is the merge deadline."""

    def __init__(
        self,
        config: GatewayConfig,
        held: HeldUpdates,
        leases: Leases,
        forward: Forwarder,
        outlet: Outlet,
    ) -> None:
        self.pace = Pace(round(config.flush_s * _SECOND_US))
        self._flush_count = config.flush_count
        self._held = held
        self._leases = leases
        self._forward = forward
        self._outlet = outlet
        self._timer_set = False
        self._holding_off = False

    def consider(self, *, way: bool, deadline_us: int) -> None:
        """Flush now, or set the timer, if anything is pending and there is a way to the aggregator."""
        pending = self._held.pending_count()
        if pending == 0 or not way or self._holding_off:
            return
        if pending >= self._flush_count or len(self._leases) == 0:
            if self._timer_set:
                self._timer_set = False
                self._outlet.do(CancelTimer(FLUSH_TIMER))
            self._forward.flush()
        elif not self._timer_set:
            self._timer_set = True
            self._outlet.do(SetTimer(FLUSH_TIMER, self.pace.flush_after_us(deadline_us)))

    def timer_fired(self, *, way: bool) -> None:
        """The timer fired; without a way what is pending waits for `consider` once there is one."""
        self._timer_set = self._holding_off = False
        if way:
            self._forward.flush()

    def hold_off(self, wait_us: int) -> None:
        """A post failed: nothing is posted for a while."""
        self._timer_set = self._holding_off = True
        self._outlet.do(SetTimer(FLUSH_TIMER, wait_us))
