"""What the aggregator hears of a gateway and its nodes."""

from collections.abc import Callable, Mapping

from gateway.answers import Answers
from gateway.carrying import Carrier
from gateway.held import HeldUpdates
from gateway.roster import Roster
from gateway.spooling import Spooling
from hedgerow.core import names
from hedgerow.core.effects import Send
from hedgerow.core.messages import FleetReport
from hedgerow.core.outlet import Outlet


class Reporter:
    """Sends reports. `meter` reads the process's counters."""

    def __init__(
        self,
        gateway: str,
        boot: int,
        meter: Callable[[], Mapping[str, int]],
        outlet: Outlet,
        *,
        held: HeldUpdates,
        roster: Roster,
        answers: Answers,
        carrier: Carrier,
        spooling: Spooling,
    ) -> None:
        self._gateway = gateway
        self._boot = boot
        self._meter = meter
        self._outlet = outlet
        self._held = held
        self._roster = roster
        self._answers = answers
        self._carrier = carrier
        self._spooling = spooling

    def report(self) -> None:
        """Send what changed, and how much is held here."""
        counters = {
            "held": len(self._held.buffer),
            "leases": len(self._roster.leases),
            "carried": len(self._carrier),
            "spooled": len(self._spooling),
        }
        report = FleetReport(
            gateway=self._gateway,
            boot=self._boot,
            nodes=self._roster.take_report(),
            counters={**self._meter(), **counters},
            values=self._answers.take_report(),
        )
        self._outlet.do(Send(names.AGGREGATOR, report))
