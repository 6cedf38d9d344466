"""One training step that needs little memory: what it holds, and what it computes.

A step takes a batch in micro-batches (gradient accumulation). For each of them the compiled *micro-step* puts
the gradients of the plan's units into one buffer per unit and the mean loss into another; the trainer updates
the parameters from these. Only the stages from the first trained one on are held and computed, and the
backward pass goes through them one stage at a time: what is passed down between two stages is stored once,
where one graph's gradient would expand it as often as a convolution reads it.

With a segment length, only each segment's input is kept from the forward pass and the segment is computed
again for its backward pass (Chen et al., 2016, "Training deep nets with sublinear memory cost"). All
segments are in one captured graph, so tinygrad's planner lays them over one another in one arena.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from tinygrad import nn
from tinygrad.dtype import _from_np_dtype
from tinygrad.helpers import Context
from tinygrad.nn.state import get_state_dict
from tinygrad.tensor import Tensor

from edge_node.design import Piece, Shape, StepDesign
from hedgerow.runtime.model import Model
from hedgerow.runtime.stages import Stage, Stages, unchanged
from hedgerow.runtime.tasks import build_network

MicroStep = Callable[..., None]


def training_mode() -> Any:
    """Return the context in which layers behave as in training."""
    return Context(TRAINING=1)  # type: ignore[no-untyped-call]


def empty(shape: Shape, dtype: str) -> Tensor:
    """Return a buffer that no memory is allocated for before it is used."""
    return Tensor.empty(*shape, dtype=_from_np_dtype(np.dtype(dtype)))


def bound_stages(model: Model, params: Mapping[str, Tensor]) -> Stages:
    """Return a new network's stages with these tensors for parameters; the others hold no values."""
    network = build_network(model.task)
    state = get_state_dict(network)
    for name, tensor in params.items():
        state[name].replace(tensor)
    return Stages.of(network)


def micro_step(model: Model, design: StepDesign, arguments: Sequence[Tensor]) -> MicroStep:
    """Return the function that TinyJit captures; it is called with `arguments` (see StepDesign.buffers)."""
    _, _, loss, *rest = arguments
    results = dict(zip(design.results, rest, strict=False))
    params = dict(zip(design.params, rest[len(results) :], strict=True))
    stages = bound_stages(model, params)
    backward = Backward(model, design, stages.stages, params, results, loss)

    def step(x: Tensor, y: Tensor, *_held: Tensor) -> None:
        if design.first == 0:
            h = stages.layout(x)
        else:
            h = stages.run(x, design.start, design.first) if design.start < design.first else x
        if design.execution.autograd:
            backward.at_once(h, y)
        else:
            # What frozen stages made is an input like any other.
            backward.run(h if design.start == design.first else h.contiguous().realize(), y)

    return step


@dataclass(frozen=True, slots=True)
class _Passed:
    """A stage in the backward pass: what went in, what its layer made of it, and what came out."""

    number: int
    entered: Tensor
    inner: Tensor
    left: Tensor


class Backward:
    """Forward and backward pass of a micro-step's trained stages."""

    def __init__(
        self,
        model: Model,
        design: StepDesign,
        stages: Sequence[Stage],
        params: Mapping[str, Tensor],
        results: Mapping[str, Tensor],
        loss: Tensor,
    ) -> None:
        self._task = model.task
        self._design = design
        self._stages = stages
        self._params = params
        self._results = results
        self._loss = loss

    def at_once(self, h: Tensor, y: Tensor) -> None:
        """Take tinygrad's own gradient of everything, from the first trained stage's input `h` on."""
        for stage in self._stages[self._design.first :]:
            h = stage(h)
        loss = self._task.loss(h, y)
        tensors = list(dict.fromkeys(piece.tensor for piece in self._design.pieces))
        gradients = loss.gradient(*[self._params[name] for name in tensors])
        done = self._store(self._design.pieces, dict(zip(tensors, gradients, strict=True)))
        Tensor.realize(self._loss.assign(loss.reshape(1)), *done)

    def run(self, h: Tensor, y: Tensor) -> None:
        """Go up from the first trained stage's input `h`, and down again segment by segment."""
        first, count = self._design.first, len(self._stages)
        bounds = [*range(first, count, self._design.execution.segment or count), count]
        kept = [h]
        for start, stop in pairwise(bounds[:-1]):
            kept.append(self._up(kept[-1], start, stop).contiguous().realize())
        upstream: Tensor | None = None
        for start, stop in reversed(list(pairwise(bounds))):
            upstream = self._down(kept.pop(), range(start, stop), y, upstream)

    def _up(self, h: Tensor, start: int, stop: int) -> Tensor:
        for stage in self._stages[start:stop]:
            h = stage(h)
        return h

    def _down(self, h: Tensor, segment: range, y: Tensor, upstream: Tensor | None) -> Tensor | None:
        """Store the gradients of a segment with input `h`; return the gradient of `h`, None at the first."""
        passed = list(self._passed(h, segment))
        done = []
        if upstream is None:
            loss = self._task.loss(passed[-1].left, y)
            done.append(self._loss.assign(loss.reshape(1)))
            (upstream,) = loss.gradient(passed[-1].left)
        while passed:
            stage = passed.pop()
            inner = _inner_gradient(stage, upstream)
            if len(segment) == 1:
                # Nothing else of the stage is needed any more. One unit after the other then passes
                # through the same memory.
                done = [Tensor.realize(one) for one in self._stored(stage, inner.realize(*done))]
            else:
                done += self._stored(stage, inner)
            if stage.number > self._design.first:
                upstream = _input_gradient(self._stages[stage.number], stage, inner).contiguous()
        if segment.start == self._design.first:
            Tensor.realize(*done)
            return None
        return upstream.realize(*done)

    def _passed(self, h: Tensor, segment: range) -> Iterator[_Passed]:
        for number in segment:
            stage = self._stages[number]
            inner = stage.layer(h)
            left = inner if stage.after is unchanged else stage.after(inner)
            yield _Passed(number, h, inner, left)
            h = left

    def _stored(self, stage: _Passed, inner_gradient: Tensor) -> list[Tensor]:
        """Store the gradients of one stage's units."""
        design = self._design
        pieces = [p for p in design.pieces if design.map.of_tensor[p.tensor] == stage.number]
        if not pieces:
            return []
        tensors = list(dict.fromkeys(piece.tensor for piece in pieces))
        params = [self._params[name] for name in tensors]
        gradients = stage.inner.gradient(*params, gradient=inner_gradient)
        return self._store(pieces, dict(zip(tensors, gradients, strict=True)))

    def _store(self, pieces: Sequence[Piece], gradients: Mapping[str, Tensor]) -> list[Tensor]:
        done = []
        for piece in pieces:
            gradient = gradients[piece.tensor][piece.index]
            result = self._results[piece.name]
            if self._design.squares:
                gradient = gradient.square().sum().reshape(1)
            done.append(result.assign(result + gradient if self._design.adds else gradient))
        return done


def _inner_gradient(stage: _Passed, upstream: Tensor) -> Tensor:
    """Return the gradient of what the stage's layer made, from that of what came out."""
    if stage.left is stage.inner:
        return upstream
    (gradient,) = stage.left.gradient(stage.inner, gradient=upstream)
    return gradient.contiguous()


def _input_gradient(stage: Stage, passed: _Passed, inner_gradient: Tensor) -> Tensor:
    """Return the gradient of a stage's input; of a convolution by the transposed one, which is faster."""
    # A subclass, as tinygrad's transposed convolution is one, computes something else.
    if type(stage.layer) is not nn.Conv2d:
        return passed.inner.gradient(passed.entered, gradient=inner_gradient)[0]
    conv, entered = stage.layer, passed.entered
    settings = (conv.weight, None, conv.groups, conv.stride, conv.dilation, conv.padding)
    gradient = inner_gradient.conv_transpose2d(*settings)
    missing = tuple(
        int(there) - int(here)
        for there, here in zip(entered.shape[2:], gradient.shape[2:], strict=True)
    )
    if any(missing):  # A stride that left out the last inputs.
        gradient = inner_gradient.conv_transpose2d(*settings, missing)
    return gradient
