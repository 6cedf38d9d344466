"""What the newest version asks of the nodes: to train or not, whom, and what to measure first."""

from aggregator.lineage import Lineage
from aggregator.publisher import Publisher
from aggregator.replanning import Replanning
from aggregator.rounds import Turntable
from aggregator.stopping import StopRule


class Herald:
    """Publishes the newest version anew whenever that changes, under this start's term."""

    def __init__(
        self,
        lineage: Lineage,
        publisher: Publisher,
        stop: StopRule,
        turns: Turntable,
        plans: Replanning,
        term: int,
    ) -> None:
        self._lineage = lineage
        self._publisher = publisher
        self._stop = stop
        self._turns = turns
        self._plans = plans
        self._term = term

    def renew(self) -> None:
        """Describe the newest version as things stand now."""
        self._lineage.reopen(
            self._term,
            training_open=not self._stop.done,
            sample=self._turns.sample,
            probe=self._plans.request,
        )

    def push(self) -> None:
        """Describe it anew, and tell every gateway."""
        self.renew()
        self._publisher.push(self._lineage.current)
