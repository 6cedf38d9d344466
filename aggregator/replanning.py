"""Carries the planner's decisions into the lineage, and says what they were."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from aggregator.lineage import Lineage
from aggregator.planner import Decision, Planner
from aggregator.status import PlanRow, PlanView
from hedgerow.core.config import Config
from hedgerow.core.costs import ModelCosts
from hedgerow.core.messages import UnitValues
from hedgerow.core.outlet import Outlet
from hedgerow.core.rules import ProbeRequest


class Replanning:
    """The living plan of one aggregator; where the plan is fixed, or `costs` are not known, it stays.

    A decision takes effect with the next version: each version has one plan.
    """

    def __init__(
        self, config: Config, costs: ModelCosts | None, lineage: Lineage, outlet: Outlet, term: int
    ) -> None:
        self._lineage = lineage
        self._outlet = outlet
        self._decided: tuple[int, Decision] | None = None
        self._planner: Planner | None = None
        if costs is not None and config.plan.budget_bytes:
            self._planner = Planner(config, costs, version=lineage.version, term=term)

    @property
    def request(self) -> ProbeRequest | None:
        """What nodes are asked to measure now."""
        return None if self._planner is None else self._planner.schedule.request

    def publishing(self) -> None:
        """The newest version is about to be published."""
        if self._planner is not None:
            self._planner.published(self._lineage.version)
            self._consider(self._planner)

    def take(self, values: Sequence[UnitValues]) -> None:
        """Take nodes' answers to probes."""
        if not values:
            return
        refused = ["fixed-plan"] * len(values)
        if self._planner is not None:
            refused = self._planner.take(values)
            self._consider(self._planner)
        taken = len(values) - len(refused)
        if taken:
            self._outlet.record("probe_taken", taken)
        for reason, count in sorted(Counter(refused).items()):
            self._outlet.record("probe_refused", count, reason=reason)

    def evaluated(self, version: int, metrics: Mapping[str, float]) -> None:
        """Take a version's metrics: training may have stalled."""
        if self._planner is not None:
            self._planner.schedule.evaluated(version, metrics)

    def view(self) -> PlanView | None:
        """Return what people should see of a searched plan; None for a fixed one."""
        planner, lineage = self._planner, self._lineage
        if planner is None:
            return None
        rows = [
            PlanRow(
                memory_class=name,
                units=len(lineage.planned.of_class(name).names),
                parameters=lineage.planned.of_class(name).size,
                budget_bytes=budget,
                planned_bytes=planner.planned_bytes(lineage.planned, name),
            )
            for name, budget in planner.budgets.items()
        ]
        searched, decision = self._decided or (-1, None)
        return PlanView(
            since_version=lineage.plan_since,
            value_share=planner.worth(lineage.planned),
            classes=rows,
            searched_version=searched,
            reason="" if decision is None else decision.reason,
            changed=decision is not None and decision.plans is not None,
            answers=planner.answers,
            answers_needed=planner.schedule.needed if planner.schedule.request else 0,
        )

    def _consider(self, planner: Planner) -> None:
        lineage = self._lineage
        decision = planner.decide(lineage.version, lineage.planned)
        if decision is None:
            return
        self._decided = (lineage.version, decision)
        fields: dict[str, Any] = {
            "reason": decision.reason,
            "version": lineage.version,
            "value_before": round(decision.before, 4),
            "value_after": round(decision.after, 4),
            "share_before": round(lineage.planned.widest.share, 4),
        }
        if decision.plans is None:
            self._outlet.record("replan_kept", **fields)
            return
        lineage.planned = decision.plans
        widest = decision.plans.widest
        fields["share_after"] = round(widest.share, 4)
        self._outlet.record("replanned", **fields, units=list(widest.names))
