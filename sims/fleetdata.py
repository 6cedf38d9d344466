"""The examples of a simulated fleet: each node's own, the evaluation set, and a public share."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hedgerow.core.config import Config
from hedgerow.core.errors import ConfigError
from hedgerow.runtime.data import Dataset, Examples, load_dataset, local_test, node_shards
from sims.disturb import kept_rows, noisy_nodes, with_wrong_labels
from sims.scenario import DisturbTable, Scenario

Array = NDArray[Any]

_PUBLIC_STREAM, _SKEW_STREAM, _NOISE_STREAM, _LABEL_STREAM = 11, 12, 13, 14
"""Second parts of seeds, so that the draws of one seed are independent; up to 3 are taken by the data set."""


@dataclass(frozen=True)
class FleetData:
    """`shards` has what each node trains on, in the order of nodes; `tests` what it tests on, if anything.

    `public` are the examples of the warm start, or None; `input_shape` is one example's.
    """

    shards: list[Examples]
    tests: list[Examples]
    evaluation: Examples
    public: Examples | None
    input_shape: tuple[int, ...]


def load_fleet_data(scenario: Scenario, config: Config, seed: int) -> FleetData:
    """Read the data set, take the public share away, deal the rest to the nodes and disturb it.

    All of it follows from the seed and tables that no strategy changes: every strategy gets the same. Raises
    ConfigError naming the key, the value and the fix.
    """
    dataset = load_dataset(config.data, seed)
    public: Examples | None = None
    if scenario.warm_start.passes:
        public, dataset = _without_public(dataset, scenario.warm_start.share, seed)
    dealt = node_shards(dataset, config.data, config.fleet.nodes, seed)
    own = _disturbed(dealt, scenario.disturb, config, seed)
    cut = [local_test(shard, config.data, node, seed) for node, shard in enumerate(own)]
    return FleetData(
        shards=[shard for shard, _ in cut],
        tests=[test for _, test in cut],
        evaluation=(dataset.evaluation_inputs, dataset.evaluation_targets),
        public=public,
        input_shape=dataset.input_shape,
    )


def _without_public(dataset: Dataset, share: float, seed: int) -> tuple[Examples, Dataset]:
    """Return a random share of the training examples, and the data set without them."""
    rows = len(dataset.inputs)
    order = np.random.default_rng([seed, _PUBLIC_STREAM]).permutation(rows)
    count = round(share * rows)
    if not 0 < count < rows:
        raise ConfigError(
            f"warm_start.share: {share:g} of {rows} training examples is {count}; leave some for both"
        )
    public, own = np.sort(order[:count]), np.sort(order[count:])
    rest = replace(
        dataset,
        inputs=dataset.inputs[own],
        targets=dataset.targets[own],
        groups=None if dataset.groups is None else dataset.groups[own],
    )
    return (dataset.inputs[public], dataset.targets[public]), rest


def _disturbed(
    shards: list[Examples], disturb: DisturbTable, config: Config, seed: int
) -> list[Examples]:
    if disturb.quantity_skew:
        shards = [
            _thinned(shard, disturb, np.random.default_rng([seed, _SKEW_STREAM, node]))
            for node, shard in enumerate(shards)
        ]
    if disturb.label_noise:
        shards = _mislabelled(shards, disturb, config, seed)
    return shards


def _thinned(shard: Examples, disturb: DisturbTable, rng: np.random.Generator) -> Examples:
    inputs, targets = shard
    rows = kept_rows(len(inputs), disturb.quantity_skew, disturb.smallest, rng)
    return inputs[rows], targets[rows]


def _mislabelled(
    shards: list[Examples], disturb: DisturbTable, config: Config, seed: int
) -> list[Examples]:
    noisy = list(shards)
    chance = np.random.default_rng([seed, _NOISE_STREAM])
    for node in noisy_nodes(len(shards), disturb.noisy_nodes, chance):
        inputs, labels = shards[node]
        if labels.dtype.kind != "i" or labels.ndim != 1:
            raise ConfigError(
                f"disturb.label_noise: {disturb.label_noise:g}, but the targets of"
                f" {config.data.source!r} are {labels.dtype} of shape (rows, ...); need classes"
            )
        rng = np.random.default_rng([seed, _LABEL_STREAM, node])
        classes = config.task.outputs
        noisy[node] = inputs, with_wrong_labels(labels, disturb.label_noise, classes, rng)
    return noisy
