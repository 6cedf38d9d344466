"""The search for a plan: the units of most value whose training fits a memory budget.

What a training needs is fixed by where it begins (the deepest trained stage) and by how a step is computed;
to that every unit adds its own bytes. So for each depth and execution the best units are the solution of a
0/1 knapsack, which is solved exactly; no evolution, no estimate of accuracy (compare Lin et al., 2022,
"On-device training under 256KB memory").
"""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from hedgerow.core.config import PlanConfig
from hedgerow.core.costs import ModelCosts
from hedgerow.core.errors import ConfigError
from hedgerow.core.execution import Execution, executions
from hedgerow.core.knapsack import pack, upper_bound
from hedgerow.core.memory import feature_bytes, fixed_bytes, gradient_bytes, training_bytes
from hedgerow.core.plan import Plan, choose_plan, personal_units
from hedgerow.core.units import Manifest, Unit

WORTH = 0.99
"""A faster execution is taken when it keeps this share of the value that the leanest allows."""

CORRECTIONS = 6
"""So often is a plan searched anew after the oracle's word on the one before."""

Oracle = Callable[[Sequence[str], Execution, int], int]
"""Returns the bytes that training these units (personal ones included) really plans, for a batch size."""


class NothingFitsError(ConfigError):
    """No plan fits the budget."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan that fits: the units in the manifest's order, and the first stage that is trained.

    `planned_bytes` is the training's memory by the memory model, or by the oracle where one was asked
    (`confirmed`); `value` the sum of the units' values, `share` of the parameters.
    """

    names: tuple[str, ...]
    depth: int
    execution: Execution
    planned_bytes: int
    value: float
    share: float
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked: see `search`. `allowed` are the units that may be chosen.

    `corrections` are the bytes by which the memory model fell short, where the oracle was asked; other
    executions are taken to be no worse than the best of them.
    """

    costs: ModelCosts
    values: Mapping[str, float]
    budget_bytes: int
    batch: int
    error_feedback: bool
    personal: tuple[str, ...]
    allowed: frozenset[str]
    enough: float
    corrections: Mapping[Execution, int] = field(default_factory=dict)

    @property
    def deepest(self) -> int:
        """The last stage that a training may begin at: personal units are always trained."""
        stages = [self.costs.stage_of(name) for name in self.personal]
        return min(stages, default=len(self.costs.stages) - 1)

    def units(self, depth: int) -> list[Unit]:
        """Return the units that a plan of this depth may have."""
        stages = self.costs.stage_units[depth:]
        return [unit for units in stages for unit in units if unit.name in self.allowed]

    def room(self, depth: int, execution: Execution) -> int:
        """Return the bytes left for the plan's units; negative where nothing fits."""
        if feature_bytes(self.costs, depth) > self.budget_bytes:
            return -1
        personal = sum(gradient_bytes(self.costs.manifest.by_name[name]) for name in self.personal)
        fixed = fixed_bytes(self.costs, depth, execution, self.batch) + personal
        least = min(self.corrections.values(), default=0)
        return self.budget_bytes - fixed - self.corrections.get(execution, least)


def search(
    costs: ModelCosts,
    values: Mapping[str, float],
    budget_bytes: int,
    batch: int,
    *,
    error_feedback: bool = False,
    nested_in: Plan | None = None,
    personal: Collection[str] = (),
    top: int = 3,
    enough: float = 1.0,
    oracle: Oracle | None = None,
) -> list[Candidate]:
    """Return the best plan of each depth that fits `budget_bytes`, the best `top`, best first.

    First among those worth `enough` of the most valuable one are the fastest to train: a plan that begins
    late costs its nodes a fraction of the arithmetic. `values` are the units' mean squared gradient norms;
    `filled_values` completes them, units without a value are not chosen. `nested_in` allows only units of
    that wider plan. `personal` units are trained beside the plan, count in its memory and are never in it.
    With an `oracle` each plan returned has been confirmed by it. Raises NothingFitsError naming the smallest
    budget that would do.
    """
    wide = costs.manifest.by_name if nested_in is None else nested_in.names
    allowed = frozenset(wide) - frozenset(personal)
    asked = _Question(
        costs, values, budget_bytes, batch, error_feedback, tuple(personal), allowed, enough
    )
    # The oracle may refuse some, so all depths are kept in reserve where there is one.
    every = oracle is not None or enough < 1
    found = _by_pace(asked, _ranking(asked, len(costs.stages) if every else top))
    found = found if oracle else found[:top]
    if oracle is not None:
        found = _agreed(asked, found, oracle, top)
    if not found:
        raise _nothing_fits(asked)
    return found


def nested_plans(
    costs: ModelCosts,
    values: Mapping[str, float],
    budgets: Mapping[str, int],
    batch: int,
    *,
    batches: Mapping[str, int] | None = None,
    error_feedback: bool = False,
    personal: Collection[str] = (),
    nested_in: Plan | None = None,
    enough: float = 1.0,
    oracle: Oracle | None = None,
) -> dict[str, Candidate]:
    """Return one plan for each memory class in `budgets` (bytes), every smaller one inside the wider ones.

    The widest budget comes first; classes of equal budgets share a plan. `batches` has the classes' own
    batch sizes. Raises NothingFitsError naming the class and the smallest budget that would do.
    """
    found: dict[str, Candidate] = {}
    wider = nested_in
    for name in sorted(budgets, key=lambda name: (-budgets[name], name)):
        try:
            best = search(
                costs,
                values,
                budgets[name],
                (batches or {}).get(name, batch),
                error_feedback=error_feedback,
                nested_in=wider,
                personal=personal,
                top=1,
                enough=enough,
                oracle=oracle,
            )[0]
        except NothingFitsError as error:
            raise NothingFitsError(f"memory class {name!r}: {error}") from error
        found[name] = best
        wider = Plan.of(costs.manifest, best.names)
    return found


def first_plan(
    manifest: Manifest,
    config: PlanConfig,
    costs: ModelCosts | None = None,
    batch: int = 1,
    *,
    error_feedback: bool = False,
) -> Plan:
    """Return the plan that a fleet begins with: the operator's own, or one searched without any data.

    With `config.budget_bytes` it is the search's on `prior_values`, for batches of `batch` examples. Personal
    units are in no plan. Raises ConfigError where the choice does not fit the model, or nothing the budget.
    """
    personal = personal_units(manifest, config.personal)
    if not config.budget_bytes:
        chosen = choose_plan(manifest, config.units, config.last_layers, config.preset)
        return chosen.without(personal)
    if costs is None:
        raise ConfigError(
            "plan.budget_bytes: the costs of this model are not known; name plan.units instead"
        )
    best = search(
        costs,
        prior_values(costs),
        config.budget_bytes,
        batch,
        error_feedback=error_feedback,
        personal=personal,
        top=1,
        enough=config.enough_value,
    )
    return Plan.of(manifest, best[0].names)


def prior_values(costs: ModelCosts) -> dict[str, float]:
    """Return values for a first plan, before any gradient is known: late stages are worth more.

    A stage is worth as much as all stages before it together and a bit more, and its units by their sizes:
    so the last stages that fit are chosen, then the parts of the next one.
    """
    found = {}
    last = len(costs.stages) - 1
    for number, units in enumerate(costs.stage_units):
        size = sum(unit.size for unit in units)
        for unit in units:
            found[unit.name] = 2.0 ** (number - last) * unit.size / size
    return found


def filled_values(costs: ModelCosts, known: Mapping[str, float]) -> dict[str, float]:
    """Return a value for every unit: the known ones, and for the others the prior at the same scale."""
    prior = prior_values(costs)
    reference = sum(prior[name] for name in prior if name in known)
    total = sum(known[name] for name in prior if name in known)
    scale = total / reference if reference > 0 and total > 0 else 1.0
    return {name: known.get(name, prior[name] * scale) for name in prior}


def _ranking(asked: _Question, top: int) -> list[Candidate]:
    """Return the best plan of each depth by the memory model, the best `top`, best first."""
    found: list[Candidate] = []
    for depth in range(asked.deepest, -1, -1):
        if _may_win(asked, depth, found, top):
            best = _best_of(asked, depth)
            found = sorted([*found, best] if best else found, key=_rank)[:top]
    return found


def _rank(candidate: Candidate) -> tuple[float, int]:
    return -candidate.value, candidate.planned_bytes


def _by_pace(asked: _Question, ranking: Sequence[Candidate]) -> list[Candidate]:
    """Return a ranking by value with those that are worth enough first, the fastest of them foremost."""
    if not ranking:
        return []
    least = asked.enough * max(candidate.value for candidate in ranking)
    worthy = [candidate for candidate in ranking if candidate.value >= least]
    rest = [candidate for candidate in ranking if candidate.value < least]
    return [*sorted(worthy, key=lambda found: _pace(asked, found)), *rest]


def _pace(asked: _Question, candidate: Candidate) -> float:
    """Return about what a step costs: the arithmetic of the stages that are not computed beforehand."""
    stages = asked.costs.stages[candidate.depth :]
    return sum(stage.mflop for stage in stages) * candidate.execution.cost(asked.batch)


def _ways(asked: _Question, depth: int) -> list[Execution]:
    """Return the executions for this depth that leave room for a unit, fastest first."""
    ways = executions(asked.batch, len(asked.costs.stages) - depth)
    return [way for way in ways if asked.room(depth, way) > 0]


def _may_win(asked: _Question, depth: int, found: Sequence[Candidate], top: int) -> bool:
    """Whether a plan of this depth could be among the best so far."""
    ways = _ways(asked, depth)
    if not ways:
        return False
    if len(found) < top:
        return True
    room = max(asked.room(depth, way) for way in ways)
    return upper_bound(*_items(asked, depth), room) > found[-1].value


def _best_of(asked: _Question, depth: int) -> Candidate | None:
    """Return the best plan that begins at this very depth, in the fastest execution worth it."""
    ways = _ways(asked, depth)
    if not ways:
        return None
    leanest = max(ways, key=lambda way: asked.room(depth, way))
    best = _solved(asked, depth, leanest)
    if best is None:
        return None
    items = _items(asked, depth)
    for way in ways[: ways.index(leanest)]:
        # Most executions are ruled out by the bound, at a fraction of the cost of a solution.
        if upper_bound(*items, asked.room(depth, way)) >= WORTH * best.value:
            faster = _solved(asked, depth, way)
            if faster is not None and faster.value >= WORTH * best.value:
                return faster
    return best


def _items(asked: _Question, depth: int) -> tuple[list[float], list[int]]:
    units = asked.units(depth)
    values = [asked.values.get(unit.name, 0.0) for unit in units]
    return values, [gradient_bytes(unit, error_feedback=asked.error_feedback) for unit in units]


def _solved(asked: _Question, depth: int, execution: Execution) -> Candidate | None:
    """Return the best plan for a depth and an execution; None where a later depth has the same one."""
    units = asked.units(depth)
    packed = pack(*_items(asked, depth), asked.room(depth, execution))
    names = tuple(units[item].name for item in packed.items)
    trained = [*names, *asked.personal]
    if not names or min(asked.costs.stage_of(name) for name in trained) != depth:
        return None
    manifest = asked.costs.manifest
    planned = training_bytes(
        asked.costs,
        names,
        execution,
        batch=asked.batch,
        error_feedback=asked.error_feedback,
        personal=asked.personal,
    )
    size = sum(manifest.by_name[name].size for name in names)
    return Candidate(names, depth, execution, planned, packed.value, size / manifest.size)


def _agreed(
    asked: _Question, ranking: Sequence[Candidate], oracle: Oracle, top: int
) -> list[Candidate]:
    """Return the first `top` of a ranking that the oracle agrees with, each as it then is."""
    found: list[Candidate] = []
    for candidate in ranking:
        confirmed = _confirmed(asked, candidate, oracle)
        if confirmed is not None:
            found.append(confirmed)
        if len(found) == top:
            break
    return _by_pace(asked, sorted(found, key=_rank))


def _confirmed(asked: _Question, candidate: Candidate, oracle: Oracle) -> Candidate | None:
    """Return the best plan of the candidate's depth that the oracle agrees with.

    What the memory model was wrong by is taken as the fixed cost's error, and the search goes on with it
    while that promises a gain.
    """
    agreed: Candidate | None = None
    errors: dict[Execution, int] = {}
    current: Candidate | None = candidate
    for _ in range(CORRECTIONS):
        if current is None or (agreed and WORTH * current.value <= agreed.value):
            break
        planned = oracle([*current.names, *asked.personal], current.execution, asked.batch)
        if planned <= asked.budget_bytes:
            agreed = replace(current, planned_bytes=planned, confirmed=True)
        errors[current.execution] = planned - current.planned_bytes
        current = _best_of(replace(asked, corrections=errors), current.depth)
    return agreed


def _nothing_fits(asked: _Question) -> NothingFitsError:
    """Return the error for a budget that no plan fits."""
    needs = list(_smallest_needs(asked))
    if not needs:
        return NothingFitsError("plan: no unit may be chosen; leave some out of plan.personal")
    return NothingFitsError(
        f"plan.budget_bytes: {asked.budget_bytes} bytes are too few to train any unit; the smallest"
        f" budget that would do is {min(needs)} bytes"
    )


def _smallest_needs(asked: _Question) -> Iterator[int]:
    """Yield what the cheapest plan of each depth needs, in its leanest execution."""
    for depth in range(asked.deepest + 1):
        worthy = [u for u in asked.units(depth) if asked.values.get(u.name, 0.0) > 0]
        if not worthy:
            continue
        least = min(worthy, key=lambda unit: (unit.size, unit.name))
        for way in executions(asked.batch, len(asked.costs.stages) - depth):
            personal = sum(gradient_bytes(asked.costs.manifest.by_name[n]) for n in asked.personal)
            step = fixed_bytes(asked.costs, depth, way, asked.batch) + personal
            unit = gradient_bytes(least, error_feedback=asked.error_feedback)
            yield max(step + unit, feature_bytes(asked.costs, depth))
