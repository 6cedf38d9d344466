"""The memory model: what a training step needs, as sums that a search can work with.

Held are the trained stages' parameters (from the deepest trained stage on; what lies before is frozen and its
outputs are known), one micro-batch of inputs and targets, and a gradient for each trained unit. To that comes
the arena of intermediates: what the forward pass keeps for the backward pass, and the most that any stage's
backward pass needs for itself. Given where the training begins and how it is computed, a unit costs its
gradient only, so the model is additive in the units. `hedgerow plan` and the nodes ask tinygrad's own memory
planner in the end; this model says what is worth asking about.
"""

from collections.abc import Collection

from hedgerow.core.costs import FLOAT_BYTES, ModelCosts, StageCost
from hedgerow.core.execution import Execution
from hedgerow.core.units import Unit

LOSS_BYTES = 64
"""What the loss of one example needs besides the outputs."""


def training_bytes(
    costs: ModelCosts,
    names: Collection[str],
    execution: Execution,
    *,
    batch: int = 0,
    error_feedback: bool = False,
    personal: Collection[str] = (),
) -> int:
    """Return the bytes that training the units `names` needs, and the `personal` ones beside them.

    `batch` examples make a step, 0 for one micro-batch. The stages before the first trained one are computed
    beforehand, where one example needs more: the larger of both counts. Raises ValueError where nothing is
    trained.
    """
    trained = [*names, *personal]
    if not trained:
        raise ValueError("a training needs a unit")
    depth = min(costs.stage_of(name) for name in trained)
    units = costs.manifest.by_name
    own = sum(gradient_bytes(units[name], error_feedback=error_feedback) for name in names)
    kept = sum(gradient_bytes(units[name]) for name in personal)
    step = fixed_bytes(costs, depth, execution, batch) + own + kept
    return max(step, feature_bytes(costs, depth))


def gradient_bytes(unit: Unit, *, error_feedback: bool = False) -> int:
    """Return what training one unit adds: its gradient, and with `error_feedback` what was not sent."""
    return FLOAT_BYTES * unit.size * (2 if error_feedback else 1)


def fixed_bytes(costs: ModelCosts, depth: int, execution: Execution, batch: int = 0) -> int:
    """Return what a step of `batch` examples from stage `depth` on needs whichever units are trained."""
    first = costs.example_bytes if depth == 0 else costs.stages[depth].input_bytes
    rows = execution.micro_batch * (first + costs.target_bytes)
    arena = arena_bytes(costs, depth, execution, batch)
    return sum(costs.params_bytes[depth:]) + rows + arena


def feature_bytes(costs: ModelCosts, depth: int) -> int:
    """Return what computing the frozen stages needs, one example and one stage at a time: the most of any.

    A plain linear layer reads its parameters where the node's copy of the model has them.
    """
    return max(
        (
            held * stage.shared + stage.input_bytes + stage.output_bytes + stage.inner_bytes
            for stage, held in zip(costs.stages[:depth], costs.params_bytes[:depth], strict=True)
        ),
        default=0,
    )


def arena_bytes(costs: ModelCosts, depth: int, execution: Execution, batch: int = 0) -> int:
    """Return the intermediates of one micro-batch through the stages from `depth` on."""
    count = len(costs.stages)
    length = execution.segment or count
    most, kept = 0, 0
    for start in range(depth, count, length):
        # The first segment's input is the batch itself; the others' inputs wait for the backward pass.
        kept += costs.stages[start].input_bytes if start > depth else 0
        segment = range(start, min(start + length, count))
        needs = _within(costs, segment, depth, execution, batch)
        most = max(most, execution.micro_batch * kept + needs)
    return most


def _within(costs: ModelCosts, segment: range, depth: int, execution: Execution, batch: int) -> int:
    """Return the most that the backward pass through a segment needs at a time, its forward pass included."""
    most, kept = 0, 0
    for number in segment:
        stage = costs.stages[number]
        read_again = number < segment.stop - 1 or segment.stop == len(costs.stages)
        kept += stage.inner_bytes + (stage.output_bytes if read_again or stage.own_output else 0)
        # The input's gradient comes after the output's is done with; nobody asks for the first stage's.
        passed = max(stage.output_bytes, stage.input_bytes if number > depth else 0)
        later = _unfinished(costs.stages[number + 1]) if number < segment.stop - 1 else LOSS_BYTES
        needs = execution.micro_batch * (kept + stage.scratch_bytes + passed + later)
        most = max(most, needs + _fresh_gradient(costs, number, execution, batch))
    return most


def _unfinished(stage: StageCost) -> int:
    """Return the gradient that a stage's parameters still wait for while the stage before it is on."""
    return stage.scratch_bytes or stage.output_bytes


def _fresh_gradient(costs: ModelCosts, number: int, execution: Execution, batch: int) -> int:
    """Return the bytes of a gradient that is computed before it is added to those of other micro-batches.

    tinygrad cannot add a sum to a buffer in one kernel: the stage's largest unit counts twice for a while.
    """
    adds = batch > execution.micro_batch
    sums = execution.micro_batch > 1 or costs.stages[number].shared
    if not (adds and sums):
        return 0
    return FLOAT_BYTES * max((unit.size for unit in costs.stage_units[number]), default=0)
