"""Tasks: what is learnt. A task builds the model, and knows its loss and its metrics.

Four are built in: "mlp" (any inputs), "cnn" and "mobilenet" (images) and "cnn1d" (windows of sensor
readings). A user's own task is any callable "module:attribute", called with `input_shape`, `kind`, `outputs`
and the table `task.options`, that returns an object of the `Task` protocol. All training is in float32;
parameters must not be shared between layers. Dropout draws from tinygrad's generator, not from the job's
seed.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from tinygrad.tensor import Tensor

from hedgerow.core.config import TaskConfig
from hedgerow.core.errors import ConfigError
from hedgerow.runtime.mobilenet import MobileNet
from hedgerow.runtime.models import Layout, Network
from hedgerow.runtime.objects import load_object

Array = NDArray[Any]


@runtime_checkable
class Task(Protocol):
    """What a task must have; see `BuiltInTask` for the meanings."""

    input_shape: tuple[int, ...]
    target_dtype: np.dtype[Any]

    def build(self) -> Callable[[Tensor], Tensor]:
        """Return a new model: (batch, *input_shape) to (batch, outputs); layers are its attributes."""

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""

    def metrics(self, outputs: Array, targets: Array) -> dict[str, float]:
        """Return named figures for all `outputs`, shape (rows, outputs), at once."""


class BuiltInTask:
    """One of "mlp", "cnn", "cnn1d" and "mobilenet".

    `input_shape` is one example's; `target_dtype` is int32 for classification, float32 for regression;
    targets have shape (batch,), or (batch, outputs) for a regression of several values.
    """

    def __init__(self, config: TaskConfig, input_shape: tuple[int, ...]) -> None:
        self.input_shape = input_shape
        self.kind: Literal["classification", "regression"] = config.kind
        self.outputs = config.outputs
        self.target_dtype: np.dtype[Any] = np.dtype(
            np.int32 if config.kind == "classification" else np.float32
        )
        self._network = MobileNet if config.name == "mobilenet" else Network
        self._options = _options(config)
        self._shape, self._layout = _LAYOUTS[config.name](input_shape)
        if config.kind == "classification" and config.outputs < 2:  # noqa: PLR2004
            raise ConfigError(
                "task.outputs: 1 class cannot be told apart; set the number of classes"
            )

    def build(self) -> Network | MobileNet:
        """Return a new model."""
        return self._network(self._shape, self._layout, outputs=self.outputs, **self._options)

    def row_losses(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return each example's loss, shape (batch,): cross entropy or mean squared error."""
        if self.kind == "classification":
            return output.sparse_categorical_crossentropy(targets, reduction="none")
        return (output - targets.reshape(*output.shape)).square().mean(-1)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, a scalar."""
        return self.row_losses(output, targets).mean()

    def metrics(self, outputs: Array, targets: Array) -> dict[str, float]:
        """Return accuracy and loss, or rmse, mae and skill.

        Skill is 1 - MSE / MSE of always answering 0: where a baseline was subtracted from the targets, the
        improvement over that baseline. It is 0 when all targets are 0.
        """
        if self.kind == "classification":
            return _classification(outputs, targets)
        return _regression(outputs, targets.reshape(outputs.shape))


def build_network(task: Task) -> Callable[[Tensor], Tensor]:
    """Return a network of the task, of arbitrary parameters.

    tinygrad counts its random numbers in a graph that every new network makes longer and that is never let
    go: 38 KB for a network of 19 KB, and slower with each. A seed begins a new one.
    """
    network = task.build()
    Tensor.manual_seed(0)
    return network


def load_task(config: TaskConfig, input_shape: tuple[int, ...]) -> Task:
    """Return the configured task for examples of `input_shape`; raises ConfigError naming the key."""
    if config.name in _LAYOUTS:
        return BuiltInTask(config, input_shape)
    if ":" not in config.name:
        known = ", ".join(_LAYOUTS)
        raise ConfigError(
            f"task.name: {config.name!r} is neither built in ({known}) nor 'module:attribute'"
        )
    make = load_object("task.name", config.name)
    try:
        task = make(
            input_shape=input_shape, kind=config.kind, outputs=config.outputs, **config.options
        )
    except TypeError as error:
        raise ConfigError(
            f"task.name: {config.name!r} refused its arguments ({error}); it is called with"
            f" input_shape, kind, outputs and task.options {sorted(config.options)}"
        ) from error
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"task.name: {config.name!r} failed: {error!r}") from error
    if not isinstance(task, Task):
        raise ConfigError(
            f"task.name: {config.name!r} returned a {type(task).__name__}; it needs build, loss,"
            " metrics, input_shape and target_dtype"
        )
    return task


def _classification(outputs: Array, targets: Array) -> dict[str, float]:
    logits = outputs.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    picked = logits[np.arange(len(targets)), targets]
    losses = np.log(np.exp(logits).sum(axis=1)) - picked
    right = logits.argmax(axis=1) == targets
    return {"accuracy": float(right.mean()), "loss": float(losses.mean())}


def _regression(outputs: Array, targets: Array) -> dict[str, float]:
    wanted = targets.astype(np.float64)
    errors = outputs - wanted
    square, zero = float((errors**2).mean()), float((wanted**2).mean())
    return {
        "rmse": square**0.5,
        "mae": float(np.abs(errors).mean()),
        "skill": 1 - square / zero if zero > 0 else 0.0,
    }


_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "mlp": {"hidden": [256]},
    "cnn": {"channels": [16, 32], "kernel": 3, "hidden": [64]},
    "cnn1d": {"channels": [32, 64], "kernel": 5, "hidden": [32]},
    "mobilenet": {"channels": [16, 32, 64, 128], "strides": [], "hidden": []},
}


def _options(config: TaskConfig) -> dict[str, Any]:
    """Return the built-in's options with defaults filled in, each checked."""
    options = dict(_DEFAULTS[config.name])
    for key, value in config.options.items():
        if key not in options:
            known = ", ".join(options)
            raise ConfigError(
                f"task.options.{key}: {config.name!r} has no such option; it has {known}"
            )
        if key == "kernel":
            if not _is_size(value):
                raise ConfigError(f"task.options.kernel: {value!r} must be a whole number above 0")
        elif not isinstance(value, list) or not all(_is_size(size) for size in value):
            raise ConfigError(
                f"task.options.{key}: {value!r} must be a list of whole numbers above 0"
            )
        options[key] = value
    if options.get("channels") == []:
        raise ConfigError("task.options.channels: [] has no convolution; use task.name = 'mlp'")
    return options


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _flat(shape: tuple[int, ...]) -> tuple[tuple[int, ...], Layout]:
    return shape, lambda x: x


def _image(shape: tuple[int, ...]) -> tuple[tuple[int, ...], Layout]:
    """Take (H, W), (C, H, W) or (H, W, C): of three axes the smaller outer one holds the channels."""
    if len(shape) == 2:  # noqa: PLR2004
        return (1, *shape), lambda x: x.unsqueeze(1)
    if len(shape) != 3:  # noqa: PLR2004
        raise ConfigError(
            "task.name: 'cnn' needs images (H, W), (C, H, W) or (H, W, C), as 'mobilenet' does,"
            f" not {shape}"
        )
    if shape[0] <= shape[2]:
        return shape, lambda x: x
    return (shape[2], shape[0], shape[1]), lambda x: x.permute(0, 3, 1, 2)


def _window(shape: tuple[int, ...]) -> tuple[tuple[int, ...], Layout]:
    if len(shape) != 2:  # noqa: PLR2004
        raise ConfigError(f"task.name: 'cnn1d' needs windows (time, channels), not {shape}")
    return (shape[1], shape[0]), lambda x: x.permute(0, 2, 1)


_LAYOUTS: Mapping[str, Callable[[tuple[int, ...]], tuple[tuple[int, ...], Layout]]] = {
    "mlp": _flat,
    "cnn": _image,
    "cnn1d": _window,
    "mobilenet": _image,
}
