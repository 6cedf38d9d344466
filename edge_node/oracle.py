"""What a training step will need, found without running or compiling it.

tinygrad is asked to schedule the step as it would for a capture; its memory planner then says how large the
arena of intermediates is. No memory is allocated.
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from tinygrad.engine.realize import capturing
from tinygrad.schedule.memory import memory_plan_rewrite
from tinygrad.tensor import Tensor, all_tensors
from tinygrad.uop import Ops
from tinygrad.uop.ops import UOp, buffers

from edge_node.design import StageMap, StepDesign
from edge_node.frozen import Move, move_forward, moves
from edge_node.lean import empty, micro_step, training_mode
from hedgerow.core.execution import Execution, micro_batches
from hedgerow.core.plan import Plan
from hedgerow.runtime.model import Model


def planned_bytes(
    model: Model,
    plan: Plan,
    batch: int,
    execution: Execution,
    *,
    cached: bool = True,
    target: tuple[int, ...] = (),
) -> int:
    """Return the peak bytes of training `plan`: parameters, micro-batch, gradients and intermediates.

    `target` is the shape of one example's target. With `cached` the frozen stages are not part of the step;
    the pass that computes their outputs counts where even one example needs more than a step.
    """
    stages = StageMap(model)
    dtype = str(model.task.target_dtype)
    start = stages.first(plan) if cached else 0
    design = StepDesign(stages, plan, batch, execution, start, target, dtype)
    needed = step_bytes(model, design)
    return max(needed, pass_rows(model, design, needed)[1])


def step_bytes(model: Model, design: StepDesign) -> int:
    """Return the peak bytes of a micro-step."""
    with training_mode():
        arguments = [empty(shape, kind) for shape, kind in design.buffers]
        step = micro_step(model, design, arguments)
        return design.held_bytes + arena_bytes(step, arguments)


def pass_rows(model: Model, design: StepDesign, room_bytes: int) -> tuple[int, int]:
    """Return how many examples at a time the pass through the frozen stages takes, and its peak bytes.

    That many, of the divisors of the batch, as fit into `room_bytes`; else one.
    """
    for rows in micro_batches(design.batch):
        needed = pass_bytes(model, design.map, design.start, rows)
        if needed <= room_bytes or rows == 1:
            return rows, needed
    raise AssertionError


def pass_bytes(model: Model, stages: StageMap, stop: int, rows: int) -> int:
    """Return the peak bytes of computing the frozen stages before `stop`, one after the other."""
    found = [move for number in range(stop) for move in moves(stages, number, rows)]
    return max((_move_bytes(model, move) for move in found), default=0)


def _move_bytes(model: Model, move: Move) -> int:
    held = 4 * sum(map(prod, move.buffers))
    if move.kind == "product":
        return held
    arguments = [empty(shape, "float32") for shape in move.buffers]
    return held + arena_bytes(move_forward(model, move, arguments), arguments)


def arena_bytes(step: Callable[..., None], arguments: Sequence[Tensor]) -> int:
    """Return the bytes of intermediates of `step(*arguments)`, as TinyJit would lay them out.

    The arguments are not changed, but must not be used afterwards.
    """
    held = set(buffers) | {
        uop
        for reference in list(all_tensors)
        if (tensor := reference()) is not None
        for uop in tensor.uop.toposort()
        if uop.op is Ops.BUFFER
    }
    schedule = _Schedule()
    capturing.append(schedule)
    try:
        step(*arguments)
    finally:
        capturing.clear()
    planned = memory_plan_rewrite(UOp(Ops.LINEAR, src=tuple(schedule.calls)), held)
    arenas = {
        buffer
        for call in planned.src
        for source in call.src[1:]
        for buffer in source.toposort()
        if buffer.op is Ops.BUFFER and buffer not in held
    }
    return sum(buffer.max_numel() * buffer.dtype.itemsize for buffer in arenas)


class _Schedule:
    """Takes what tinygrad would run."""

    def __init__(self) -> None:
        self.calls: list[UOp] = []

    def add_linear(self, linear: UOp, _variables: Any) -> None:
        """Take a schedule; tinygrad calls this while an object is in `capturing`."""
        self.calls += linear.src
