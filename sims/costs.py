"""How much arithmetic a training is, from the costs of the model's stages."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hedgerow.core.costs import ModelCosts
from hedgerow.core.effects import Probe, Train
from hedgerow.core.plan import Plan
from hedgerow.core.units import Unit, Vector, digest


@dataclass(frozen=True, slots=True)
class TrainingCost:
    """What training a plan costs per example, in million operations.

    `frozen_mflop` is the forward pass through the stages before the first trained one, made once for their
    content; `step_mflop` all else of a training step, `recomputed_mflop` what it costs more where activations
    are computed again instead of being kept. `frozen` are the units of the frozen stages.
    """

    step_mflop: float
    frozen_mflop: float = 0.0
    recomputed_mflop: float = 0.0
    frozen: tuple[str, ...] = ()


def training_cost(costs: ModelCosts, plan: Plan) -> TrainingCost:
    """Return the cost of one example in a training under `plan`.

    Forward, a step runs through the stages from the first trained one on. Backwards, a stage takes as much
    again for the gradients of its weights, of which only the trained share counts, and every stage above the
    first as much again to pass the gradient on. Gradients of biases are left out as small.
    """
    first = min(costs.stage_of(name) for name in plan.names)
    forward = [stage.mflop for stage in costs.stages]
    chosen = frozenset(plan.names)
    weights = sum(
        mflop * _trained_share(units, chosen)
        for mflop, units in zip(forward, costs.stage_units, strict=True)
    )
    suffix = sum(forward[first:])
    return TrainingCost(
        step_mflop=suffix + weights + sum(forward[first + 1 :]),
        frozen_mflop=sum(forward[:first]),
        recomputed_mflop=suffix,
        frozen=tuple(unit.name for units in costs.stage_units[:first] for unit in units),
    )


def _trained_share(units: Sequence[Unit], chosen: frozenset[str]) -> float:
    """Return which share of a stage's weights is trained."""
    weights = [unit for unit in units if not unit.is_bias]
    total = sum(unit.size for unit in weights)
    return sum(unit.size for unit in weights if unit.name in chosen) / total if total else 0.0


def content(frozen: Sequence[str], plan: Plan, params: Vector) -> str:
    """Return the digest of what the frozen stages hold; "" where there are none."""
    if not frozen:
        return ""
    slices = plan.manifest.slices
    held = np.concatenate([params[slices[name]] for name in frozen])
    return digest(held.tobytes()) + str(len(frozen))


def trained_examples(job: Train, examples: int) -> int:
    """Return how many examples a training on a shard of `examples` takes, all passes together."""
    batch = min(job.batch_size, examples)
    steps = job.passes * (examples // batch)
    return batch * (min(steps, job.max_steps) if job.max_steps else steps)


def probed_examples(job: Probe, examples: int) -> int:
    """Return how many examples a probe takes, all batches together."""
    return job.batches * min(job.batch_size, examples)
