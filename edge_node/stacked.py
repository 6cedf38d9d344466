"""Trains many nodes in one step: their linear layers lie one above the other.

Small models are bound by the cost of starting kernels, not by arithmetic, so one batched step for many
nodes is many times faster than one step per node. It serves fleets simulated on one machine, and gives
what `Trainer` gives, up to float32 rounding. One job gives the same bits whatever lies beside it, however
wide the stack is. Layers before the first trained one are frozen: their outputs
are computed once for a shard, not once per step. Convolutions gain nothing from stacking, so they must be
in that frozen part. A plan may train groups of a tensor's channels: gradients are multiplied by a mask that
is an input of the step, so plans over the same tensors share one.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinygrad import nn
from tinygrad.engine.jit import TinyJit
from tinygrad.helpers import Context
from tinygrad.tensor import Tensor

from edge_node import shards as shards_module
from edge_node import stack as stack_module
from edge_node import trainer
from edge_node.jitcache import Step, jit_cache, source_digest
from edge_node.shards import FeaturePools, Shards
from edge_node.stack import ROUNDING, UNKNOWN, Lanes, Need, Stack, StackShape, Start, Whole
from edge_node.trainer import starting_params
from hedgerow.core.effects import Train, Trained
from hedgerow.core.plan import Plan
from hedgerow.core.units import Unit
from hedgerow.runtime.model import Model
from hedgerow.runtime.ports import ComputeError
from hedgerow.runtime.stages import Stages, unchanged
from hedgerow.runtime.tasks import BuiltInTask, build_network

Array = NDArray[Any]
Job = tuple[int, Train]
Result = Trained | ComputeError

STACK_BYTES = 64 * 2**20
"""What an automatically chosen wide stack may take."""
WIDEST, NARROWEST = 256, 8
FEATURE_BYTES = 256 * 2**20
"""What the outputs of frozen layers may take."""
STEP_OVERHEAD = 20e6
"""Operations that could be done in the time it takes to start one step's kernels (about a millisecond)."""


STACKS_KEPT = 6
"""Plans change with versions and differ between memory classes; a few steps are kept at hand."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The part of a model that a plan's stack holds: stages from number `depth` on, all linear.

    `prefix` parameters lie before it; `tensors`, `units` and `trained` are as `StackShape` has them.
    """

    depth: int
    prefix: int
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    units: tuple[Unit, ...]
    trained: tuple[tuple[str, int], ...]

    @property
    def size(self) -> int:
        """Parameters in the stack."""
        return sum(unit.size for unit in self.units)

    @property
    def features(self) -> int:
        """Values that an example has on entering the stack."""
        return self.tensors[0][1][-1]


class StackedTrainer:
    """Trains jobs of one plan on any of `shards`, up to `width` of them at a time.

    Without a `width` there are two: a wide stack as the model's size and STACK_BYTES allow, and a narrow one
    for few jobs. `model` must be of a built-in task; TypeError otherwise. All calls must come from the one
    thread that owns tinygrad.
    """

    def __init__(
        self,
        model: Model,
        shards: Shards | Sequence[tuple[Array, Array]],
        jit_folder: Path,
        width: int | None = None,
        feature_bytes: int = FEATURE_BYTES,
    ) -> None:
        if not isinstance(model.task, BuiltInTask):
            raise TypeError("only built-in tasks can be stacked; use Trainer for the user's own")
        self._model = model
        self._task = model.task
        self._stages = Stages.of(build_network(model.task))
        self._head = linear_tail(self._stages)
        self._shards = shards if isinstance(shards, Shards) else Shards.of(model, shards)
        self._largest = int(self._shards.sizes.max())
        self._jits = jit_cache(jit_folder)
        self._width = width
        self._parts: dict[str, _Part] = {}
        self._stacks: OrderedDict[tuple[_Part, int, int], tuple[Stack, Step]] = OrderedDict()
        self.pools = FeaturePools(model, self._shards, feature_bytes)

    def can_train(self, plan: Plan) -> bool:
        """Whether the plan trains only the linear layers that the model ends with."""
        return self._depth(plan) >= self._head

    def _depth(self, plan: Plan) -> int:
        layers = {plan.manifest.by_name[name].layer for name in plan.names}
        return min(self._stages.of_unit(layer) for layer in layers)

    def train(self, jobs: Sequence[Job], need: Need = UNKNOWN) -> list[Result]:
        """Train (shard index, job) pairs and return the results in their order.

        A job that fails has its ComputeError in its place. The jobs must share plan and batch size;
        ValueError otherwise, or when the plan trains a convolution. `need` is what the results say: a
        stack's memory says nothing of what one node needs.
        """
        if not jobs:
            return []
        plan, batch_size = jobs[0][1].plan, jobs[0][1].batch_size
        if any(
            job.batch_size != batch_size or (job.plan is not plan and job.plan.names != plan.names)
            for _, job in jobs
        ):
            raise ValueError("jobs trained together must share the plan and the batch size")
        part = self._part(plan)
        results: list[Result | None] = [None] * len(jobs)
        numbers, starts = self._starts(jobs, part, results)
        fit = [i for i, result in enumerate(results) if result is None]
        if fit:
            lanes = self._lanes(jobs, fit, numbers)
            for width, chosen in self._cut(lanes, part, batch_size):
                stack, step = self._stack(part, batch_size, width)
                trained = stack.train(lanes.take(chosen), starts, self._shards.targets, step, need)
                for i, result in zip(chosen.tolist(), trained, strict=True):
                    results[fit[i]] = result
            for _, step in self._stacks.values():
                step.captured.free_intermediates()
        return [result for result in results if result is not None]

    def _part(self, plan: Plan) -> _Part:
        if plan.plan_id not in self._parts:
            if not self.can_train(plan):
                raise ValueError("the plan trains a convolution, which is not stacked; use Trainer")
            self._parts[plan.plan_id] = self._made_part(plan)
        return self._parts[plan.plan_id]

    def _made_part(self, plan: Plan) -> _Part:
        depth, manifest = self._depth(plan), self._model.manifest
        units = tuple(u for u in manifest.units if self._stages.of_unit(u.layer) >= depth)
        held = {unit.tensor for unit in units}
        return _Part(
            depth,
            manifest.size - sum(unit.size for unit in units),
            tuple((name, shape) for name, shape in self._model.tensors.items() if name in held),
            units,
            tuple(_trained_tensors(plan, units)),
        )

    def _starts(
        self, jobs: Sequence[Job], part: _Part, results: list[Result | None]
    ) -> tuple[list[int], list[Start]]:
        """Return the number of each job's starting point, and these; jobs with the same array share one.

        A job whose vectors do not fit its plan gets its error into `results`.
        """
        shared: dict[tuple[int, int], int] = {}
        numbers: list[int] = []
        members: list[list[int]] = []
        for i, (_, job) in enumerate(jobs):
            key = (id(job.params), -1 if job.offset is None else i)
            number = shared.setdefault(key, len(shared))
            if number == len(members):
                members.append([])
            members[number].append(i)
            numbers.append(number)
        starts = [self._start(jobs, chosen, part, results) for chosen in members]
        return numbers, starts

    def _start(
        self, jobs: Sequence[Job], members: list[int], part: _Part, results: list[Result | None]
    ) -> Start:
        try:
            params = starting_params(jobs[members[0]][1])
        except ComputeError as error:
            for i in members:
                results[i] = error
            empty = np.empty(0, np.float32)
            return Start(empty, empty)
        shards = [jobs[i][0] for i in members]
        return Start(params, self.pools.features(part.depth, part.prefix, params, shards))

    def _lanes(self, jobs: Sequence[Job], fit: list[int], numbers: list[int]) -> Lanes:
        shards = np.array([jobs[i][0] for i in fit])
        return Lanes.of(
            [jobs[i][1] for i in fit],
            [numbers[i] for i in fit],
            self._shards.begins[shards],
            self._shards.sizes[shards],
        )

    def _cut(self, lanes: Lanes, part: _Part, batch_size: int) -> Iterator[tuple[int, Whole]]:
        """Cut the lanes into stacks: the width of each, and its lanes.

        Lanes of like length lie side by side, so that few of them idle while the longest ends, and lanes
        that start alike, so that one write serves them.
        """
        order = np.lexsort((lanes.starts, lanes.totals))
        narrow, wide = self._widths(part, batch_size)
        operations = 6 * part.size * self._batch(batch_size)
        begin = 0
        while begin < len(order):
            narrow_stacks = -(-(len(order) - begin) // narrow)
            cost = narrow_stacks * (STEP_OVERHEAD + narrow * operations)
            width = narrow if cost < STEP_OVERHEAD + wide * operations else wide
            yield width, order[begin : begin + width]
            begin += width

    def _widths(self, part: _Part, batch_size: int) -> tuple[int, int]:
        """Return the widths of the narrow and the wide stack."""
        if self._width is not None:
            return self._width, self._width
        # Parameters, their gradients and as much again for what passes between the layers.
        lane_bytes = 4 * 3 * (part.size + self._batch(batch_size) * part.features)
        wide = max(NARROWEST, min(WIDEST, 1 << (STACK_BYTES // lane_bytes or 1).bit_length() - 1))
        return max(NARROWEST, wide // 8), wide

    def _batch(self, batch_size: int) -> int:
        return min(batch_size, self._largest)

    def _stack(self, part: _Part, batch_size: int, width: int) -> tuple[Stack, Step]:
        """Return the memory and the compiled step; those used longest ago make room."""
        key = (part, batch_size, width)
        if key not in self._stacks:
            shape = StackShape(
                width=width,
                batch=self._batch(batch_size),
                features=part.features,
                target=self._shards.targets.shape[1:],
                target_dtype=str(self._shards.targets.dtype),
                tensors=part.tensors,
                units=part.units,
                trained=part.trained,
            )
            step = self._jits.step(self._identity(shape), lambda: _compiled(self._task, shape))
            self._stacks[key] = (Stack(shape), step)
        self._stacks.move_to_end(key)
        while len(self._stacks) > STACKS_KEPT:
            self._stacks.popitem(last=False)
        return self._stacks[key]

    def _identity(self, shape: StackShape) -> dict[str, object]:
        modules = (shards_module, stack_module, trainer)
        return {
            "step": source_digest(__file__, *(str(module.__file__) for module in modules)),
            "model": self._model.identity,
            "trained": [list(entry) for entry in shape.trained],
            "inputs": [shape.width, shape.batch, shape.features],
            "targets": list(shape.target),
        }


def linear_tail(stages: Stages) -> int:
    """Return the number of the first stage of those at the end that are linear, with ReLU between."""
    last = len(stages.stages) - 1
    for number in range(last, -1, -1):
        stage = stages.stages[number]
        after = unchanged if number == last else Tensor.relu
        if type(stage.layer) is not nn.Linear or stage.after is not after:
            return number + 1
    return 0


def _trained_tensors(plan: Plan, units: Sequence[Unit]) -> Iterator[tuple[str, int]]:
    """Yield the tensors that the plan trains, with the axis that is cut where it trains a part only."""
    chosen = set(plan.names)
    for tensor in dict.fromkeys(unit.tensor for unit in units):
        pieces = [unit for unit in units if unit.tensor == tensor]
        wanted = [unit for unit in pieces if unit.name in chosen]
        if wanted:
            part = wanted[0].part
            yield tensor, part.axis if part is not None and len(wanted) < len(pieces) else -1


def _compiled(task: BuiltInTask, shape: StackShape) -> Step:
    """Return a captured step that trains the shape's trained tensors of every lane in place."""
    stack = Stack(shape)
    for mask in stack.masks.values():
        mask.array[:] = 1
    trained = [stack.params[name].tensor for name, _ in shape.trained]

    def step(
        x: Tensor, y: Tensor, rate: Tensor, sums: Tensor, weights: Tensor, *_params: Tensor
    ) -> None:
        output = _outputs(stack, x)
        losses = task.row_losses(output.flatten(0, 1), y.flatten(0, 1))
        loss = (losses.reshape(weights.shape) * weights).sum(1)
        gradients = [
            _masked(stack, name, axis, gradient)
            for (name, axis), gradient in zip(
                shape.trained, loss.sum().gradient(*trained), strict=True
            )
        ]
        # Once gradients and loss are there, nothing reads the old parameters: no copy is needed.
        Tensor.realize(loss, *gradients)
        for tensor, gradient in zip(trained, gradients, strict=True):
            step_size = rate.reshape(-1, *[1] * (tensor.ndim - 1))
            tensor.assign(tensor.detach() - step_size * gradient)
        squares = [_square_sum(gradient) for gradient in gradients]
        square = sum(squares[1:], squares[0])
        sums.assign(sums.detach() + loss.stack(square, dim=1))
        Tensor.realize(sums, *trained)

    compiled = TinyJit(step)
    with Context(TRAINING=1):  # type: ignore[no-untyped-call]
        for _ in range(2):  # The first call runs, the second one is captured.
            compiled(*stack.tensors)
    return compiled


def _masked(stack: Stack, name: str, axis: int, gradient: Tensor) -> Tensor:
    """Return a tensor's gradient, 0 in the groups that are not trained; axis -1 is all of it."""
    if axis < 0:
        return gradient
    sizes = [1] * gradient.ndim
    sizes[axis + 1] = -1
    return gradient * stack.masks[name].tensor.reshape(*sizes)


def _outputs(stack: Stack, x: Tensor) -> Tensor:
    """Return the outputs, shape (width, batch, outputs), for features (width, batch, features)."""
    layers = stack.shape.layers
    for layer in layers:
        weight, bias = (stack.params[f"{layer}.{part}"].tensor for part in ("weight", "bias"))
        x = _products(x, weight) + bias.unsqueeze(1)
        # Without its own buffer the gradient's mask keeps the kernel from vector instructions.
        x = x if layer == layers[-1] else x.relu().contiguous_backward()
    return x


def _products(x: Tensor, weight: Tensor) -> Tensor:
    """Return x @ weight.T per lane, for x (width, batch, inputs) and weight (width, outputs, inputs)."""
    width, batch, inputs = x.shape
    outputs = weight.shape[1]
    if outputs % 4 == 0 or inputs % ROUNDING:
        return x.matmul(weight.transpose(1, 2))
    # Outputs that do not fill a vector: ROUNDING partial sums side by side do.
    parts = (inputs // ROUNDING, ROUNDING)
    products = x.reshape(width, batch, 1, *parts) * weight.reshape(width, 1, outputs, *parts)
    return products.sum(3).contiguous().sum(3)


def _square_sum(gradient: Tensor) -> Tensor:
    """Return each lane's squared norm, shape (width,); row by row, because one long sum is slow."""
    squares = gradient.square()
    return squares.sum(1) if squares.ndim == 2 else squares.sum(2).contiguous().sum(1)  # noqa: PLR2004
