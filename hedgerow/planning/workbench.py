"""What a search for a plan works with: the model, examples of the training data, and the trainer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_node.trainer import Trainer
from hedgerow.core.config import SEARCHED_GROUPS, Config
from hedgerow.core.costs import ModelCosts
from hedgerow.core.effects import Probe, Train, Trained
from hedgerow.core.encodings import feeds_back
from hedgerow.core.errors import ConfigError
from hedgerow.core.plan import Plan, choose_plan, personal_units
from hedgerow.core.units import Vector
from hedgerow.planning.budgets import Tell
from hedgerow.planning.params import read_params
from hedgerow.runtime.data import Dataset, load_dataset
from hedgerow.runtime.layers import model_costs
from hedgerow.runtime.model import Model, load_model

Array = NDArray[Any]

PROXY_STREAM = 7
"""Second half of the seed that examples are drawn by."""

EVALUATION_EXAMPLES = 2048
MOST_PARTS = 8


@dataclass(frozen=True)
class Workbench:
    """The model with its costs and parameters, shape (P,), a sample of the fleet's data and its trainer."""

    config: Config
    seed: int
    examples: int
    target_shape: tuple[int, ...]
    groups: int
    model: Model
    costs: ModelCosts
    params: Vector
    personal: tuple[str, ...]
    trainer: Trainer
    evaluation: tuple[Array, Array]

    @property
    def batch(self) -> int:
        """The fleet's batch size."""
        return self.config.training.batch_size

    @property
    def error_feedback(self) -> bool:
        """Whether nodes may have to keep what their updates leave out."""
        return feeds_back(self.config.training.encoding, self.config.node.max_update_bytes)

    def batch_of(self, memory_class: str) -> int:
        """Return the batch size of a memory class."""
        own = self.config.training.memory_classes.get(memory_class)
        return self.batch if own is None else own.batch_size

    def plan(self, names: Sequence[str]) -> Plan:
        """Return the units that a node trains for a plan: its own and the personal ones."""
        return Plan.of(self.model.manifest, names).joined(self.personal)

    def probe(self, batches: int, part: int) -> Mapping[str, float]:
        """Return every unit's mean squared gradient norm over so many batches, drawn anew for each part."""
        everything = choose_plan(self.model.manifest, preset="all")
        seed = self.seed * MOST_PARTS + part
        job = Probe(part, everything, self.params, self.batch, batches, seed)
        return self.trainer.probe(job).squares

    def train(self, names: Sequence[str], passes: int, memory_bytes: int) -> tuple[Trained, Vector]:
        """Train a plan on the sample; return the result and the parameters it ends with, shape (P,)."""
        plan = self.plan(names)
        training = self.config.training
        done = self.trainer.train(
            Train(
                job=1,
                plan=plan,
                params=self.params,
                passes=passes,
                batch_size=self.batch,
                learning_rate=training.learning_rate,
                seed=self.seed,
                proximal=training.proximal,
                memory_bytes=memory_bytes,
            )
        )
        after = self.params.copy()
        for name, where in plan.slices.items():
            after[plan.manifest.slices[name]] += done.delta[where]
        return done, after

    def evaluate(self, params: Vector) -> dict[str, float]:
        """Return the task's metrics on the evaluation examples."""
        return self.model.evaluate(params, *self.evaluation)


def open_workbench(
    config: Config,
    *,
    seed: int,
    examples: int,
    model_file: Path | None,
    jit_folder: Path,
    tell: Tell,
) -> Workbench:
    """Load data and model; `tell` shows what is under way. Call `prepare_tinygrad` first.

    Raises ConfigError where the configuration, or the file of parameters, does not fit.
    """
    tell("loading the data")
    dataset = load_dataset(config.data, config.fleet.seed)
    tell("building the model")
    groups = config.plan.groups or SEARCHED_GROUPS
    model = load_model(config.task, dataset.input_shape, groups)
    manifest = model.manifest
    if model_file is None:
        params = model.initial_params(config.fleet.seed)
    else:
        params = read_params(model_file, manifest)
    evaluation = (
        dataset.evaluation_inputs[:EVALUATION_EXAMPLES],
        dataset.evaluation_targets[:EVALUATION_EXAMPLES],
    )
    inputs, targets = sample(dataset, examples, seed)
    return Workbench(
        config=config,
        seed=seed,
        examples=len(inputs),
        target_shape=targets.shape[1:],
        groups=groups,
        model=model,
        costs=model_costs(model),
        params=params,
        personal=personal_units(manifest, config.plan.personal),
        trainer=Trainer(model, inputs, targets, jit_folder),
        evaluation=evaluation,
    )


def sample(dataset: Dataset, examples: int, seed: int) -> tuple[Array, Array]:
    """Draw training examples of the whole fleet without repeating one: inputs and targets."""
    if examples < 1:
        raise ConfigError(f"--examples: {examples} must be 1 or more")
    rng = np.random.default_rng([seed, PROXY_STREAM])
    rows = rng.permutation(len(dataset.inputs))[:examples]
    return dataset.inputs[rows], dataset.targets[rows]
