"""What a training step is made for, and what follows from it: shapes, buffers and bytes."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from types import EllipsisType

import numpy as np
from tinygrad import nn
from tinygrad.tensor import Tensor

from hedgerow.core.errors import ConfigError
from hedgerow.core.execution import Execution
from hedgerow.core.plan import Plan
from hedgerow.core.units import Unit
from hedgerow.runtime.model import Model
from hedgerow.runtime.stages import Stage, Stages, unchanged
from hedgerow.runtime.tasks import build_network

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class PlainLinear:
    """A stage that is a linear layer: how many values go in and come out of it, and whether it `goes_on`."""

    inputs: int
    outputs: int
    goes_on: bool


class StageMap:
    """Where a model's stages begin and end: their parameters, and the shapes between them.

    `of_tensor` has the number of each parameter's stage; `inputs[i]` is the shape of one example on entering
    stage i, the last one is the output's; `linears` are the stages that are plain linear layers. Raises
    ConfigError for a parameter outside all stages and for a stage that does not keep the batch as first axis.
    """

    def __init__(self, model: Model) -> None:
        network = build_network(model.task)
        stages = Stages.of(network)
        self.names = tuple(stage.name for stage in stages.stages)
        self.of_tensor = {name: _stage_of(stages, name) for name in model.tensors}
        self._tensors = model.tensors
        self.inputs = (model.task.input_shape, *_traced(stages, model.task.input_shape))
        laid = stages.layout(Tensor.empty(1, *model.task.input_shape)).shape[1:]
        taken = (tuple(int(size) for size in laid), *self.inputs[1:])
        self.linears = {
            number: PlainLinear(shape[0], int(stage.layer.weight.shape[0]), _goes_on(stage))
            for number, (stage, shape) in enumerate(zip(stages.stages, taken, strict=False))
            if type(stage.layer) is nn.Linear and len(shape) == 1
        }

    def __len__(self) -> int:
        return len(self.names)

    def of(self, unit: Unit) -> int:
        """Return the number of the stage that a unit belongs to."""
        return self.of_tensor[unit.tensor]

    def first(self, plan: Plan) -> int:
        """Return the number of the first stage with a unit of the plan: below it all is frozen."""
        return min(self.of(plan.manifest.by_name[name]) for name in plan.names)

    def tensors(self, start: int, stop: int | None = None) -> dict[str, Shape]:
        """Return the names and shapes of the parameters of stages `start` to `stop`."""
        wanted = range(start, len(self) if stop is None else stop)
        return {name: s for name, s in self._tensors.items() if self.of_tensor[name] in wanted}


def _goes_on(stage: Stage) -> bool:
    return stage.after is not unchanged


def _stage_of(stages: Stages, tensor: str) -> int:
    try:
        return stages.of_unit(tensor.rpartition(".")[0] or tensor)
    except KeyError:
        known = ", ".join(stage.name for stage in stages.stages)
        raise ConfigError(
            f"task.name: parameter {tensor!r} belongs to none of the model's stages ({known}); name each"
            " stage as the attribute that holds its layer"
        ) from None


def _traced(stages: Stages, shape: Shape) -> Iterator[Shape]:
    """Return one example's shape after each stage."""
    rows = 2
    x = stages.layout(Tensor.empty(rows, *shape))
    for stage in stages.stages:
        x = stage(x)
        if not x.ndim or x.shape[0] != rows:
            raise ConfigError(
                f"task.name: stage {stage.name!r} makes {x.shape} of a batch of {rows}; the first axis must"
                " stay the batch's"
            )
        yield tuple(int(size) for size in x.shape[1:])


@dataclass(frozen=True, slots=True)
class Piece:
    """What one result is about: the part `index` of a tensor, of shape `shape`."""

    name: str
    tensor: str
    index: tuple[slice | EllipsisType, ...]
    shape: Shape

    @classmethod
    def of(cls, unit: Unit) -> "Piece":
        """Return a unit as a piece."""
        part = unit.part
        index = (...,) if part is None else part.index
        return cls(unit.name, unit.tensor, index, unit.shape)

    def joined(self, other: "Piece") -> "Piece | None":
        """Return both as one piece, where `other` begins where this one ends in the same tensor."""
        mine, its = self.index[-1], other.index[-1]
        if self.tensor != other.tensor or mine is ... or its is ... or mine.stop != its.start:
            return None
        axis = len(self.index) - 1
        size = its.stop - mine.start
        return Piece(
            f"{self.name}+{other.name}",
            self.tensor,
            (*self.index[:-1], slice(mine.start, its.stop)),
            (*self.shape[:axis], size, *self.shape[axis + 1 :]),
        )


@dataclass(frozen=True)
class StepDesign:
    """What a micro-step is made for; everything else about it follows.

    `batch` examples are taken as `execution` says; `target` and `target_dtype` are shape and type of one
    example's target. The step begins at stage `start`: either the first trained one, its inputs being what
    the frozen stages made of the examples, or 0. With `squares` it gives no gradients but each unit's squared
    gradient norm, of the micro-batch alone.
    """

    map: StageMap
    plan: Plan
    batch: int
    execution: Execution
    start: int
    target: Shape
    target_dtype: str
    squares: bool = False

    @cached_property
    def first(self) -> int:
        """The number of the first trained stage."""
        return self.map.first(self.plan)

    @property
    def adds(self) -> bool:
        """Whether gradients of several micro-batches are added up."""
        return self.execution.micro_batch < self.batch and not self.squares

    @property
    def units(self) -> tuple[Unit, ...]:
        """The plan's units."""
        return tuple(self.plan.manifest.by_name[name] for name in self.plan.names)

    @property
    def inputs(self) -> Shape:
        """The shape of a micro-batch of inputs, or of features in their place."""
        return (self.execution.micro_batch, *self.map.inputs[self.start])

    @property
    def targets(self) -> Shape:
        """The shape of a micro-batch of targets."""
        return (self.execution.micro_batch, *self.target)

    @cached_property
    def params(self) -> dict[str, Shape]:
        """The tensors held: those of the stages computed."""
        return self.map.tensors(self.start)

    @cached_property
    def pieces(self) -> tuple[Piece, ...]:
        """What the results are about: the plan's units; neighbouring groups of one tensor as one.

        Not where one unit after the other is added to what is there: that goes through a buffer of the
        piece's size.
        """
        pieces = [Piece.of(unit) for unit in self.units]
        if self.squares or (self.adds and self.execution.segment == 1):
            return tuple(pieces)
        joined = pieces[:1]
        for piece in pieces[1:]:
            both = joined[-1].joined(piece)
            joined[-1:] = [joined[-1], piece] if both is None else [both]
        return tuple(joined)

    @cached_property
    def results(self) -> dict[str, Shape]:
        """The buffer of each piece: its gradient, or its squared norm."""
        return {piece.name: (1,) if self.squares else piece.shape for piece in self.pieces}

    @property
    def buffers(self) -> list[tuple[Shape, str]]:
        """Shape and type of each of the micro-step's arguments: inputs, targets, loss, results, params."""
        floats = [(1,), *self.results.values(), *self.params.values()]
        return [
            (self.inputs, "float32"),
            (self.targets, self.target_dtype),
            *((shape, "float32") for shape in floats),
        ]

    @property
    def held_bytes(self) -> int:
        """Bytes of the arguments."""
        return sum(prod(shape) * np.dtype(kind).itemsize for shape, kind in self.buffers)

    def within(self, execution: Execution) -> "StepDesign":
        """Return the same step, computed in another way."""
        return replace(self, execution=execution)

    def key(self) -> dict[str, object]:
        """What tells this step's code apart from that of other plans and ways; shapes included."""
        return {
            "plan": self.plan.plan_id,
            "execution": [*self.execution.key],
            "start": self.start,
            "squares": self.squares,
            "adds": self.adds,
            "inputs": list(self.inputs),
            "targets": [*self.targets, self.target_dtype],
        }
