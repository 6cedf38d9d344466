"""Computes frozen stages, one after the other, with little memory.

A stage's parameters are copied into tensors for as long as the stage takes. A plain linear layer's are not:
numpy multiplies by the parameters where the node's copy of the model has them, so that a wide first layer
does not decide what the whole training needs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray
from tinygrad.tensor import Tensor

from edge_node.design import Shape, StageMap
from edge_node.jitcache import JitCache, Step, source_digest
from edge_node.lean import bound_stages
from edge_node.micro import TensorViews, captured, shared_zeros
from hedgerow.core.units import Unit, Vector
from hedgerow.runtime.buffers import SharedArray
from hedgerow.runtime.model import Model

Array = NDArray[Any]
Kind = Literal["stage", "layout", "product", "after"]


@dataclass(frozen=True, slots=True)
class Move:
    """A part of stage `number`: from arrays of shape `entered` to such of shape `left`, the rows first.

    It is the whole stage, or of a plain linear layer the layout of the model's inputs, the product, and what
    comes after. `params` are the parameters that it holds.
    """

    number: int
    kind: Kind
    entered: Shape
    left: Shape
    params: Mapping[str, Shape]

    @property
    def buffers(self) -> list[Shape]:
        """The shapes of its arguments: input, output, parameters; all float32."""
        return [self.entered, self.left, *self.params.values()]


def moves(stages: StageMap, number: int, rows: int) -> list[Move]:
    """Return what a frozen stage does with `rows` examples, in order."""
    entered, left = (rows, *stages.inputs[number]), (rows, *stages.inputs[number + 1])
    linear = stages.linears.get(number)
    if linear is None:
        return [Move(number, "stage", entered, left, stages.tensors(number, number + 1))]
    taken, made = (rows, linear.inputs), (rows, linear.outputs)
    found = [Move(number, "product", taken, made, {})]
    if number == 0:
        found.insert(0, Move(number, "layout", entered, taken, {}))
    if linear.goes_on:
        found.append(Move(number, "after", made, left, {}))
    return found


def move_forward(model: Model, move: Move, arguments: Sequence[Tensor]) -> Callable[..., None]:
    """Return the function that computes a move other than a product; it is called with `arguments`."""
    params = dict(zip(move.params, arguments[2:], strict=True))
    bound = bound_stages(model, params)
    stage = bound.stages[move.number]
    of: dict[str, Callable[[Tensor], Tensor]] = {
        "stage": lambda x: bound.run(x, move.number, move.number + 1),
        "layout": bound.layout,
        "after": stage.after,
    }

    def forward(x: Tensor, out: Tensor, *_params: Tensor) -> None:
        out.assign(of[move.kind](x).reshape(out.shape)).realize()

    return forward


class FrozenStages:
    """The compiled stages of a model, each for a number of rows."""

    def __init__(self, model: Model, stages: StageMap, jits: JitCache) -> None:
        self._model = model
        self._stages = stages
        self._jits = jits
        self._views = TensorViews(model.manifest)
        self._linear_units: dict[int, list[Unit]] = {number: [] for number in stages.linears}
        for unit in model.manifest.units:
            self._linear_units.get(stages.of(unit), []).append(unit)

    def compiled(self, stop: int, rows: int) -> list[tuple[Move, Step | None]]:
        """Return the moves of the stages before `stop`, each with its step; a product needs none."""
        found = [move for number in range(stop) for move in moves(self._stages, number, rows)]
        return [(move, None if move.kind == "product" else self._step(move)) for move in found]

    def outputs(
        self,
        steps: Sequence[tuple[Move, Step | None]],
        params: Vector,
        inputs: Array,
        rows: int,
    ) -> Iterator[Array]:
        """Yield what the stages make of the examples, `rows` at a time and in order."""
        for start in range(0, len(inputs), rows):
            part = inputs[start : start + rows]
            values = shared_zeros((rows, *inputs.shape[1:]))
            values.array[: len(part)] = part
            for move, step in steps:
                values = self._after(move, step, params, values)
            yield values.array[: len(part)]

    def _after(
        self, move: Move, step: Step | None, params: Vector, entered: SharedArray
    ) -> SharedArray:
        """Return a move's output; only its own parameters are in memory meanwhile."""
        left = SharedArray.of(move.left)
        if step is None:
            self._multiply(move, params, entered.array, left.array)
            return left
        held = {name: SharedArray.of(shape) for name, shape in move.params.items()}
        self._views.write({name: shared.array for name, shared in held.items()}, params)
        step(entered.tensor, left.tensor, *[shared.tensor for shared in held.values()])
        step.captured.free_intermediates()
        return left

    def _multiply(self, move: Move, params: Vector, entered: Array, left: Array) -> None:
        """Compute a linear layer: weight times input, plus the bias if there is one."""
        slices = self._model.manifest.slices
        left[...] = 0
        for unit in self._linear_units[move.number]:
            values = params[slices[unit.name]].reshape(unit.shape)
            if unit.is_bias:
                left += values
            else:
                outputs, inputs = _channels(unit)
                left[:, outputs] += entered[:, inputs] @ values.T

    def _step(self, move: Move) -> Step:
        identity = {
            "step": source_digest(__file__),
            "model": self._model.identity,
            "stage": move.number,
            "kind": move.kind,
            "rows": move.entered[0],
        }

        def build() -> Step:
            arguments = [shared_zeros(shape).tensor for shape in move.buffers]
            return captured(move_forward(self._model, move, arguments), arguments)

        return self._jits.step(identity, build)


def _channels(weight: Unit) -> tuple[slice, slice]:
    """Return which outputs and inputs of its layer a unit of the weight is about."""
    outputs, inputs = slice(None), slice(None)
    part = weight.part
    if part is None:
        return outputs, inputs
    own = slice(part.start, part.stop)
    return (own, inputs) if part.axis == 0 else (outputs, own)
