"""The built-in network of depthwise separable convolutions, for images on small devices.

After Howard et al., 2017, "MobileNets". Group normalization (Wu and He, 2018) stands where it has batch
normalization: a batch's statistics cannot be averaged between nodes whose data differ.
"""

from collections.abc import Sequence
from itertools import pairwise

from tinygrad import nn
from tinygrad.tensor import Tensor

from hedgerow.core.errors import ConfigError
from hedgerow.runtime.stages import Function, Stage, Stages

GROUP_CHANNELS = 8
"""Channels normalized together, where their number can be divided so; else all of a layer's."""


class Block:
    """A 3x3 convolution of each channel alone, then a 1x1 one over all channels, each normalized."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        self.depthwise = _convolution(inputs, inputs, 3, stride, groups=inputs)
        self.depthwise_norm = _norm(inputs)
        self.pointwise = _convolution(inputs, outputs, 1)
        self.pointwise_norm = _norm(outputs)

    def stages(self, name: str) -> list[Stage]:
        """Return the block's layers in the order of use; ReLU follows each normalization."""
        return [
            Stage(f"{name}.depthwise", self.depthwise),
            Stage(f"{name}.depthwise_norm", self.depthwise_norm, Tensor.relu),
            Stage(f"{name}.pointwise", self.pointwise),
            Stage(f"{name}.pointwise_norm", self.pointwise_norm, Tensor.relu),
        ]


class MobileNet:
    """A 3x3 convolution, blocks, the mean over the image, then linear layers with ReLU between.

    `layout` brings a batch of inputs to (batch, *shape), `shape` is (channels, height, width). `channels` has
    the first convolution's output channels and then each block's, `strides` their steps: left empty it is 2
    where a block has more channels than what comes before it, else 1. Layers are attributes in the order of
    use: first, first_norm, blocks.0.depthwise, ..., hidden.0, ..., output. Raises ConfigError when `strides`
    and `channels` differ in length.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        layout: Function,
        *,
        channels: Sequence[int],
        strides: Sequence[int],
        hidden: Sequence[int],
        outputs: int,
    ) -> None:
        self.layout = layout
        steps = strides or [1, *(1 + (after > before) for before, after in pairwise(channels))]
        if len(steps) != len(channels):
            raise ConfigError(
                f"task.options.strides: {list(strides)} are {len(strides)}, task.options.channels has"
                f" {len(channels)}; give one stride for each, or none"
            )
        self.first = _convolution(shape[0], channels[0], 3, steps[0])
        self.first_norm = _norm(channels[0])
        sizes = zip(pairwise(channels), steps[1:], strict=True)
        self.blocks = [Block(inputs, size, step) for (inputs, size), step in sizes]
        linears = [channels[-1], *hidden]
        self.hidden = [nn.Linear(inputs, size) for inputs, size in pairwise(linears)]
        self.output = nn.Linear(linears[-1], outputs)

    @property
    def stages(self) -> list[Stage]:
        """The layers in the order of use, each with what follows it."""
        convs = [Stage("first", self.first), Stage("first_norm", self.first_norm, Tensor.relu)]
        for number, block in enumerate(self.blocks):
            convs += block.stages(f"blocks.{number}")
        convs[-1] = Stage(convs[-1].name, convs[-1].layer, _mean_of_image)
        hidden = [Stage(f"hidden.{i}", layer, Tensor.relu) for i, layer in enumerate(self.hidden)]
        return [*convs, *hidden, Stage("output", self.output)]

    def __call__(self, x: Tensor) -> Tensor:
        """Return the outputs, shape (batch, outputs), for inputs of shape (batch, ...)."""
        return Stages.of(self).run(x)


def _convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1
) -> nn.Conv2d:
    """Return a convolution that keeps the image's size at stride 1; the norm after it has the bias."""
    padding = kernel // 2
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
    if groups > 1:
        # tinygrad draws for a filter that sees all inputs; this one sees a share of them.
        conv.weight = conv.weight * groups**0.5
    return conv


def _norm(channels: int) -> nn.GroupNorm:
    groups = 1 if channels % GROUP_CHANNELS else channels // GROUP_CHANNELS
    return nn.GroupNorm(groups, channels)


def _mean_of_image(x: Tensor) -> Tensor:
    return x.relu().mean((2, 3))
