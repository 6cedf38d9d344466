"""Loads the data set of a configuration and cuts it into training and evaluation examples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hedgerow.core.config import DataConfig
from hedgerow.core.errors import ConfigError
from hedgerow.runtime.sources import Table, read_csv, read_digits, read_function, read_npz
from hedgerow.runtime.splits import split_examples

Array = NDArray[Any]

EVALUATION_STREAM, SHARD_STREAM = 1, 2
"""Second halves of seeds, so that the draws of one seed are independent."""


@dataclass(frozen=True)
class Dataset:
    """Training examples of the whole fleet, and evaluation examples no node trains on.

    `inputs` are float32, shape (rows, ...); `targets` int32 or float32, shape (rows,) or (rows, values);
    `groups`, one value per training row, say whose the example is, or are None.
    """

    inputs: Array
    targets: Array
    groups: Array | None
    evaluation_inputs: Array
    evaluation_targets: Array

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one example's input."""
        return self.inputs.shape[1:]


def load_dataset(config: DataConfig, seed: int) -> Dataset:
    """Read `config.source`; one seed gives one result in every process.

    Raises ConfigError naming the key, the file, the value and the fix.
    """
    table = _read(config)
    inputs = _scaled(config, table.inputs)
    targets = _adjusted(config, table)
    rows = len(inputs)
    for name, values in (("targets", targets), ("group", table.groups)):
        if values is not None and len(values) != rows:
            raise ConfigError(
                f"data.{name}: {config.source!r} has {len(values)} of them for {rows} inputs; one each"
            )
    train, evaluation = _rows(config, table, rows, seed)
    _check_not_empty(config, train, evaluation)
    return Dataset(
        inputs=inputs[train],
        targets=targets[train],
        groups=None if table.groups is None else table.groups[train],
        evaluation_inputs=inputs[evaluation],
        evaluation_targets=targets[evaluation],
    )


def node_shard(
    dataset: Dataset, config: DataConfig, index: int, count: int, seed: int
) -> tuple[Array, Array]:
    """Return the inputs and targets of node `index` of `count`; the nodes' shards never overlap.

    Raises ConfigError when the data cannot be cut into `count` shards as `config.split` says.
    """
    if not 0 <= index < count:
        raise ConfigError(
            f"node: index {index} is not one of 0..{count - 1} (fleet.nodes is {count})"
        )
    rng = np.random.default_rng([seed, SHARD_STREAM])
    rows = split_examples(dataset.targets, dataset.groups, config, count, rng)[index]
    return dataset.inputs[rows], dataset.targets[rows]


def _read(config: DataConfig) -> Table:
    source = config.source
    if source == "digits":
        return read_digits()
    if source.endswith(".npz"):
        return read_npz(config)
    if source.endswith(".csv"):
        return read_csv(config)
    if ":" in source:
        return read_function(source)
    raise ConfigError(
        f"data.source: {source!r} is none of 'digits', a path ending in .npz or .csv, 'module:function'"
    )


def _scaled(config: DataConfig, inputs: Array) -> Array:
    """Return inputs * input_scale + input_offset as float32, checked to be finite."""
    if inputs.dtype.kind not in "biuf" or inputs.ndim < 2:  # noqa: PLR2004
        raise ConfigError(
            f"data.inputs: {config.source!r} has {inputs.dtype} of shape {inputs.shape}; need numbers of"
            " shape (rows, features...)"
        )
    factors = (("input_scale", config.input_scale), ("input_offset", config.input_offset))
    for key, values in factors:
        if values and len(values) not in (1, inputs.shape[-1]):
            raise ConfigError(
                f"data.{key}: {len(values)} values; give 1, or {inputs.shape[-1]} for the last axis of"
                f" inputs of shape {inputs.shape[1:]}"
            )
    with np.errstate(all="ignore"):  # What overflows is reported below.
        scaled = inputs.astype(np.float32)
        if config.input_scale:
            scaled *= np.array(config.input_scale, np.float32)
        if config.input_offset:
            scaled += np.array(config.input_offset, np.float32)
    _check_finite(f"data.inputs: {config.source!r}", scaled)
    return scaled


def _adjusted(config: DataConfig, table: Table) -> Array:
    """Return (targets - baseline) * target_scale: whole numbers stay int32, others become float32."""
    targets = table.targets
    if targets.dtype.kind not in "biuf":
        raise ConfigError(
            f"data.targets: {config.source!r} has {targets.dtype}; need numbers, classes as 0, 1, 2, ..."
        )
    if targets.ndim == 0:
        raise ConfigError(
            f"data.targets: {config.source!r} has a single value; need one for each row"
        )
    if table.baseline is not None:
        if table.baseline.shape != targets.shape or table.baseline.dtype.kind not in "biuf":
            raise ConfigError(
                f"data.baseline: {config.source!r} has {table.baseline.dtype} of shape"
                f" {table.baseline.shape}; need numbers of the targets' shape {targets.shape}"
            )
        targets = targets.astype(np.float64) - table.baseline
    if config.target_scale != 1:
        targets = targets.astype(np.float64) * config.target_scale
    if targets.dtype.kind in "biu":
        return targets.astype(np.int32)
    with np.errstate(over="ignore"):
        targets = targets.astype(np.float32)
    _check_finite(f"data.targets: {config.source!r}", targets)
    return targets


def _check_finite(what: str, values: Array) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise ConfigError(
            f"{what} has {values[at]} at {at} ({len(bad)} such values); remove or fill those rows"
        )


def _rows(config: DataConfig, table: Table, rows: int, seed: int) -> tuple[Array, Array]:
    """Return the row numbers for training and for evaluation."""
    masks = {key: _mask(config, key, mask, rows) for key, mask in table.masks.items()}
    train, test = masks.get("train_mask"), masks.get("test_mask")
    if config.held_out_groups:
        held = _held_out(config, table.groups)
        train = ~held if train is None else train & ~held
        test = held if test is None else test & held
    if train is not None:
        return np.flatnonzero(train), np.flatnonzero(~train if test is None else test)
    if test is not None:
        return np.flatnonzero(~test), np.flatnonzero(test)
    order = np.random.default_rng([seed, EVALUATION_STREAM]).permutation(rows)
    cut = round(rows * config.held_out_fraction)
    return np.sort(order[cut:]), np.sort(order[:cut])


def _mask(config: DataConfig, key: str, mask: Array, rows: int) -> NDArray[np.bool_]:
    if mask.shape != (rows,) or not np.isin(mask, (0, 1)).all():
        raise ConfigError(
            f"data.{key}: {getattr(config, key)!r} in {config.source!r} must be {rows} booleans, it is"
            f" {mask.dtype} of shape {mask.shape}"
        )
    return mask.astype(np.bool_)


def _held_out(config: DataConfig, groups: Array | None) -> NDArray[np.bool_]:
    if groups is None:
        raise ConfigError("data.held_out_groups: needs data.group, the key that names the groups")
    # Compared as text, because 7 in a file of texts and "7" in one of numbers mean the same group.
    names = groups.astype(str)
    wanted = [str(group) for group in config.held_out_groups]
    known = set(names.tolist())
    for group in wanted:
        if group not in known:
            some = ", ".join(sorted(known, key=lambda name: (len(name), name))[:10])
            raise ConfigError(
                f"data.held_out_groups: {config.source!r} has no group {group!r}; it has {some} ..."
            )
    return np.isin(names, wanted)


def _check_not_empty(config: DataConfig, train: Array, evaluation: Array) -> None:
    for what, rows in (("training", train), ("evaluation", evaluation)):
        if not len(rows):
            raise ConfigError(
                f"data: {config.source!r} leaves no examples for {what}; check data.train_mask,"
                f" data.test_mask, data.held_out_groups {config.held_out_groups} and"
                f" data.held_out_fraction {config.held_out_fraction}"
            )
