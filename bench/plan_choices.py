"""The plans that are compared: what is trained, and within which share of the plain step's memory."""

import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from edge_node.oracle import planned_bytes
from hedgerow.core.costs import ModelCosts
from hedgerow.core.errors import ConfigError
from hedgerow.core.execution import Execution, executions
from hedgerow.core.memory import training_bytes
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.core.search import Candidate, filled_values, search
from hedgerow.runtime.model import Model

Fits = Callable[[Sequence[str], int], bool]
"""Whether these units can be trained within so many bytes."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a plan is chosen for: the model, its batch, each unit's value and the memory allowed."""

    model: Model
    costs: ModelCosts
    batch: int
    values: Mapping[str, float]
    budget_bytes: int
    fits: Fits
    seed: int


def everything(asked: Question) -> Sequence[str]:
    """Return all units."""
    return tuple(asked.model.manifest.by_name)


def last_layers(asked: Question) -> Sequence[str]:
    """Return as many whole layers from the end as fit."""
    manifest = asked.model.manifest
    names: Sequence[str] = ()
    for count in range(1, len(manifest.layers) + 1):
        more = choose_plan(manifest, last_layers=count).names
        if not asked.fits(more, asked.budget_bytes):
            break
        names = more
    return _some(names, asked)


def biases_and_classifier(asked: Question) -> Sequence[str]:
    """Return every bias and the last layer, as in TinyTL (Cai et al., 2020)."""
    return choose_plan(asked.model.manifest, preset="biases+last").names


def random_units(asked: Question) -> Sequence[str]:
    """Return units in a random order, those that still fit."""
    order = sorted(asked.model.manifest.by_name)
    random.Random(f"{asked.seed}:plan").shuffle(order)
    chosen: list[str] = []
    for name in order:
        if _modelled(asked, [*chosen, name]) <= asked.budget_bytes:
            chosen.append(name)
    # What the memory model takes for enough may be a little short: the last ones are left out.
    count = bisect_left(
        range(len(chosen)),
        x=True,
        key=lambda more: not asked.fits(chosen[: more + 1], asked.budget_bytes),
    )
    return _some(Plan.of(asked.model.manifest, chosen[:count]).names if count else (), asked)


def ours(asked: Question) -> Sequence[str]:
    """Return the units of most value that fit, as `hedgerow plan` finds them with `enough_value = 1`."""
    return searched(asked).names


def searched(asked: Question) -> Candidate:
    """Return the best plan, confirmed by tinygrad's own memory planner.

    However slow it is: every plan's fleet makes as many updates here.
    """

    def oracle(names: Sequence[str], execution: Execution, batch: int) -> int:
        return planned_bytes(asked.model, Plan.of(asked.model.manifest, names), batch, execution)

    values = filled_values(asked.costs, asked.values)
    return search(asked.costs, values, asked.budget_bytes, asked.batch, oracle=oracle)[0]


def _modelled(asked: Question, names: Sequence[str]) -> int:
    """Return the least that these units need in any execution, by the memory model."""
    ways = executions(asked.batch, len(asked.costs.stages))
    return min(training_bytes(asked.costs, names, way, batch=asked.batch) for way in ways)


def _some(names: Sequence[str], asked: Question) -> Sequence[str]:
    if not names:
        raise ConfigError(
            f"{asked.budget_bytes} bytes are too few for any unit of this kind of plan"
        )
    return names


@dataclass(frozen=True, slots=True)
class Choice:
    """A kind of plan. `share` is of the plain step's memory, 0 without a bound."""

    title: str
    units: Callable[[Question], Sequence[str]]
    share: float = 0.0


CHOICES: Mapping[str, Choice] = {
    "full": Choice("all units", everything),
    "last": Choice("last layers, 20 %", last_layers, 0.2),
    "biases": Choice("biases + classifier", biases_and_classifier),
    "random": Choice("random units, 20 %", random_units, 0.2),
    "ours20": Choice("ours, 20 %", ours, 0.2),
    "ours10": Choice("ours, 10 %", ours, 0.1),
}
