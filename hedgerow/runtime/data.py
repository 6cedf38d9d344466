"""Loads the data set of a configuration and cuts it into training and evaluation examples."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hedgerow.core.config import DataConfig
from hedgerow.core.errors import ConfigError
from hedgerow.runtime.sources import Table, read_csv, read_digits, read_function, read_npz
from hedgerow.runtime.splits import Rows, split_examples

Array = NDArray[Any]

Examples = tuple[Array, Array]
"""Inputs, float32 of shape (rows, ...), and targets, int32 or float32 of shape (rows, ...)."""

EVALUATION_STREAM, SHARD_STREAM, LOCAL_TEST_STREAM = 1, 2, 3
"""Second parts of seeds, so that the draws of one seed are independent."""


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
    _check_inputs(config, "inputs", table.inputs)
    targets = _adjusted(config, "targets", table.targets, table.baseline)
    for key, values in (("targets", targets), ("group", table.groups)):
        _check_length(config, key, values, "inputs", len(table.inputs))
    if table.test_inputs is None:
        train, held = _rows(config, table, seed)
        key, evaluation = "inputs", (table.inputs[held], targets[held])
    else:
        train = _training_rows(config, table)
        key, evaluation = "test_inputs", _test_set(config, table)
    train = train[_in_large_groups(config, table.groups, train)]
    _check_not_empty(config, len(train), len(evaluation[0]))
    return Dataset(
        inputs=_scaled(config, "inputs", table.inputs[train]),
        targets=targets[train],
        groups=None if table.groups is None else table.groups[train],
        evaluation_inputs=_scaled(config, key, evaluation[0]),
        evaluation_targets=evaluation[1],
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
    rows = _shard_rows(dataset, config, count, seed)[index]
    return dataset.inputs[rows], dataset.targets[rows]


def node_shards(
    dataset: Dataset, config: DataConfig, count: int, seed: int
) -> list[tuple[Array, Array]]:
    """Return what `node_shard` returns for each of `count` nodes, cut once for all of them."""
    cut = _shard_rows(dataset, config, count, seed)
    return [(dataset.inputs[rows], dataset.targets[rows]) for rows in cut]


def local_test(
    shard: Examples, config: DataConfig, index: int, seed: int
) -> tuple[Examples, Examples]:
    """Cut node `index`'s examples into those it trains on and those it tests on.

    The latter are `config.local_test_fraction` of them, at least one, in a random order's end; none where the
    fraction is 0. Raises ConfigError when there are too few examples for both.
    """
    inputs, targets = shard
    rows, fraction = len(inputs), config.local_test_fraction
    if not fraction:
        return shard, (inputs[:0], targets[:0])
    if rows < 2:  # noqa: PLR2004
        raise ConfigError(
            f"data.local_test_fraction: {fraction:g}, but node {index} has {rows} examples; give it"
            " two or more, or set 0"
        )
    order = np.random.default_rng([seed, LOCAL_TEST_STREAM, index]).permutation(rows)
    count = min(max(round(fraction * rows), 1), rows - 1)
    train, test = np.sort(order[: rows - count]), np.sort(order[rows - count :])
    return (inputs[train], targets[train]), (inputs[test], targets[test])


def _shard_rows(dataset: Dataset, config: DataConfig, count: int, seed: int) -> list[Rows]:
    rng = np.random.default_rng([seed, SHARD_STREAM])
    return split_examples(dataset.targets, dataset.groups, config, count, rng)


def _read(config: DataConfig) -> Table:
    source = config.source
    if source == "digits":
        return read_digits()
    if source.endswith(".npz"):
        return read_npz(config)
    if source.endswith(".csv"):
        return read_csv(config)
    if ":" in source:
        return read_function(source, config.files)
    raise ConfigError(
        f"data.source: {source!r} is none of 'digits', a path ending in .npz or .csv, 'module:function'"
    )


def _check_inputs(config: DataConfig, key: str, inputs: Array) -> None:
    """Refuse what cannot be scaled; the examples themselves stay as they were read, often small integers."""
    if inputs.dtype.kind not in "biuf" or inputs.ndim < 2:  # noqa: PLR2004
        raise ConfigError(
            f"data.{key}: {config.source!r} has {inputs.dtype} of shape {inputs.shape}; need numbers of"
            " shape (rows, features...)"
        )
    factors = (("input_scale", config.input_scale), ("input_offset", config.input_offset))
    for name, values in factors:
        if values and len(values) not in (1, inputs.shape[-1]):
            raise ConfigError(
                f"data.{name}: {len(values)} values; give 1, or {inputs.shape[-1]} for the last axis of"
                f" inputs of shape {inputs.shape[1:]}"
            )
    if inputs.dtype.kind == "f":
        _check_finite(f"data.{key}: {config.source!r}", inputs)


def _check_length(
    config: DataConfig, key: str, values: Array | None, whose: str, rows: int
) -> None:
    if values is not None and len(values) != rows:
        raise ConfigError(
            f"data.{key}: {config.source!r} has {len(values)} of them for {rows} {whose}; one each"
        )


def _scaled(config: DataConfig, key: str, inputs: Array) -> Array:
    """Return inputs * input_scale + input_offset as float32, checked to be finite."""
    with np.errstate(all="ignore"):  # What overflows is reported below.
        scaled = inputs.astype(np.float32)
        if config.input_scale:
            scaled *= np.array(config.input_scale, np.float32)
        if config.input_offset:
            scaled += np.array(config.input_offset, np.float32)
    _check_finite(f"data.{key}: {config.source!r}, scaled to float32,", scaled)
    return scaled


def _adjusted(config: DataConfig, key: str, targets: Array, baseline: Array | None) -> Array:
    """Return (targets - baseline) * target_scale: whole numbers stay int32, others become float32."""
    if targets.dtype.kind not in "biuf":
        raise ConfigError(
            f"data.{key}: {config.source!r} has {targets.dtype}; need numbers, classes as 0, 1, 2, ..."
        )
    if targets.ndim == 0:
        raise ConfigError(
            f"data.{key}: {config.source!r} has a single value; need one for each row"
        )
    if baseline is not None:
        if baseline.shape != targets.shape or baseline.dtype.kind not in "biuf":
            raise ConfigError(
                f"data.baseline: {config.source!r} has {baseline.dtype} of shape"
                f" {baseline.shape}; need numbers of the targets' shape {targets.shape}"
            )
        targets = targets.astype(np.float64) - baseline
    if config.target_scale != 1:
        targets = targets.astype(np.float64) * config.target_scale
    if targets.dtype.kind in "biu":
        return targets.astype(np.int32)
    with np.errstate(over="ignore"):
        targets = targets.astype(np.float32)
    _check_finite(f"data.{key}: {config.source!r}", targets)
    return targets


def _check_finite(what: str, values: Array) -> None:
    finite = np.isfinite(values)
    if finite.all():
        return
    bad = np.argwhere(~finite)
    at = tuple(int(i) for i in bad[0])
    raise ConfigError(
        f"{what} has {values[at]} at {at} ({len(bad)} such values); remove or fill those rows"
    )


def _test_set(config: DataConfig, table: Table) -> tuple[Array, Array]:
    """Return the inputs and targets of a separate evaluation set, as they were read."""
    inputs, targets = table.test_inputs, table.test_targets
    assert inputs is not None
    assert targets is not None
    _check_inputs(config, "test_inputs", inputs)
    if inputs.shape[1:] != table.inputs.shape[1:]:
        raise ConfigError(
            f"data.test_inputs: {config.source!r} has examples of shape {inputs.shape[1:]}, those for"
            f" training have {table.inputs.shape[1:]}; name arrays of one kind"
        )
    adjusted = _adjusted(config, "test_targets", targets, None)
    _check_length(config, "test_targets", adjusted, "test_inputs", len(inputs))
    return inputs, adjusted


def _training_rows(config: DataConfig, table: Table) -> Rows:
    """Return the rows that train beside a separate evaluation set."""
    rows = len(table.inputs)
    if config.held_out_groups:
        raise ConfigError(
            f"data.held_out_groups: {config.held_out_groups} with a source that has an evaluation set of"
            " its own; leave it out"
        )
    mask = table.masks.get("train_mask")
    return np.arange(rows) if mask is None else _chosen(_mask(config, "train_mask", mask, rows))


def _in_large_groups(config: DataConfig, groups: Array | None, train: Rows) -> NDArray[np.bool_]:
    """Say for each of the rows `train` whether its group has `smallest_group` of them."""
    if not config.smallest_group:
        return np.ones(len(train), np.bool_)
    if groups is None:
        raise ConfigError("data.smallest_group: needs data.group, the key that names the groups")
    _, which, sizes = np.unique(groups[train], return_inverse=True, return_counts=True)
    large: NDArray[np.bool_] = sizes[which] >= config.smallest_group
    return large


def _rows(config: DataConfig, table: Table, seed: int) -> tuple[Rows, Rows]:
    """Return the row numbers for training and for evaluation."""
    rows = len(table.inputs)
    masks = {key: _mask(config, key, mask, rows) for key, mask in table.masks.items()}
    train, test = masks.get("train_mask"), masks.get("test_mask")
    if config.held_out_groups:
        held = _held_out(config, table.groups)
        train = ~held if train is None else train & ~held
        test = held if test is None else test & held
    if train is not None:
        return _chosen(train), _chosen(~train if test is None else test)
    if test is not None:
        return _chosen(~test), _chosen(test)
    order = np.random.default_rng([seed, EVALUATION_STREAM]).permutation(rows)
    cut = round(rows * config.held_out_fraction)
    return np.sort(order[cut:]), np.sort(order[:cut])


def _chosen(mask: NDArray[np.bool_]) -> Rows:
    return np.flatnonzero(mask)


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


def _check_not_empty(config: DataConfig, train: int, evaluation: int) -> None:
    for what, rows in (("training", train), ("evaluation", evaluation)):
        if not rows:
            raise ConfigError(
                f"data: {config.source!r} leaves no examples for {what}; check data.train_mask,"
                f" data.test_mask, data.held_out_groups {config.held_out_groups},"
                f" data.smallest_group {config.smallest_group} and"
                f" data.held_out_fraction {config.held_out_fraction}"
            )
