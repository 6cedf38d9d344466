"""Trains a plan's units on one node's own examples.

One compiled step serves every training of the same plan, batch size and execution (see `edge_node.lean`):
parameters and batch are its inputs, the units' gradients its result. The update is numpy's, in place, so a
trained unit costs its gradient and nothing more.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinygrad.helpers import Context

from edge_node import design as design_module
from edge_node import lean
from edge_node.design import StageMap, StepDesign
from edge_node.features import FEATURE_BYTES, FrozenFeatures
from edge_node.jitcache import Step, jit_cache, source_digest
from edge_node.lean import micro_step, training_mode
from edge_node.micro import StepMemory, TensorViews, captured, shared_zeros
from edge_node.ways import Way, Ways
from hedgerow.core.effects import Probe, Probed, Train, Trained
from hedgerow.core.execution import Execution
from hedgerow.core.plan import Plan
from hedgerow.core.splitmix import words
from hedgerow.core.units import Vector
from hedgerow.runtime.memory import PeakMeter
from hedgerow.runtime.model import Model
from hedgerow.runtime.ports import ComputeError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Ready:
    """A compiled step, how it is computed, and the batch size it serves."""

    design: StepDesign
    way: Way
    step: Step


class Trainer:
    """Trains one node's examples; the compiled steps live in `jit_folder`, shared with other nodes.

    What frozen stages make of the examples is kept in `features_folder`, the node's own, or in memory without
    one; `feature_bytes` bounds it, and what is larger is computed in every step. `stages` are the model's,
    where many trainers share them. All calls must come from the
    one thread that owns tinygrad. Raises ConfigError when the examples do not fit the model. `mapped_bytes`
    is the most that tinygrad's allocator held in the last training, in whole pages.
    """

    def __init__(
        self,
        model: Model,
        inputs: Array,
        targets: Array,
        jit_folder: Path,
        features_folder: Path | None = None,
        feature_bytes: int = FEATURE_BYTES,
        stages: StageMap | None = None,
    ) -> None:
        self._model = model
        self._inputs, self._targets = model.checked(inputs, targets)
        self._jits = jit_cache(jit_folder)
        self._map = stages or StageMap(model)
        self._views = TensorViews(model.manifest)
        self._ways = Ways(model, self._jits)
        self.mapped_bytes = 0
        self.features = FrozenFeatures(
            model, self._map, self._inputs, self._jits, features_folder, feature_bytes
        )

    def train(self, job: Train, execution: Execution | None = None) -> Trained:
        """Run `job.passes` passes of stochastic gradient descent over shuffled full batches.

        A shard smaller than a batch is one batch; otherwise a pass leaves out the rest that fills none. After
        `job.max_steps` steps above 0 it ends. With `job.proximal` = mu above 0 each step also subtracts
        lr * mu * (w - w_0), w_0 being where the training began (FedProx, Li et al., 2020). `peak_bytes`
        counts the held parameters, one micro-batch, gradients and intermediates. `execution` is for
        comparisons; else the fastest within `job.memory_bytes` is taken. Raises ComputeError when none fits
        or the result is not finite.
        """
        start = starting_params(job)
        pull_bytes = 2 * 4 * job.plan.size if job.proximal else 0
        allowed = max(1, job.memory_bytes - pull_bytes) if job.memory_bytes else 0
        ready = self._ready(job.plan, job.batch_size, start, allowed, execution)
        with _memory_given_back(), PeakMeter() as meter:
            inputs = self.features.get(start, ready.design.start, ready.way.pass_rows)
            memory = StepMemory(ready.design, self._views, start)
            descent = _Descent(job, ready, memory, inputs, self._targets)
            losses = list(descent.passes())
            ready.step.captured.free_intermediates()
        self.mapped_bytes = meter.mapped_bytes
        trained = {name: memory.views[name].reshape(-1) for name in job.plan.names}
        after = np.concatenate(list(trained.values()))
        sums = np.array([descent.squares, *map(sum, losses)])
        delta = finite_delta(job, after, self._model.manifest.take(start, trained), sums)
        return Trained(
            job=job.job,
            delta=delta,
            examples=len(self._inputs),
            steps=sum(map(len, losses)),
            step_square_sum=descent.squares,
            loss_first=float(np.mean(losses[0])),
            loss_last=float(np.mean(losses[-1])),
            peak_bytes=meter.peak_bytes + pull_bytes,
            planned_bytes=ready.way.planned_bytes + pull_bytes,
            execution=ready.way.execution,
        )

    def probe(self, job: Probe) -> Probed:
        """Measure each unit's squared gradient norm, the mean over batches drawn by `job.seed`.

        Only norms leave the step, so a probe needs no memory for gradients. Where `job.memory_bytes` allows
        less than a whole batch at once, a batch is a number of smaller ones and each counts by itself; their
        gradients are noisier, so their norms are larger. Raises ComputeError where none fits or a norm is not
        finite.
        """
        params = checked_params(job.job, job.plan, job.params)
        ready = self._ready(job.plan, job.batch_size, params, job.memory_bytes, squares=True)
        inputs = self.features.get(params, ready.design.start, ready.way.pass_rows)
        memory = StepMemory(ready.design, self._views, params)
        size, taken = ready.design.execution.micro_batch, 0
        squares = dict.fromkeys(job.plan.names, 0.0)
        for rows in _batches(job.seed, ready.design.batch, len(self._inputs), job.batches):
            for start in range(0, len(rows), size):
                memory.gradient(ready.step, inputs, self._targets, rows[start : start + size])
                taken += 1
                for name, result in memory.results.items():
                    squares[name] += float(result[0])
        ready.step.captured.free_intermediates()
        if not np.isfinite(list(squares.values())).all():
            raise ComputeError(f"job {job.job}: a gradient at these parameters is not finite")
        means = {name: square / taken for name, square in squares.items()}
        return Probed(job.job, means, job.batches)

    def _ready(
        self,
        plan: Plan,
        batch_size: int,
        params: Vector,
        allowed_bytes: int,
        execution: Execution | None = None,
        *,
        squares: bool = False,
    ) -> _Ready:
        """Choose and compile all that a training needs; its key names every shape."""
        batch = min(batch_size, len(self._inputs))
        first = self._map.first(plan)
        design = StepDesign(
            self._map,
            plan,
            batch,
            execution or Execution(batch),
            first if self.features.fit(first) else 0,
            self._targets.shape[1:],
            str(self._targets.dtype),
            squares,
        )
        way = self._ways.of(design, 0 if execution else allowed_bytes)
        design = design.within(way.execution)
        self.features.prepare(params, design.start, way.pass_rows)
        # tinygrad checks no shape of a 1-D input: the key must.
        identity = {"step": _SOURCES, "model": self._model.identity, **design.key()}
        return _Ready(design, way, self._jits.step(identity, lambda: self._compile(design)))

    def _compile(self, design: StepDesign) -> Step:
        arguments = [shared_zeros(shape, kind).tensor for shape, kind in design.buffers]
        with training_mode():
            return captured(micro_step(self._model, design, arguments), arguments)


class _Descent:
    """Gradient descent over one job's passes; `squares` sums the squared norms of its steps' gradients."""

    def __init__(
        self, job: Train, ready: _Ready, memory: StepMemory, inputs: Array, targets: Array
    ) -> None:
        self.squares = 0.0
        self._job = job
        self._ready = ready
        self._memory = memory
        self._inputs, self._targets = inputs, targets
        self._parts = ready.design.batch // ready.way.execution.micro_batch
        pulled = [memory.views[name] for name in job.plan.names] if job.proximal else []
        self._pull = ProximalPull(pulled)

    def passes(self) -> Iterator[list[float]]:
        """Run the passes, and yield the losses of each one's steps."""
        job, batch = self._job, self._ready.design.batch
        left = job.max_steps or job.passes * (len(self._inputs) // batch)
        for number in range(job.passes):
            order = pass_order(job.seed, number, len(self._inputs))
            steps = min(left, len(order) // batch)
            if steps:
                yield [self._step(rows) for rows in order[: steps * batch].reshape(steps, batch)]
            left -= steps

    def _step(self, rows: NDArray[np.int64]) -> float:
        strength = np.array(self._job.learning_rate * self._job.proximal, np.float32)
        loss = self._memory.gradient(self._ready.step, self._inputs, self._targets, rows)
        distances = self._pull.distances()
        with np.errstate(invalid="ignore", over="ignore"):
            rate = self._job.learning_rate / self._parts
            self.squares += self._memory.descend(rate) / self._parts**2
        self._pull.apply(distances, strength)
        return loss / self._parts


def _memory_given_back() -> Any:
    """Return the context in which freed buffers go back to the system at once, not to others."""
    return Context(LRU=0)  # type: ignore[no-untyped-call]


def _batches(seed: int, batch: int, examples: int, count: int) -> Iterator[NDArray[np.int64]]:
    """Yield the rows of `count` batches, from as many passes as they need."""
    for number in range(-(-count // (examples // batch))):
        order = pass_order(seed, number, examples)
        for start in range(0, examples - batch + 1, batch):
            if count:
                yield order[start : start + batch]
                count -= 1


class ProximalPull:
    """FedProx's pull of `arrays` towards the values they had at first (Li et al., 2020).

    It acts around a compiled step, which knows nothing of it: the distances are taken before the step and
    subtracted after it, so the gradient's squared norm stays the loss's own.
    """

    def __init__(self, arrays: Sequence[Array]) -> None:
        self._arrays = list(arrays)
        self._origins = [array.copy() for array in self._arrays]

    @property
    def nbytes(self) -> int:
        """Memory of the first values and the distances, which the meter of tensors does not see."""
        return 2 * sum(origin.nbytes for origin in self._origins)

    def distances(self) -> list[Array]:
        """Return how far each array is from where it began."""
        with np.errstate(invalid="ignore", over="ignore"):
            return [
                array - origin for array, origin in zip(self._arrays, self._origins, strict=True)
            ]

    def apply(self, distances: Sequence[Array], strength: Array) -> None:
        """Subtract `strength` (learning rate times mu) times its distance from each array.

        `strength` is float32 of shape (), or (lanes,) where the arrays' first axis is one of lanes.
        """
        with np.errstate(invalid="ignore", over="ignore"):
            for array, distance in zip(self._arrays, distances, strict=True):
                factor = strength.reshape(strength.shape + (1,) * (array.ndim - strength.ndim))
                np.subtract(array, factor * distance, out=array)


def starting_params(job: Train) -> Vector:
    """Return a copy of the job's parameters, shape (P,), with its offset added to the plan's units."""
    params = checked_params(job.job, job.plan, job.params).copy()
    manifest = job.plan.manifest
    if job.offset is not None:
        if job.offset.shape != (job.plan.size,):
            raise ComputeError(
                f"job {job.job}: offset has shape {job.offset.shape}, not ({job.plan.size},)"
            )
        for name, where in job.plan.slices.items():
            params[manifest.slices[name]] += job.offset[where]
    return params


def checked_params(job: int, plan: Plan, params: Vector) -> Vector:
    """Return the parameters as float32; raises ComputeError unless they have shape (P,)."""
    found = np.asarray(params, np.float32)
    if found.shape != (plan.manifest.size,):
        raise ComputeError(
            f"job {job}: params have shape {found.shape}, not ({plan.manifest.size},)"
        )
    return found


def pass_order(seed: int, number: int, examples: int) -> NDArray[np.int64]:
    """Return the order in which pass `number` of the job with `seed` takes its examples."""
    orders = pass_orders(np.array([seed % 2**64], np.uint64), number, np.array([examples]))
    return orders.reshape(-1)


def pass_orders(
    seeds: NDArray[np.uint64], number: int, examples: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Return the orders of many jobs at once, shape (jobs, most examples of any).

    The first `examples[i]` values of row i are its order, the rest is filling. Examples are sorted by
    numbers drawn for them from the seed and the pass, so a row does not depend on the others.
    """
    most = int(examples.max())
    keys = words(seeds, number, most)
    keys[np.arange(most) >= examples[:, None]] = np.iinfo(np.uint64).max
    return keys.argsort(axis=1, kind="stable")


def finite_delta(job: Train, after: Vector, before: Vector, sums: Array) -> Vector:
    """Return after - before; raises ComputeError unless it and the sums are finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        delta = after - before
    if not (np.isfinite(delta).all() and np.isfinite(sums).all()):
        raise diverged(job)
    return delta


def diverged(job: Train) -> ComputeError:
    """Return the error of a training whose result is not finite."""
    return ComputeError(
        f"job {job.job}: training diverged to values that are not finite; lower"
        f" training.learning_rate (now {job.learning_rate})"
    )


_SOURCES = source_digest(str(design_module.__file__), str(lean.__file__))
