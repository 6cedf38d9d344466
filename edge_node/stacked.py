"""Trains many nodes in one step: their linear layers lie one above the other.

Small models are bound by the cost of starting kernels, not by arithmetic, so one batched step for many
nodes is several times faster than one step per node. It serves fleets simulated on one machine, and gives
what `Trainer` gives, up to float32 rounding. Layers before the first trained one are frozen: their outputs
are computed once for a shard, not once per step. Convolutions gain nothing from stacking, so they must be
in that frozen part.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinygrad.engine.jit import TinyJit
from tinygrad.helpers import Context
from tinygrad.tensor import Tensor

from edge_node import trainer
from edge_node.jitcache import Step, jit_cache
from edge_node.trainer import StepInputs, finite_delta, pass_order, starting_params, update_in_place
from hedgerow.core.effects import Train, Trained
from hedgerow.core.plan import Plan
from hedgerow.core.units import Unit, Vector, digest
from hedgerow.runtime.buffers import SharedArray
from hedgerow.runtime.memory import PeakMeter
from hedgerow.runtime.model import Forward, Model
from hedgerow.runtime.tasks import BuiltInTask

Array = NDArray[Any]
Job = tuple[int, Train]
FEATURE_SETS_KEPT = 4096


@dataclass(frozen=True, slots=True)
class _Lane:
    """One job's place in the stack: its features, its targets, and where it starts."""

    job: Train
    features: Array
    targets: Array
    start: Vector

    @property
    def batch(self) -> int:
        """Examples per step: the job's batch size, or the whole of a smaller shard."""
        return min(self.job.batch_size, len(self.features))

    @property
    def steps(self) -> int:
        """Steps in one pass."""
        return len(self.features) // self.batch


class StackedTrainer:
    """Trains jobs of one plan on any of `shards`, `width` of them at a time.

    `model` must be of a built-in task. All calls must come from the one thread that owns tinygrad.
    """

    def __init__(
        self, model: Model, shards: Sequence[tuple[Array, Array]], jit_folder: Path, width: int = 32
    ) -> None:
        if not isinstance(model.task, BuiltInTask):
            raise TypeError("only built-in tasks can be stacked; use Trainer for the user's own")
        self._model = model
        self._task = model.task
        self._shards = [model.checked(inputs, targets) for inputs, targets in shards]
        self._jits = jit_cache(jit_folder)
        self._width = width
        self._forwards: dict[int, Forward] = {}
        self._features: dict[tuple[int, str, int], Array] = {}

    def train(self, jobs: Sequence[Job]) -> list[Trained]:
        """Train (shard index, job) pairs and return the results in their order.

        The jobs must share plan and batch size; ValueError otherwise, or when the plan trains a
        convolution. Raises ComputeError when a result is not finite. `peak_bytes` is an equal part of a
        full stack's peak, not what the node itself would need.
        """
        if not jobs:
            return []
        first = jobs[0][1]
        if any(
            (j.plan.names, j.batch_size) != (first.plan.names, first.batch_size) for _, j in jobs
        ):
            raise ValueError("jobs trained together must share the plan and the batch size")
        depth = self._first_trained(first.plan)
        lanes = [self._lane(shard, job, depth) for shard, job in jobs]
        # Lanes of like length side by side, so that few of them idle while the longest ends.
        order = sorted(range(len(lanes)), key=lambda i: lanes[i].steps * lanes[i].job.passes)
        results: dict[int, Trained] = {}
        for begin in range(0, len(order), self._width):
            chosen = order[begin : begin + self._width]
            trained = self._train_stack([lanes[i] for i in chosen], depth)
            results.update(zip(chosen, trained, strict=True))
        return [results[i] for i in range(len(jobs))]

    def _first_trained(self, plan: Plan) -> int:
        """Return the number of the first linear layer the plan trains."""
        network = self._task.build()
        layers = {plan.manifest.by_name[name].layer for name in plan.names}
        if not layers <= set(network.linear_names):
            raise ValueError("the plan trains a convolution, which is not stacked; use Trainer")
        return min(network.linear_names.index(layer) for layer in layers)

    def _lane(self, shard: int, job: Train, depth: int) -> _Lane:
        start = starting_params(job)
        inputs, targets = self._shards[shard]
        prefix = start[: start.size - sum(unit.size for unit in self._stacked_units(depth))]
        if not prefix.size:
            return _Lane(job, inputs.reshape(len(inputs), -1), targets, start)
        key = (depth, digest(prefix.tobytes()), shard)
        if key not in self._features:
            if len(self._features) >= FEATURE_SETS_KEPT:
                self._features.clear()
            self._features[key] = self._forward(depth)(start, inputs)
        return _Lane(job, self._features[key], targets, start)

    def _forward(self, depth: int) -> Forward:
        def before(network: Any, x: Tensor) -> Tensor:
            features: Tensor = network.before(depth, x)
            return features

        return self._forwards.setdefault(depth, Forward(self._model, before))

    def _stacked_units(self, depth: int) -> list[Unit]:
        """Return the units of the layers from number `depth` on."""
        layers = self._task.build().linear_names[depth:]
        return [unit for unit in self._model.manifest.units if unit.layer in layers]

    def _train_stack(self, lanes: Sequence[_Lane], depth: int) -> list[Trained]:
        units = self._stacked_units(depth)
        step = self._step(lanes[0], depth)
        with PeakMeter() as meter:
            stack = _Stack(self._width, units, lanes)
            sums = np.array([self._pass(number, step, stack) for number in range(stack.passes)])
            step.captured.free_intermediates()
        share = meter.peak_bytes // self._width
        return [stack.result(number, sums[:, number], share) for number in range(len(lanes))]

    def _pass(self, number: int, step: Step, stack: "_Stack") -> Array:
        """Run one pass of every lane; return the sums of loss and squared norms, shape (lanes, 2)."""
        orders = [pass_order(lane.job.seed, number, len(lane.features)) for lane in stack.lanes]
        stack.feed.sums.array[...] = 0
        running = [lane.steps if number < lane.job.passes else 0 for lane in stack.lanes]
        for at in range(max(running)):
            stack.fill(at, orders, running)
            step(*stack.tensors)
        return stack.feed.sums.array[: len(stack.lanes)].copy()

    def _step(self, lane: _Lane, depth: int) -> Step:
        shape = [self._width, lane.job.batch_size, *lane.features.shape[1:]]
        identity = {
            "step": [digest(Path(str(name)).read_bytes()) for name in (__file__, trainer.__file__)],
            "model": self._model.identity,
            "plan": lane.job.plan.plan_id,
            "inputs": shape,
            "targets": list(lane.targets.shape[1:]),
        }
        return self._jits.step(identity, lambda: self._compile(lane, depth))

    def _compile(self, lane: _Lane, depth: int) -> Step:
        units = self._stacked_units(depth)
        stack = _Stack(self._width, units, [lane])
        trained = [stack.params[name].tensor for name in lane.job.plan.names]
        layers = list(dict.fromkeys(unit.layer for unit in units))

        def step(
            x: Tensor, y: Tensor, rate: Tensor, sums: Tensor, weights: Tensor, *_params: Tensor
        ) -> None:
            for layer in layers:
                weight, bias = (
                    stack.params[f"{layer}.{part}"].tensor for part in ("weight", "bias")
                )
                x = x.matmul(weight.transpose(1, 2)) + bias.unsqueeze(1)
                x = x if layer == layers[-1] else x.relu()
            losses = self._task.row_losses(x.flatten(0, 1), y.flatten(0, 1)).reshape(weights.shape)
            loss = (losses * weights).sum(1)
            gradients = loss.sum().gradient(*trained)
            for tensor, gradient in zip(trained, gradients, strict=True):
                update_in_place([tensor], [gradient], rate.reshape(-1, *[1] * (tensor.ndim - 1)))
            squares = [gradient.square().flatten(1).sum(1) for gradient in gradients]
            square = sum(squares[1:], squares[0])
            sums.assign(sums.detach() + loss.stack(square, dim=1))
            Tensor.realize(sums, *trained)

        compiled = TinyJit(step)
        with Context(TRAINING=1):  # type: ignore[no-untyped-call]
            for _ in range(2):  # The first call runs, the second one is captured.
                compiled(*stack.tensors)
        return compiled


class _Stack:
    """The memory of one stacked training: `width` lanes, of which the first ones are used.

    A lane that has nothing to do in a step has weight 0 in every row, so its loss and gradient are 0.
    """

    def __init__(self, width: int, units: Sequence[Unit], lanes: Sequence[_Lane]) -> None:
        self.lanes = lanes
        batch = lanes[0].job.batch_size
        features, targets = lanes[0].features, lanes[0].targets
        self.feed = StepInputs(
            SharedArray.of((width, batch, *features.shape[1:])),
            SharedArray.of((width, batch, *targets.shape[1:]), targets.dtype),
            SharedArray.of((width,)),
            SharedArray.of((width, 2)),
        )
        self.weights = SharedArray.of((width, batch))
        self.params = {unit.name: SharedArray.of((width, *unit.shape)) for unit in units}
        for shared in (*self._fed(), *self.params.values()):
            shared.array[...] = 0
        for number, lane in enumerate(lanes):
            self.feed.rate.array[number] = lane.job.learning_rate
            pieces = lane.job.plan.manifest.split(lane.start)
            for name, shared in self.params.items():
                shared.array[number] = pieces[name]

    def _fed(self) -> tuple[SharedArray, ...]:
        feed = self.feed
        return feed.inputs, feed.targets, feed.rate, feed.sums, self.weights

    @property
    def passes(self) -> int:
        """The most passes any lane makes."""
        return max(lane.job.passes for lane in self.lanes)

    @property
    def tensors(self) -> list[Tensor]:
        """The step's inputs in its order."""
        return [shared.tensor for shared in (*self._fed(), *self.params.values())]

    def fill(self, at: int, orders: Sequence[NDArray[np.int64]], running: Sequence[int]) -> None:
        """Write batch number `at` of every lane that has one."""
        self.weights.array[...] = 0
        for number, lane in enumerate(self.lanes):
            if at >= running[number]:
                continue
            batch = lane.batch
            rows = orders[number][at * batch : (at + 1) * batch]
            self.feed.inputs.array[number, :batch] = lane.features[rows]
            self.feed.targets.array[number, :batch] = lane.targets[rows]
            self.weights.array[number, :batch] = 1 / batch

    def result(self, number: int, sums: Array, peak_bytes: int) -> Trained:
        """Return lane `number`'s result; `sums` (passes, 2) are its losses and squared norms."""
        lane = self.lanes[number]
        job, names = lane.job, lane.job.plan.names
        after = np.concatenate([self.params[name].array[number].reshape(-1) for name in names])
        sums = sums[: job.passes]
        delta = finite_delta(job, after, job.plan.manifest.take(lane.start, names), sums)
        return Trained(
            job=job.job,
            delta=delta,
            examples=len(lane.features),
            steps=lane.steps * job.passes,
            step_square_sum=float(sums[:, 1].sum()),
            loss_first=float(sums[0, 0]) / lane.steps,
            loss_last=float(sums[-1, 0]) / lane.steps,
            peak_bytes=peak_bytes,
        )
