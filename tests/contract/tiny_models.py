"""Small models and examples for the tests of training, and a plain numpy trainer to compare with."""

from pathlib import Path
from typing import Any

import numpy as np

from edge_node.trainer import Trainer, pass_order
from hedgerow.core.config import TaskConfig
from hedgerow.core.effects import Train
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.core.units import Vector
from hedgerow.runtime.model import Model, load_model

Array = np.ndarray[Any, Any]

MLP = TaskConfig(name="mlp", outputs=3, options={"hidden": [8, 6]})
SHAPE = (5,)


def mlp() -> Model:
    return load_model(MLP, SHAPE)


def examples(rows: int, shape: tuple[int, ...] = SHAPE, classes: int = 3) -> tuple[Array, Array]:
    rng = np.random.default_rng(rows)
    inputs = rng.standard_normal((rows, *shape)).astype(np.float32)
    return inputs, rng.integers(0, classes, rows).astype(np.int32)


def params_of(model: Model, seed: int = 0) -> Vector:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(model.manifest.size).astype(np.float32) * np.float32(0.4)


def job_of(model: Model, **changes: Any) -> Train:
    settings: dict[str, Any] = {
        "job": 1,
        "plan": choose_plan(model.manifest, preset="all"),
        "params": params_of(model),
        "passes": 2,
        "batch_size": 4,
        "learning_rate": 0.1,
        "seed": 11,
    }
    return Train(**(settings | changes))


def trainer_of(model: Model, rows: int, folder: Path) -> Trainer:
    return Trainer(model, *examples(rows), folder)


class NumpyResult:
    """What a plain numpy trainer gets for a classification MLP: delta, sums and losses per pass."""

    def __init__(self, job: Train, inputs: Array, targets: Array) -> None:
        manifest, plan = job.plan.manifest, job.plan
        start = manifest.join(manifest.split(job.params)).astype(np.float64)
        if job.offset is not None:
            for name, where in plan.slices.items():
                start[manifest.slices[name]] += job.offset[where]
        self.params = start.copy()
        self.square_sum, self.steps, self.losses = 0.0, 0, []
        batch = min(job.batch_size, len(inputs))
        for number in range(job.passes):
            order = pass_order(job.seed, number, len(inputs))
            losses = []
            for at in range(0, len(order) - batch + 1, batch):
                rows = order[at : at + batch]
                loss, gradient = mlp_gradient(plan, self.params, inputs[rows], targets[rows])
                self.params -= job.learning_rate * gradient
                self.square_sum += float(gradient @ gradient)
                self.steps += 1
                losses.append(loss)
            self.losses.append(np.mean(losses))
        whole = self.params - start
        self.delta = np.concatenate([whole[manifest.slices[name]] for name in plan.names])


def mlp_gradient(plan: Plan, params: Array, x: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean cross entropy and its gradient, shape (P,), 0 outside the plan."""
    manifest = plan.manifest
    values = {u.name: params[manifest.slices[u.name]].reshape(u.shape) for u in manifest.units}
    inputs: list[Array] = []
    for layer in manifest.layers:
        inputs.append(x)
        x = x @ values[f"{layer}.weight"].T + values[f"{layer}.bias"]
        if layer != manifest.layers[-1]:
            x = np.maximum(x, 0)
    shares = np.exp(x - x.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    rows = np.arange(len(labels))
    loss = -np.log(shares[rows, labels]).mean()
    shares[rows, labels] -= 1
    back = shares / len(labels)
    gradient = np.zeros(manifest.size)
    for layer, source in zip(reversed(manifest.layers), reversed(inputs), strict=True):
        for part, value in (("weight", back.T @ source), ("bias", back.sum(0))):
            if f"{layer}.{part}" in plan.names:
                gradient[manifest.slices[f"{layer}.{part}"]] = value.reshape(-1)
        back = (back @ values[f"{layer}.weight"]) * (source > 0)
    return float(loss), gradient
