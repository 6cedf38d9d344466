"""The bridge between a tinygrad model and one float32 parameter vector."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinygrad.dtype import dtypes
from tinygrad.engine.jit import TinyJit
from tinygrad.nn.state import get_state_dict
from tinygrad.tensor import Tensor

from hedgerow.core.config import TaskConfig
from hedgerow.core.errors import ConfigError
from hedgerow.core.units import Manifest, Unit, Vector, cut, digest
from hedgerow.runtime.buffers import SharedArray
from hedgerow.runtime.tasks import Task, build_network, load_task

Array = NDArray[Any]
Network = Callable[[Tensor], Tensor]

EVALUATION_ROWS = 256
"""Rows computed at once; fixed, because a compiled kernel serves one shape."""


@dataclass(frozen=True, slots=True)
class Bound:
    """A model whose parameters lie in memory that numpy can write; `params` by the names of its tensors.

    `views` has each unit's part of them.
    """

    network: Network
    params: Mapping[str, SharedArray]
    views: Mapping[str, Array]

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters as inputs of a compiled step."""
        return [shared.tensor for shared in self.params.values()]

    def write(self, pieces: Mapping[str, Vector]) -> None:
        """Copy units, each of its own shape, into the parameters."""
        for name, values in pieces.items():
            self.views[name][...] = values


class Forward:
    """A compiled function of parameters and inputs, of a fixed number of rows."""

    def __init__(self, model: "Model", of: Callable[[Network, Tensor], Tensor]) -> None:
        self._model = model
        self._of = of
        self._step: Any = None

    def __call__(self, params: Vector, inputs: Array) -> Array:
        """Return the outputs for any number of rows, shape (rows, ...)."""
        bound = self._model.bind()
        bound.write(self._model.manifest.split(params))
        batch = SharedArray.of((EVALUATION_ROWS, *self._model.task.input_shape))
        if self._step is None:
            self._step = self._compile(bound, batch)
        pieces = []
        for start in range(0, len(inputs), EVALUATION_ROWS):
            rows = inputs[start : start + EVALUATION_ROWS]
            batch.array[: len(rows)] = rows
            batch.array[len(rows) :] = 0
            pieces.append(self._step(batch.tensor, *bound.tensors).numpy()[: len(rows)])
        self._step.captured.free_intermediates()
        return np.concatenate(pieces)

    def _compile(self, bound: Bound, batch: SharedArray) -> Any:
        def step(x: Tensor, *_params: Tensor) -> Tensor:
            return self._of(bound.network, x).contiguous().realize()

        compiled = TinyJit(step)
        batch.array[...] = 0
        for _ in range(2):  # The first call runs, the second one is captured.
            compiled(batch.tensor, *bound.tensors)
        compiled.fxn = None  # It holds the memory of these parameters.
        return compiled


class Model:
    """A task's model seen as a manifest and a parameter vector, shape (P,).

    Raises ConfigError when the model cannot be trained here: state that is not a parameter (as batch
    normalisation has), parameters shared between layers or not float32, or a failing forward pass.
    Everything runs in the calling thread. `groups` is into how many units of input channels a tensor is cut;
    `tensors` has the shapes of the model's own tensors.
    """

    def __init__(self, task: Task, config: TaskConfig, groups: int = 1) -> None:
        self.task = task
        self._config = config
        self.tensors = {name: _shape(tensor) for name, tensor in _trainable_state(task).items()}
        units: dict[str, tuple[int, ...]] = {}
        for name, shape in self.tensors.items():
            units.update(cut(name, shape, groups))
        self.manifest = Manifest.of(units)
        self._forward = Forward(self, lambda network, x: network(x))
        self._output_shape = self._traced_shape()

    @cached_property
    def identity(self) -> str:
        """Digest of everything that decides what the model computes, source texts included."""
        written = getattr(sys.modules.get(type(self.task).__module__), "__file__", None)
        sources = {*_runtime_sources(), *([written] if written else [])}
        parts = [digest(Path(name).read_bytes()) for name in sorted(sources)]
        options = json.dumps(
            [self._config.name, self._config.kind, self._config.outputs, self._config.options],
            sort_keys=True,
            default=str,
        )
        shapes = repr([(unit.name, unit.shape) for unit in self.manifest.units])
        about = repr((self.task.input_shape, str(self.task.target_dtype)))
        return digest("\n".join([*parts, options, shapes, about]).encode())

    def bind(self) -> Bound:
        """Return a new model whose parameters are writable memory of arbitrary content."""
        network = build_network(self.task)
        state = get_state_dict(network)
        params = {name: SharedArray.of(shape) for name, shape in self.tensors.items()}
        for name, shared in params.items():
            state[name].replace(shared.tensor)
        views = {unit.name: _view(params[unit.tensor].array, unit) for unit in self.manifest.units}
        return Bound(network, params, views)

    def initial_params(self, seed: int) -> Vector:
        """Return the task's own initial parameters, shape (P,); one seed gives one result."""
        Tensor.manual_seed(seed)
        state = get_state_dict(self.task.build())
        arrays = {name: tensor.numpy() for name, tensor in state.items()}
        Tensor.manual_seed(0)  # as `build_network` does, once the numbers are drawn
        return self.manifest.join({u.name: _view(arrays[u.tensor], u) for u in self.manifest.units})

    def checked(self, inputs: Array, targets: Array) -> tuple[Array, Array]:
        """Return examples in the task's types; raises ConfigError when they do not fit the model."""
        if inputs.shape[1:] != self.task.input_shape:
            raise ConfigError(
                f"data: examples have shape {inputs.shape[1:]}, task {self._config.name!r} was made"
                f" for {self.task.input_shape}"
            )
        if len(targets) != len(inputs) or not len(inputs):
            raise ConfigError(
                f"data: {len(inputs)} inputs and {len(targets)} targets; need as many, >0"
            )
        cast = targets.astype(self.task.target_dtype)
        if self.task.target_dtype.kind == "i":
            self._check_labels(cast, targets)
        elif cast[0].size != int(np.prod(self._output_shape)):
            raise ConfigError(
                f"task.outputs: the model has {self._output_shape} outputs, data.targets has"
                f" {cast[0].size} values per example"
            )
        return np.ascontiguousarray(inputs, np.float32), cast

    def predict(self, params: Vector, inputs: Array) -> Array:
        """Return the model's outputs for any number of rows above 0, shape (rows, outputs)."""
        return self._forward(params, inputs)

    def evaluate(self, params: Vector, inputs: Array, targets: Array) -> dict[str, float]:
        """Return the task's metrics over all rows."""
        inputs, targets = self.checked(inputs, targets)
        return self.task.metrics(self.predict(params, inputs), targets)

    def _check_labels(self, labels: Array, targets: Array) -> None:
        classes = self._output_shape[-1]
        wrong = np.flatnonzero((labels < 0) | (labels >= classes) | (labels != targets))
        if wrong.size:
            raise ConfigError(
                f"data.targets: row {wrong[0]} is {targets[wrong[0]]}, not a class 0..{classes - 1};"
                " set task.outputs to the number of classes, or task.kind = 'regression'"
            )

    def _traced_shape(self) -> tuple[int, ...]:
        try:
            output = build_network(self.task)(Tensor.empty(1, *self.task.input_shape))
        except Exception as error:
            raise ConfigError(
                f"task.name: {self._config.name!r} fails on inputs of shape {self.task.input_shape}:"
                f" {error!r}"
            ) from error
        return _shape(output)[1:]


def load_model(config: TaskConfig, input_shape: tuple[int, ...], groups: int = 1) -> Model:
    """Return the configured task's model for examples of `input_shape`, its tensors cut into `groups`."""
    return Model(load_task(config, input_shape), config, groups)


def _view(array: Array, unit: Unit) -> Array:
    """Return a unit's part of its tensor."""
    return array if unit.part is None else array[unit.part.index]


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(int(size) for size in tensor.shape)


def _runtime_sources() -> tuple[str, ...]:
    folder = Path(__file__).parent
    names = ("models.py", "mobilenet.py", "stages.py", "tasks.py", "model.py")
    return tuple(str(folder / name) for name in names)


def _trainable_state(task: Task) -> dict[str, Tensor]:
    state = get_state_dict(build_network(task))
    if not state:
        raise ConfigError("task.name: the model has no parameters; make its layers attributes")
    seen: dict[int, str] = {}
    for name, tensor in state.items():
        if not tensor.is_param:
            raise ConfigError(
                f"task.name: the model's {name!r} is state, not a parameter; batch normalisation cannot"
                " be averaged, use group or layer normalisation"
            )
        if tensor.dtype != dtypes.float32:
            raise ConfigError(f"task.name: parameter {name!r} is {tensor.dtype}; use float32")
        if id(tensor) in seen:
            raise ConfigError(
                f"task.name: {name!r} and {seen[id(tensor)]!r} are one tensor; copy it"
            )
        seen[id(tensor)] = name
    return state
