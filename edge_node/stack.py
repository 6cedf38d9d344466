"""The memory of a stacked training: lanes side by side, filled and read by numpy for all of them at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_node.trainer import ProximalPull, diverged, pass_orders
from hedgerow.core.effects import Train, Trained
from hedgerow.core.execution import Execution
from hedgerow.core.plan import Plan
from hedgerow.core.units import Unit, Vector
from hedgerow.runtime.buffers import SharedArray
from hedgerow.runtime.ports import ComputeError

Array = NDArray[Any]
Whole = NDArray[np.int64]
ROUNDING = 8
"""Hidden layers are widened to a multiple of this with zeros, so that kernels can use vector instructions."""


@dataclass(frozen=True, slots=True)
class Lanes:
    """Jobs, one per lane, and what steps need of them as arrays of shape (lanes,).

    `starts` is the number of the lane's starting point, `begins` the first row of its shard, `sizes` the
    shard's examples, `batches` the examples of a step, `totals` the steps of all passes.
    """

    jobs: list[Train]
    starts: Whole
    begins: Whole
    sizes: Whole
    batches: Whole
    totals: Whole
    seeds: NDArray[np.uint64]
    rates: NDArray[np.float32]
    pulls: NDArray[np.float32]

    @classmethod
    def of(cls, jobs: list[Train], starts: list[int], begins: Whole, sizes: Whole) -> "Lanes":
        """Read the jobs' settings."""
        batches = np.minimum(np.array([job.batch_size for job in jobs]), sizes)
        totals = np.array([job.passes for job in jobs]) * (sizes // batches)
        limits = np.array([job.max_steps for job in jobs])
        return cls(
            jobs,
            np.array(starts),
            begins,
            sizes,
            batches,
            np.where(limits > 0, np.minimum(limits, totals), totals),
            np.array([job.seed % 2**64 for job in jobs], np.uint64),
            np.array([job.learning_rate for job in jobs], np.float32),
            np.array([job.learning_rate * job.proximal for job in jobs], np.float32),
        )

    def __len__(self) -> int:
        return len(self.jobs)

    @property
    def steps(self) -> Whole:
        """Steps in one whole pass."""
        return self.sizes // self.batches

    @property
    def passes(self) -> Whole:
        """Passes begun."""
        return -(-self.totals // self.steps)

    def in_pass(self, number: int | Whole) -> Whole:
        """Steps that each lane makes in pass `number`; the last pass may be cut short."""
        made: Whole = np.clip(self.totals - number * self.steps, 0, self.steps)
        return made

    def take(self, chosen: Whole) -> "Lanes":
        """Return these lanes only, in this order."""
        return Lanes(
            [self.jobs[i] for i in chosen],
            self.starts[chosen],
            self.begins[chosen],
            self.sizes[chosen],
            self.batches[chosen],
            self.totals[chosen],
            self.seeds[chosen],
            self.rates[chosen],
            self.pulls[chosen],
        )


@dataclass(frozen=True, slots=True)
class Need:
    """What one node alone needs for such a training, as its results say: see `Trained`."""

    peak_bytes: int = 0
    planned_bytes: int = 0
    execution: Execution | None = None


UNKNOWN = Need()


@dataclass(frozen=True, slots=True)
class Start:
    """Where trainings begin: `params` (P,), and the `features` (rows, F) their frozen layers give."""

    params: Vector
    features: Array


@dataclass(frozen=True, slots=True)
class StackShape:
    """What a compiled step is made for.

    `width` lanes, `batch` examples, each of `features` values and a target of `target` (shape and type); the
    `tensors` of the layers from the first trained one on, with their shapes, and the `units` they are cut
    into. `trained` names the tensors that are updated; where only groups of channels are, it has the axis
    these lie along, -1 where the whole tensor is.
    """

    width: int
    batch: int
    features: int
    target: tuple[int, ...]
    target_dtype: str
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    units: tuple[Unit, ...]
    trained: tuple[tuple[str, int], ...]

    @property
    def layers(self) -> list[str]:
        """The layers in the order of use."""
        return list(dict.fromkeys(_layer(name) for name, _ in self.tensors))

    @property
    def padded(self) -> dict[str, tuple[int, ...]]:
        """Each tensor's shape in the stack, its hidden sides rounded up."""
        return {name: self._padded(name, shape) for name, shape in self.tensors}

    def _padded(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        first, *_, last = [*self.layers, self.layers[-1]]
        outputs = shape[0] if _layer(name) == last else _rounded(shape[0])
        inputs = shape[1:]
        return outputs, *(inputs if _layer(name) == first else map(_rounded, inputs))


def _layer(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _rounded(size: int) -> int:
    return -(-size // ROUNDING) * ROUNDING


@dataclass(frozen=True, slots=True)
class _Feed:
    """What a step takes besides parameters, for each lane.

    A batch of `inputs` and `targets`, the learning `rate`; the step adds loss and squared gradient norm to
    `sums`. `weights` are the examples' shares of the loss.
    """

    inputs: SharedArray
    targets: SharedArray
    rate: SharedArray
    sums: SharedArray
    weights: SharedArray

    @property
    def all(self) -> tuple[SharedArray, ...]:
        """All in the step's order."""
        return self.inputs, self.targets, self.rate, self.sums, self.weights


class Stack:
    """`width` lanes of which the first ones are used.

    A lane that has nothing to do in a step has weight 0 in every row, so its loss and gradient are 0.
    `masks` have 1 where a tensor is trained in groups only, and 0 elsewhere: the step is the same for all
    choices of groups.
    """

    def __init__(self, shape: StackShape) -> None:
        def of(*sizes: int, dtype: DTypeLike = np.float32) -> SharedArray:
            return SharedArray.of((shape.width, *sizes), dtype)

        self.shape = shape
        self.feed = _Feed(
            of(shape.batch, shape.features),
            of(shape.batch, *shape.target, dtype=shape.target_dtype),
            of(),
            of(2),
            of(shape.batch),
        )
        padded = shape.padded
        self.params = {name: of(*padded[name]) for name, _ in shape.tensors}
        self.masks = {
            name: SharedArray.of((padded[name][axis],)) for name, axis in shape.trained if axis >= 0
        }
        for shared in (*self.feed.all, *self.masks.values(), *self.params.values()):
            shared.array[...] = 0
        inside = {name: _inside(self.params[name].array, sizes) for name, sizes in shape.tensors}
        self._views = {unit.name: _part(inside[unit.tensor], unit) for unit in shape.units}

    @property
    def tensors(self) -> list[Any]:
        """The step's inputs in its order."""
        held = (*self.feed.all, *self.masks.values(), *self.params.values())
        return [shared.tensor for shared in held]

    def train(
        self,
        lanes: Lanes,
        starts: Sequence[Start],
        targets: Array,
        step: Callable[..., None],
        need: Need,
    ) -> list[Trained | ComputeError]:
        """Train the lanes, at most `width`, from `starts` with rows of their features and of `targets`."""
        plan = lanes.jobs[0].plan
        self._load(lanes, starts)
        pulled = (
            [self._views[name][: len(lanes)] for name in plan.names] if lanes.pulls.any() else []
        )
        pull = ProximalPull(pulled)
        sums = np.array(
            [
                self._pass(number, lanes, starts, targets, step, pull)
                for number in range(lanes.passes.max())
            ]
        )
        return self._results(lanes, self._deltas(lanes, starts, plan), sums, need)

    def _load(self, lanes: Lanes, starts: Sequence[Start]) -> None:
        """Write rates, masks and parameters; a run of lanes that start alike is one write."""
        count = len(lanes)
        self._mask(lanes.jobs[0].plan)
        self.feed.rate.array[:count] = lanes.rates
        for run, start in _runs(lanes, starts):
            for name, piece in self._pieces(lanes.jobs[0].plan, start):
                self._views[name][run] = piece
        for shared in self.params.values():
            shared.array[count:] = 0

    def _mask(self, plan: Plan) -> None:
        for mask in self.masks.values():
            mask.array[:] = 0
        for name in plan.names:
            part = plan.manifest.by_name[name].part
            if part is not None and part.tensor in self.masks:
                self.masks[part.tensor].array[part.start : part.stop] = 1

    def _pieces(self, plan: Plan, start: Start) -> Iterator[tuple[str, Vector]]:
        for unit in self.shape.units:
            yield unit.name, start.params[plan.manifest.slices[unit.name]].reshape(unit.shape)

    def _pass(
        self,
        number: int,
        lanes: Lanes,
        starts: Sequence[Start],
        targets: Array,
        step: Callable[..., None],
        pull: ProximalPull,
    ) -> Array:
        """Run one pass of every lane; return the sums of loss and squared norms, shape (lanes, 2)."""
        self.feed.sums.array[...] = 0
        tensors = self.tensors
        running = lanes.in_pass(number)
        rows = self._rows(number, lanes, int(running.max()))
        for at in range(int(running.max())):
            self._fill(lanes, starts, targets, rows[:, at], at < running)
            distances = pull.distances()
            step(*tensors)
            pull.apply(distances, np.where(at < running, lanes.pulls, np.float32(0)))
        return self.feed.sums.array[: len(lanes)].copy()

    def _rows(self, number: int, lanes: Lanes, steps: int) -> Whole:
        """Return which rows each lane's steps take, shape (lanes, steps, batch).

        A shard smaller than a batch repeats its last row, which then has weight 0.
        """
        orders = pass_orders(lanes.seeds, number, lanes.sizes)
        batch = self.shape.batch
        columns = np.minimum(np.arange(steps * batch), lanes.sizes[:, None] - 1)
        rows = np.take_along_axis(orders, columns, axis=1) + lanes.begins[:, None]
        return rows.reshape(len(lanes), steps, batch)

    def _fill(
        self,
        lanes: Lanes,
        starts: Sequence[Start],
        targets: Array,
        rows: Whole,
        active: NDArray[np.bool_],
    ) -> None:
        """Write a batch for every lane; `rows` has shape (lanes, batch)."""
        inputs = self.feed.inputs.array
        for run, features in _feature_runs(lanes, starts):
            flat = inputs[run].reshape(-1, self.shape.features)
            # Without a mode, numpy would check the rows first and copy twice.
            np.take(features, rows[run].reshape(-1), axis=0, out=flat, mode="clip")
        self.feed.targets.array[: len(lanes)] = targets[rows]
        used = np.arange(self.shape.batch) < np.where(active, lanes.batches, 0)[:, None]
        weights = self.feed.weights.array
        weights[: len(lanes)] = used * (np.float32(1) / lanes.batches[:, None])
        weights[len(lanes) :] = 0

    def _deltas(self, lanes: Lanes, starts: Sequence[Start], plan: Plan) -> Array:
        """Return after - before on the plan's units, shape (lanes, p)."""
        deltas = np.empty((len(lanes), plan.size), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for run, start in _runs(lanes, starts):
                for name, before in self._pieces(plan, start):
                    if name in plan.slices:
                        out = deltas[run, plan.slices[name]].reshape(-1, *before.shape)
                        np.subtract(self._views[name][run], before, out=out)
        return deltas

    def _results(
        self, lanes: Lanes, deltas: Array, sums: Array, need: Need
    ) -> list[Trained | ComputeError]:
        """Return each lane's result; `sums` has shape (passes, lanes, 2)."""
        last = lanes.passes - 1
        first_losses = (sums[0, :, 0] / lanes.in_pass(0)).tolist()
        last_losses = (sums[last, np.arange(len(lanes)), 0] / lanes.in_pass(last)).tolist()
        squares = sums[:, :, 1].sum(0, dtype=np.float64).tolist()
        made = lanes.totals.tolist()
        sizes = lanes.sizes.tolist()
        results: list[Trained | ComputeError] = [
            Trained(
                job=job.job,
                delta=deltas[i],
                examples=sizes[i],
                steps=made[i],
                step_square_sum=squares[i],
                loss_first=first_losses[i],
                loss_last=last_losses[i],
                peak_bytes=need.peak_bytes,
                planned_bytes=need.planned_bytes,
                execution=need.execution,
            )
            for i, job in enumerate(lanes.jobs)
        ]
        for i in _not_finite(deltas, sums):
            results[i] = diverged(lanes.jobs[i])
            # What is not finite must not stay beyond the units, where nothing writes again.
            for shared in self.params.values():
                shared.array[i] = 0
        return results


def _inside(padded: Array, sizes: tuple[int, ...]) -> Array:
    """Return what lies in a tensor of every lane itself, without the zeros beyond."""
    return padded[(slice(None), *(slice(size) for size in sizes))]


def _part(tensor: Array, unit: Unit) -> Array:
    """Return a unit's part of its tensor in every lane."""
    return tensor if unit.part is None else tensor[(slice(None), *unit.part.index)]


def _not_finite(deltas: Array, sums: Array) -> list[int]:
    """Return the lanes of which some value is not finite."""
    with np.errstate(invalid="ignore", over="ignore"):
        # A sum is finite only if every value is, and costs a fraction of looking at each.
        doubtful = ~np.isfinite(deltas.sum(axis=1) + sums.sum(axis=(0, 2)))
    return [
        int(i)
        for i in np.flatnonzero(doubtful)
        if not (np.isfinite(deltas[i]).all() and np.isfinite(sums[:, i]).all())
    ]


def _runs(lanes: Lanes, starts: Sequence[Start]) -> Iterator[tuple[slice, Start]]:
    """Yield neighbouring lanes that start alike."""
    begin = 0
    for number, members in groupby(lanes.starts.tolist()):
        end = begin + sum(1 for _ in members)
        yield slice(begin, end), starts[number]
        begin = end


def _feature_runs(lanes: Lanes, starts: Sequence[Start]) -> Iterator[tuple[slice, Array]]:
    """Yield neighbouring lanes whose features lie in one array."""
    runs = [(run, start.features) for run, start in _runs(lanes, starts)]
    for _, members in groupby(runs, key=lambda pair: id(pair[1])):
        alike = list(members)
        yield slice(alike[0][0].start, alike[-1][0].stop), alike[0][1]
