"""A network as a row of stages, so that a training can begin, stop and recompute between any two of them.

A network that has an attribute `stages` (a sequence of `Stage`) is computed one stage after the other, from
`layout(x)` on where it has such a method, and must do nothing else. Any other network is one stage.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tinygrad.tensor import Tensor

Function = Callable[[Tensor], Tensor]


def unchanged(x: Tensor) -> Tensor:
    """Return `x`."""
    return x


@dataclass(frozen=True, slots=True)
class Stage:
    """A layer, and what follows it without parameters of its own.

    A stage may be computed more than once for one step, so it must draw no random numbers (no dropout).

    `name` is how the layer's parameters are named in front of the last dot, "" for a whole network; `layer`
    computes the parameters' part, `after` activation, pooling and reshaping.
    """

    name: str
    layer: Function
    after: Function = unchanged

    def __call__(self, x: Tensor) -> Tensor:
        """Return the stage's output for a batch."""
        return self.after(self.layer(x))


@dataclass(frozen=True, slots=True)
class Stages:
    """A network's stages, and the layout that its inputs are brought to first."""

    layout: Function
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, network: Any) -> "Stages":
        """Return a network's own stages, or the network as one stage."""
        own: Sequence[Stage] | None = getattr(network, "stages", None)
        if own is None:
            return cls(unchanged, (Stage("", network),))
        return cls(getattr(network, "layout", unchanged), tuple(own))

    def run(self, x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Return what stages `start` to `stop` make of `x`; from the first on, `x` is a batch of inputs."""
        x = x if start else self.layout(x)
        for stage in self.stages[start:stop]:
            x = stage(x)
        return x

    def of_unit(self, layer: str) -> int:
        """Return the number of the stage that a unit's layer belongs to."""
        for number, stage in enumerate(self.stages):
            if layer == stage.name or layer.startswith(f"{stage.name}.") or not stage.name:
                return number
        raise KeyError(layer)
