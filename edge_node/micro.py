"""Memory that numpy and a compiled step share, laid out as the step takes it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tinygrad.engine.jit import TinyJit
from tinygrad.tensor import Tensor

from edge_node.design import Shape, StepDesign
from edge_node.jitcache import Step
from hedgerow.core.units import Manifest, Vector
from hedgerow.runtime.buffers import SharedArray

Array = NDArray[Any]


def shared_zeros(shape: Shape, dtype: str = "float32") -> SharedArray:
    """Allocate memory and fill it with zeros."""
    shared = SharedArray.of(shape, dtype)
    shared.array[...] = 0
    return shared


def captured(function: Callable[..., None], arguments: Sequence[Tensor]) -> Step:
    """Return the TinyJit of `function`, captured for arguments like these."""
    step: Step = TinyJit(function)
    # The first of two calls would run without a capture, which is for functions that need warming up.
    step.cnt = 1
    step(*arguments)
    return step


class TensorViews:
    """Copies a model's parameters, shape (P,), into its tensors, which may be cut into several units."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._parts = [(unit, unit.tensor, unit.part) for unit in manifest.units]

    def of(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return each unit's part of these tensors, for those that are there."""
        return {
            unit.name: tensors[tensor] if part is None else tensors[tensor][part.index]
            for unit, tensor, part in self._parts
            if tensor in tensors
        }

    def write(self, tensors: Mapping[str, Array], params: Vector) -> None:
        """Copy `params` into these tensors."""
        for name, view in self.of(tensors).items():
            view[...] = params[self._manifest.slices[name]].reshape(view.shape)


class StepMemory:
    """The arguments of a micro-step, and what they hold.

    `inputs` and `targets` are one micro-batch; `loss` (1,) is its mean loss; `results` are the gradients
    of the design's pieces, or their squared norms; `views` the units within the parameters. All but the
    parameters begin as zeros.
    """

    def __init__(self, design: StepDesign, views: TensorViews, params: Vector) -> None:
        shared = [shared_zeros(shape, kind) for shape, kind in design.buffers]
        self.tensors: list[Tensor] = [one.tensor for one in shared]
        arrays = [one.array for one in shared]
        self.inputs, self.targets, self.loss = arrays[:3]
        self.results = dict(zip(design.results, arrays[3:], strict=False))
        self._pieces = design.pieces
        held = dict(zip(design.params, arrays[3 + len(self.results) :], strict=True))
        views.write(held, params)
        self.views = views.of(held)
        self._held = held
        self._shared = shared
        self._adds = design.adds

    def descend(self, rate: float) -> float:
        """Subtract `rate` times the results from the parameters; return the results' squared norm.

        In place: the results are scaled.
        """
        square = 0.0
        for piece in self._pieces:
            gradient = self.results[piece.name]
            square += float(np.vdot(gradient, gradient))
            np.multiply(gradient, np.float32(rate), out=gradient)
            trained = self._held[piece.tensor][piece.index]
            np.subtract(trained, gradient, out=trained)
        return square

    def gradient(self, step: Step, inputs: Array, targets: Array, rows: NDArray[np.int64]) -> float:
        """Run the micro-step over these rows of the examples; return the sum of the micro-batches' losses.

        What it adds up in `results` is the sum of the micro-batches' mean gradients.
        """
        if self._adds:
            for result in self.results.values():
                result.fill(0)
        size, loss = len(self.inputs), 0.0
        for start in range(0, len(rows), size):
            chosen = rows[start : start + size]
            # With another mode numpy makes a copy first.
            inputs.take(chosen, axis=0, out=self.inputs, mode="clip")
            targets.take(chosen, axis=0, out=self.targets, mode="clip")
            step(*self.tensors)
            loss += float(self.loss[0])
        return loss
