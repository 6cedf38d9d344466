"""The fleet's plan: searched on what the nodes' probes say, and changed only where that is worth it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from aggregator.schedule import Schedule
from aggregator.values import ValueBook
from hedgerow.core.config import Config
from hedgerow.core.costs import ModelCosts
from hedgerow.core.encodings import feeds_back
from hedgerow.core.errors import ConfigError
from hedgerow.core.execution import executions
from hedgerow.core.memory import training_bytes
from hedgerow.core.messages import UnitValues
from hedgerow.core.plan import Plan, personal_units
from hedgerow.core.planbook import PlanSet
from hedgerow.core.search import filled_values, first_plan, nested_plans
from hedgerow.core.units import Manifest

KEPT = 0.95
"""Share of a budget that is planned for."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What a search came to: the plans to change to, or None to keep what there is, and why it was made.

    `before` and `after` are what the old and the new plans are worth by the newest values, as shares of all
    units' values.
    """

    plans: PlanSet | None
    reason: str
    before: float
    after: float


class Planner:
    """Plans within each memory class's budget. Raises ConfigError where the personal units are unknown.

    It keeps no plan itself: whoever asks says which one is in use. Values are lost with the process, which
    then asks anew.
    """

    def __init__(self, config: Config, costs: ModelCosts, *, version: int, term: int) -> None:
        plan, training = config.plan, config.training
        self.schedule = Schedule(
            plan,
            nodes=config.fleet.nodes,
            metric=config.stop.metric,
            version=version,
            term=term,
        )
        # A class with settings but no budget of its own has the fleet's, which the widest plan may exceed.
        self.budgets = config.memory_budgets
        self._costs = costs
        self._hysteresis = plan.hysteresis
        self._enough = plan.enough_value
        self._batch = training.batch_size
        self._batches = {name: own.batch_size for name, own in training.memory_classes.items()}
        self._error_feedback = feeds_back(training.encoding, config.node.max_update_bytes)
        self._personal = personal_units(costs.manifest, plan.personal)
        self._shared = tuple(u.name for u in costs.manifest.units if u.name not in self._personal)
        self._fitting: PlanSet | None = None
        self.book = ValueBook(self._shared)

    def published(self, version: int) -> None:
        """A version is to be published: it may open a round of probes."""
        opened = self.schedule.published(version)
        if opened is not None:
            self.book.open(opened)

    @property
    def answers(self) -> int:
        """How many nodes have answered in the open round."""
        request = self.schedule.request
        return 0 if request is None else self.book.answers(request.round)

    def take(self, values: Sequence[UnitValues]) -> list[str]:
        """Take nodes' answers to probes; return why each that was refused was."""
        return [refused for answer in values if (refused := self.book.take(answer))]

    def search(self, enough: float | None = None) -> PlanSet:
        """Return the fastest plans worth `enough` of the best (None: as configured), or raise ConfigError.

        They keep a little below the budgets where they can: nodes know to the byte what a training needs, and
        refuse one that the memory model held for a bit too small.
        """
        share = self._enough if enough is None else enough
        try:
            kept = {name: round(KEPT * most) for name, most in self.budgets.items()}
            return self._searched(kept, share)
        except ConfigError:
            return self._searched(self.budgets, share)

    def _searched(self, budgets: Mapping[str, int], enough: float) -> PlanSet:
        values = filled_values(self._costs, self.book.means())
        found = nested_plans(
            self._costs,
            values,
            budgets,
            self._batch,
            batches=self._batches,
            error_feedback=self._error_feedback,
            personal=self._personal,
            enough=enough,
        )
        manifest = self._costs.manifest
        plans = {name: Plan(manifest, best.names) for name, best in found.items()}
        widest = max(plans.values(), key=lambda plan: plan.size)
        return PlanSet(widest, {name: plan for name, plan in plans.items() if plan != widest})

    def decide(self, version: int, current: PlanSet) -> Decision | None:
        """Search if that is due, and say whether to change; None while nothing is due.

        The new plans must be worth more than the old ones by the hysteresis, or the old ones must not fit.
        """
        fits = self._fits(current)
        reason = self.schedule.reason(version, self.answers) if fits else "budget"
        if not reason:
            return None
        self.schedule.decided(version)
        try:
            # What trains fast has brought the model as far as it can when the loss stalls.
            found = self.search(1.0 if reason == "stall" else None)
        except ConfigError:
            # Every unit that fits is worth nothing now, as where all of a layer's inputs are zero.
            return Decision(None, "nothing-fits", self.worth(current), 0.0)
        before, after = self.worth(current), self.worth(found)
        better = after > (1 + self._hysteresis) * before and found != current
        return Decision(found if better or not fits else None, reason, before, after)

    def _fits(self, current: PlanSet) -> bool:
        """Whether plans fit their budgets; those that do not are named once, for a search to replace them."""
        if current is self._fitting:
            return True
        self._fitting = current
        return all(self.planned_bytes(current, name) for name in self.budgets)

    def worth(self, plans: PlanSet) -> float:
        """Return the plans' share of the value of all shared units, as a mean over memory classes."""
        values = filled_values(self._costs, self.book.means())
        total = sum(values[name] for name in self._shared) or 1.0
        worths = [sum(values[u] for u in plans.of_class(name).names) for name in self.budgets]
        return fmean(worths) / total

    def planned_bytes(self, plans: PlanSet, memory_class: str) -> int:
        """Return what a class's plan needs when computed in the fastest way that fits; 0 where none does."""
        plan, budget = plans.of_class(memory_class), self.budgets[memory_class]
        depth = min(self._costs.stage_of(name) for name in (*plan.names, *self._personal))
        batch = self._batches.get(memory_class, self._batch)
        for way in executions(batch, len(self._costs.stages) - depth):
            needed = training_bytes(
                self._costs,
                plan.names,
                way,
                batch=batch,
                error_feedback=self._error_feedback,
                personal=self._personal,
            )
            if needed <= budget:
                return needed
        return 0


def first_plans(config: Config, manifest: Manifest, costs: ModelCosts | None) -> PlanSet:
    """Return what version 0 has nodes train: the operator's choice, or a search without measured values.

    Raises ConfigError where the choice does not fit the model, or nothing fits the budget.
    """
    if not config.plan.budget_bytes or costs is None:
        return PlanSet(first_plan(manifest, config.plan, costs))
    return Planner(config, costs, version=0, term=0).search()
