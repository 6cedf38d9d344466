"""The built-in network: convolutions, then linear layers, with ReLU between."""

from collections.abc import Callable
from itertools import pairwise
from math import prod
from typing import cast

from tinygrad import nn
from tinygrad.tensor import Tensor

from hedgerow.core.errors import ConfigError

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
        channels: list[int],
        kernel: int,
        hidden: list[int],
        outputs: int,
    ) -> None:
        self.layout = layout
        self.convs: list[nn.Conv2d] = []
        if channels:
            shape = self._add_convs(shape, channels, kernel)
        sizes = [prod(shape), *hidden]
        self.hidden = [nn.Linear(inputs, size) for inputs, size in pairwise(sizes)]
        self.output = nn.Linear(sizes[-1], outputs)

    def _add_convs(
        self, shape: tuple[int, ...], channels: list[int], kernel: int
    ) -> tuple[int, ...]:
        axes = len(shape) - 1
        for count in channels:
            sizes = tuple((size - kernel + 1) // POOL for size in shape[1:])
            if min(sizes) < 1:
                raise ConfigError(
                    f"task.options.channels: {channels} with kernel {kernel} leave nothing of the"
                    f" inputs' size {shape[1:]} at layer {len(self.convs)}; use fewer layers or a"
                    " smaller task.options.kernel"
                )
            self.convs.append(nn.Conv2d(shape[0], count, (kernel,) * axes))
            shape = (count, *sizes)
        return shape

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers, the output's last."""
        return [*self.hidden, self.output]

    @property
    def linear_names(self) -> list[str]:
        """The linear layers' names, as in the manifest."""
        return [*(f"hidden.{i}" for i in range(len(self.hidden))), "output"]

    def before(self, linear: int, x: Tensor) -> Tensor:
        """Return the input of linear layer number `linear`: shape (batch, features)."""
        x = self.layout(x)
        for conv in self.convs:
            x = conv(x).relu()
            # With return_indices, which is not asked for, this would be a pair.
            x = cast("Tensor", x.max_pool2d((POOL,) * (x.ndim - 2)))
        x = x.flatten(1)
        for layer in self.linears[:linear]:
            x = layer(x).relu()
        return x

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs, shape (batch, outputs), for inputs of shape (batch, ...)."""
        return self.output(self.before(len(self.hidden), x))
