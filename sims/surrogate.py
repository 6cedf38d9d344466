"""A convex problem in the place of training, for runs that are about faults and scale and not about learning.

Node i's best parameters are c_i = c + HETEROGENEITY * noise_i; a training makes gradient steps on
0.5 * ||w - c_i||^2 with a little noise. It needs neither tinygrad nor data, and follows from the seed alone.
The parameters are cut into the units of a network of that many layers, with costs to match, so that plans can
be searched, too.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from hedgerow.core.costs import FLOAT_BYTES, ModelCosts, StageCost
from hedgerow.core.effects import Probe, Probed, Train, Trained
from hedgerow.core.errors import ConfigError
from hedgerow.core.plan import Plan
from hedgerow.core.splitmix import words
from hedgerow.core.units import Manifest, Vector
from hedgerow.runtime.ports import ComputeError
from sims.costs import TrainingCost

HEAD = 8
"""Parameters of the last unit."""
LAYERS = 4
"""Layers before the last one, where there are as many parameters."""
HETEROGENEITY = 0.3
NOISE = 0.05
"""A step's gradient is off by at most this in each parameter."""
FEWEST, MOST = 10, 100
"""Examples of a node."""
FIRST_ACCURACY = 0.1
"""Accuracy of the initial parameters."""

_OPTIMUM, _NODES, _EXAMPLES = 21, 22, 23
_VALUES_AT_ONCE = 2**20

Matrix = NDArray[np.float32]
Result = Trained | ComputeError


class SurrogateTrainer:
    """Trains `node_count` nodes on a convex problem of `parameters` values, in the units of a few layers.

    The last unit has HEAD of them. Raises ConfigError when there are too few for one more.
    """

    def __init__(self, node_count: int, parameters: int, seed: int) -> None:
        if parameters <= HEAD:
            raise ConfigError(
                f"scenario.surrogate_parameters: {parameters} must be more than the {HEAD} of its last"
                " unit; set 64"
            )
        self.manifest = Manifest.of(_units(parameters))
        self._optimum = _normal(seed, _OPTIMUM, (parameters,))
        spread = _normal(seed, _NODES, (node_count, parameters))
        self._optima = self._optimum + np.float32(HETEROGENEITY) * spread
        self._examples = (
            np.random.default_rng([seed, _EXAMPLES]).integers(FEWEST, MOST + 1, node_count).tolist()
        )
        self._scale = float(_squares(self._optimum[None])[0]) / -np.log(FIRST_ACCURACY)

    def initial_params(self) -> Vector:
        """Return version 0: zeros, shape (P,)."""
        return np.zeros(self.manifest.size, np.float32)

    def examples(self, node: int) -> int:
        """Return how many examples a node has."""
        return int(self._examples[node])

    def training_cost(self, plan: Plan) -> TrainingCost:  # noqa: ARG002 - every plan costs the same
        """Return what one example costs in a training step: a million operations."""
        return TrainingCost(1.0)

    def costs(self) -> ModelCosts:
        """Return costs for a search: every layer's activations are as large as its parameters."""
        sizes = [FLOAT_BYTES * unit.size for unit in self.manifest.units]
        stages = [
            StageCost(unit.layer, (unit.layer,), size, following, 0, 1.0)
            for unit, size, following in zip(
                self.manifest.units, sizes, [*sizes[1:], FLOAT_BYTES], strict=True
            )
        ]
        return ModelCosts(self.manifest, tuple(stages), sizes[0], FLOAT_BYTES)

    def too_large(self, job: Train) -> ComputeError | None:
        """Return why a training does not fit its `memory_bytes`, None where it does."""
        needed = self._peak_bytes(job.plan)
        if 0 < job.memory_bytes < needed:
            return ComputeError(
                f"plan {job.plan.plan_id}: training needs {needed} bytes, of {job.memory_bytes} allowed"
            )
        return None

    def probe(self, node: int, job: Probe) -> Probed | ComputeError:
        """Return the squared norms of the units' gradients at `job.params` for one node."""
        manifest = job.plan.manifest
        if job.params.shape != (manifest.size,):
            return ComputeError(f"job {job.job}: params have shape {job.params.shape}")
        gradient = job.params - self._optima[node]
        squares = {
            name: float(_squares(gradient[None, manifest.slices[name]])[0])
            for name in job.plan.names
        }
        return Probed(job.job, squares, job.batches)

    def _peak_bytes(self, plan: Plan) -> int:
        return FLOAT_BYTES * (self.manifest.size + 2 * plan.size)

    def evaluate(self, params: Vector) -> dict[str, float]:
        """Return accuracy exp(-||w - c||^2 / scale) and mean loss for `params`, shape (P,)."""
        return self._metrics(params - self._optimum[None])[0]

    def evaluate_nodes(self, params: Vector) -> list[dict[str, float]]:
        """Return the same by each node's own optimum."""
        return self._metrics(params - self._optima)

    def evaluate_node(self, node: int, params: Vector) -> dict[str, float]:
        """Return the same for one node."""
        return self._metrics(params - self._optima[node][None])[0]

    def train(self, jobs: Sequence[tuple[int, Train]]) -> list[Result]:
        """Train (node, job) pairs, a gradient step per pass; return the results in their order.

        A job that fails has its ComputeError in its place.
        """
        results: dict[int, Result] = {}
        groups: dict[tuple[str, int], list[int]] = {}
        for i, (_, job) in enumerate(jobs):
            error = _misfit(job) or self.too_large(job)
            if error is None:
                groups.setdefault((job.plan.plan_id, _steps(job)), []).append(i)
            else:
                results[i] = error
        at_once = max(1, _VALUES_AT_ONCE // self.manifest.size)
        for members in groups.values():
            for begin in range(0, len(members), at_once):
                chosen = members[begin : begin + at_once]
                results.update(zip(chosen, self._group([jobs[i] for i in chosen]), strict=True))
        return [results[i] for i in range(len(jobs))]

    def _group(self, jobs: list[tuple[int, Train]]) -> list[Result]:
        """Train jobs of one plan and number of steps."""
        plan, steps = jobs[0][1].plan, _steps(jobs[0][1])
        columns = _columns(plan)
        optima = self._optima[[node for node, _ in jobs]][:, columns]
        start = np.array([job.params for _, job in jobs], np.float32)[:, columns]
        for i, (_, job) in enumerate(jobs):
            if job.offset is not None:
                start[i] += job.offset
        rates = np.array([[job.learning_rate] for _, job in jobs], np.float32)
        pulls = np.array([[job.proximal] for _, job in jobs], np.float32)
        seeds = np.array([job.seed % 2**64 for _, job in jobs], np.uint64)
        params, losses, norms = start.copy(), [], np.zeros(len(jobs))
        with np.errstate(over="ignore", invalid="ignore"):
            for number in range(steps):
                distance = params - optima
                losses.append(0.5 * _squares(distance) / plan.size)
                gradient = distance + np.float32(NOISE) * _uniform(seeds, number, plan.size)
                norms += _squares(gradient)
                params -= rates * (gradient + pulls * (params - start))
            deltas = params - start
        return self._results(jobs, deltas, norms, losses, self._peak_bytes(plan))

    def _results(
        self,
        jobs: list[tuple[int, Train]],
        deltas: Matrix,
        norms: NDArray[np.float64],
        losses: list[NDArray[np.float64]],
        peak_bytes: int,
    ) -> list[Result]:
        first, last, squares = losses[0].tolist(), losses[-1].tolist(), norms.tolist()
        finite = (np.isfinite(deltas).all(axis=1) & np.isfinite(norms)).tolist()
        return [
            Trained(
                job=job.job,
                delta=deltas[i],
                examples=self._examples[node],
                steps=_steps(job),
                step_square_sum=squares[i],
                loss_first=first[i],
                loss_last=last[i],
                peak_bytes=peak_bytes,
            )
            if finite[i]
            else ComputeError(
                f"job {job.job}: training diverged; lower training.learning_rate"
                f" (now {job.learning_rate})"
            )
            for i, (node, job) in enumerate(jobs)
        ]

    def _metrics(self, distances: Matrix) -> list[dict[str, float]]:
        """Return the metrics of each row of distances from the optimum, shape (rows, P)."""
        with np.errstate(over="ignore", invalid="ignore"):
            squares = _squares(distances)
        losses = (0.5 * squares / distances.shape[1]).tolist()
        accuracies = np.exp(-squares / self._scale).tolist()
        return [
            {"accuracy": accuracy, "loss": loss}
            for accuracy, loss in zip(accuracies, losses, strict=True)
        ]


def _misfit(job: Train) -> ComputeError | None:
    """Return the error of a job whose vectors are not as long as its plan says."""
    plan = job.plan
    if job.params.shape != (plan.manifest.size,):
        return ComputeError(
            f"job {job.job}: params have shape {job.params.shape}, not ({plan.manifest.size},)"
        )
    if job.offset is not None and job.offset.shape != (plan.size,):
        return ComputeError(
            f"job {job.job}: offset has shape {job.offset.shape}, not ({plan.size},)"
        )
    return None


def _units(parameters: int) -> dict[str, tuple[int, ...]]:
    """Return the units' shapes: LAYERS layers of like size, or one, and the last."""
    body = parameters - HEAD
    count = LAYERS if body >= LAYERS else 1
    bounds = [body * number // count for number in range(count + 1)]
    layers = {f"body.{i}.weight": (b - a,) for i, (a, b) in enumerate(pairwise(bounds))}
    return {**layers, "head.weight": (HEAD,)}


def _steps(job: Train) -> int:
    """Return the gradient steps of a training: one for each pass."""
    return min(job.passes, job.max_steps) if job.max_steps else job.passes


def _columns(plan: Plan) -> slice | NDArray[np.intp]:
    """Where the plan's units lie in the parameters; in one piece a slice, which is faster."""
    pieces = [plan.manifest.slices[name] for name in plan.names]
    if all(before.stop == after.start for before, after in pairwise(pieces)):
        return slice(pieces[0].start, pieces[-1].stop)
    return np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])


def _squares(rows: Matrix) -> NDArray[np.float64]:
    """Return each row's squared norm, summed in float64."""
    squares: NDArray[np.float64] = np.square(rows, dtype=np.float64).sum(axis=1)
    return squares


def _normal(seed: int, stream: int, shape: tuple[int, ...]) -> Matrix:
    return np.random.default_rng([seed, stream]).standard_normal(shape, np.float32)


def _uniform(seeds: NDArray[np.uint64], stream: int, count: int) -> Matrix:
    """Return numbers in [-1, 1), shape (seeds, count)."""
    return (words(seeds, stream, count) >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - 1
