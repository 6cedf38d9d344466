"""Tasks as a user would write them: networks that the built-in ones know nothing of."""

from typing import Any

import numpy as np
from tinygrad import nn
from tinygrad.tensor import Tensor

from hedgerow.core.config import TaskConfig
from hedgerow.runtime.model import Model
from hedgerow.runtime.stages import Stage, Stages

Array = np.ndarray[Any, Any]
TOKENS, WORDS, WIDTH = 5, 7, 8


class DepthwiseNet:
    """Strided, depthwise and pointwise convolutions with group normalisation, in stages."""

    def __init__(self) -> None:
        self.first = nn.Conv2d(2, 8, 3, stride=2, padding=1)
        self.norms = [nn.GroupNorm(2, 8), nn.GroupNorm(4, 16)]
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.pointwise = nn.Conv2d(8, 16, 1)
        self.dilated = nn.Conv2d(16, 8, 2, dilation=2)
        self.output = nn.Linear(8, 3)

    @property
    def stages(self) -> list[Stage]:
        return [
            Stage("first", self.first),
            Stage("norms.0", self.norms[0], Tensor.relu),
            Stage("depthwise", self.depthwise),
            Stage("pointwise", self.pointwise),
            Stage("norms.1", self.norms[1], Tensor.relu),
            Stage("dilated", self.dilated, lambda x: x.relu().mean((2, 3))),
            Stage("output", self.output),
        ]

    def __call__(self, x: Tensor) -> Tensor:
        return Stages.of(self).run(x)


class SequenceNet:
    """Embedding, a gated recurrent unit and attention over its states; no stages."""

    def __init__(self) -> None:
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.gates = nn.Linear(2 * WIDTH, 2 * WIDTH)
        self.candidate = nn.Linear(2 * WIDTH, WIDTH)
        self.keys = nn.Linear(WIDTH, WIDTH)
        self.output = nn.Linear(WIDTH, 3)

    def __call__(self, x: Tensor) -> Tensor:
        words = self.embedding(x.int())
        state = words[:, 0] * 0
        states = []
        for i in range(TOKENS):
            reset, update = self.gates(words[:, i].cat(state, dim=1)).sigmoid().chunk(2, dim=1)
            fresh = self.candidate(words[:, i].cat(reset * state, dim=1)).tanh()
            state = update * state + (1 - update) * fresh
            states.append(state)
        seen = states[0].stack(*states[1:], dim=1)
        attended = self.keys(seen).scaled_dot_product_attention(seen, seen)
        return self.output(attended.mean(1))


class UserTask:
    """Classification into three by one of the networks."""

    target_dtype = np.dtype(np.int32)

    def __init__(self, network: type[Any], input_shape: tuple[int, ...]) -> None:
        self._network = network
        self.input_shape = input_shape

    def build(self) -> Any:
        return self._network()

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        return output.sparse_categorical_crossentropy(targets)

    def metrics(self, outputs: Array, targets: Array) -> dict[str, float]:
        return {"accuracy": float((outputs.argmax(1) == targets).mean())}


def user_model(network: type[Any], input_shape: tuple[int, ...], groups: int = 1) -> Model:
    # The options tell the tasks of this file apart.
    config = TaskConfig(name="user:task", outputs=3, options={"network": network.__name__})
    return Model(UserTask(network, input_shape), config, groups)
