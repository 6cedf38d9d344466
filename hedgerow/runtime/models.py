"""The built-in network of plain layers: convolutions, then linear layers, with ReLU between."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from typing import cast

from tinygrad import nn
from tinygrad.tensor import Tensor

from hedgerow.core.errors import ConfigError
from hedgerow.runtime.stages import Stage, Stages

POOL = 2
Layout = Callable[[Tensor], Tensor]


class Network:
    """Convolutions with ReLU and max-pooling by two, then linear layers with ReLU between.

    `layout` brings a batch of inputs to (batch, *shape); `shape` is (features...) without convolutions,
    (channels, time) for one-dimensional and (channels, height, width) for two-dimensional ones. Layers
    are attributes in the order of use, so that parameter names come in that order too: convs.0, ...,
    hidden.0, ..., output.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        layout: Layout,
        *,
        channels: Sequence[int] = (),
        kernel: int = 1,
        hidden: Sequence[int],
        outputs: int,
    ) -> None:
        self._layout = layout
        self.convs: list[nn.Conv2d] = []
        if channels:
            shape = self._add_convs(shape, channels, kernel)
        sizes = [prod(shape), *hidden]
        self.hidden = [nn.Linear(inputs, size) for inputs, size in pairwise(sizes)]
        self.output = nn.Linear(sizes[-1], outputs)

    def _add_convs(
        self, shape: tuple[int, ...], channels: Sequence[int], kernel: int
    ) -> tuple[int, ...]:
        axes = len(shape) - 1
        for count in channels:
            sizes = tuple((size - kernel + 1) // POOL for size in shape[1:])
            if min(sizes) < 1:
                raise ConfigError(
                    f"task.options.channels: {list(channels)} with kernel {kernel} leave nothing of the"
                    f" inputs' size {shape[1:]} at layer {len(self.convs)}; use fewer layers or a"
                    " smaller task.options.kernel"
                )
            self.convs.append(nn.Conv2d(shape[0], count, (kernel,) * axes))
            shape = (count, *sizes)
        return shape

    @property
    def stages(self) -> list[Stage]:
        """The layers in the order of use, each with what follows it."""
        convs = [Stage(f"convs.{i}", conv, _pooled) for i, conv in enumerate(self.convs)]
        if convs:
            convs[-1] = Stage(convs[-1].name, convs[-1].layer, lambda x: _pooled(x).flatten(1))
        hidden = [Stage(f"hidden.{i}", layer, Tensor.relu) for i, layer in enumerate(self.hidden)]
        return [*convs, *hidden, Stage("output", self.output)]

    def layout(self, x: Tensor) -> Tensor:
        """Bring a batch of inputs to what the first layer takes."""
        x = self._layout(x)
        return x if self.convs else x.flatten(1)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs, shape (batch, outputs), for inputs of shape (batch, ...)."""
        return Stages.of(self).run(x)


def _pooled(x: Tensor) -> Tensor:
    # With return_indices, which is not asked for, this would be a pair.
    return cast("Tensor", x.relu().max_pool2d((POOL,) * (x.ndim - 2)))
