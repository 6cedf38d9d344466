"""The analytic memory model: its sums, and that it agrees with tinygrad's own memory planner."""

import statistics
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tinygrad import nn
from tinygrad.tensor import Tensor

from edge_node.oracle import planned_bytes
from hedgerow.core.config import TaskConfig
from hedgerow.core.costs import ModelCosts
from hedgerow.core.execution import Execution, executions
from hedgerow.core.memory import feature_bytes, fixed_bytes, gradient_bytes, training_bytes
from hedgerow.core.plan import Plan
from hedgerow.runtime.layers import model_costs
from hedgerow.runtime.model import Model, load_model
from hedgerow.runtime.stages import Stage

BATCH = 8
MLP = TaskConfig(name="mlp", outputs=10, options={"hidden": [64, 32]})
CNN = TaskConfig(name="cnn", outputs=10, options={"channels": [8, 16], "hidden": [32]})
CNN1D = TaskConfig(name="cnn1d", outputs=6, options={"channels": [8, 16], "hidden": [32]})
MOBILE = TaskConfig(name="mobilenet", outputs=10, options={"channels": [8, 16]})
ZOO: list[tuple[TaskConfig, tuple[int, ...]]] = [
    (MLP, (8, 8)),
    (CNN, (14, 14)),
    (CNN1D, (64, 6)),
    (MOBILE, (12, 12, 3)),
]


def model(config: TaskConfig, shape: tuple[int, ...], groups: int = 1) -> Model:
    return load_model(config, shape, groups)


def plans(costs: ModelCosts) -> Iterator[list[str]]:
    """Return everything from a few stages on, and the biases of all with the last stage."""
    names = list(costs.manifest.by_name)
    for depth in range(0, len(costs.stages), 2 + len(costs.stages) // 3):
        yield [name for name in names if costs.stage_of(name) >= depth]
    last = len(costs.stages) - 1
    yield [
        unit.name
        for unit in costs.manifest.units
        if unit.is_bias or costs.stage_of(unit.name) == last
    ]


@pytest.mark.parametrize(("config", "shape"), ZOO, ids=[config.name for config, _ in ZOO])
def test_the_model_agrees_with_the_planner(config: TaskConfig, shape: tuple[int, ...]) -> None:
    built = model(config, shape)
    costs = model_costs(built)
    ratios = []
    for number, names in enumerate(plans(costs)):
        plan = Plan.of(built.manifest, names)
        others = [] if number else [Execution(BATCH // 4), Execution(BATCH, 1)]
        for way in (Execution(BATCH), *others):
            modelled = training_bytes(costs, names, way, batch=BATCH)
            ratios.append(modelled / planned_bytes(built, plan, BATCH, way))
    assert 0.9 < statistics.median(ratios) < 1.1, ratios
    assert min(ratios) > 0.6, ratios
    assert max(ratios) < 1.5, ratios


@pytest.mark.parametrize(("config", "shape"), ZOO, ids=[config.name for config, _ in ZOO])
def test_units_add_up(config: TaskConfig, shape: tuple[int, ...]) -> None:
    costs = model_costs(model(config, shape, groups=4))
    everything = list(costs.manifest.by_name)
    for depth in range(len(costs.stages)):
        names = [name for name in everything if costs.stage_of(name) >= depth]
        if min(costs.stage_of(name) for name in names) > depth:
            continue
        for way in executions(BATCH, len(costs.stages) - depth):
            own = sum(gradient_bytes(costs.manifest.by_name[name]) for name in names)
            step = fixed_bytes(costs, depth, way, BATCH) + own
            expected = max(step, feature_bytes(costs, depth))
            assert training_bytes(costs, names, way, batch=BATCH) == expected


def test_parameters_inputs_and_gradients_are_counted_exactly() -> None:
    costs = model_costs(model(MLP, (8, 8)))
    way = Execution(BATCH)
    last = ["output.weight", "output.bias"]
    held = 4 * (32 * 10 + 10)
    batch = BATCH * (4 * 32 + 4)
    # The smaller rest is the loss's and the outputs' own.
    assert 0 < fixed_bytes(costs, 2, way) - held - batch < BATCH * 4 * 10 * 4
    whole = training_bytes(costs, last, way) - training_bytes(costs, ["output.bias"], way)
    assert whole in {0, 4 * 320}
    more = training_bytes(costs, costs.manifest.by_name, way)
    fewer = training_bytes(costs, ["hidden.0.bias"], way)
    assert more - fewer == 4 * (costs.manifest.size - 64)


def test_error_feedback_is_counted_for_shared_units_only() -> None:
    costs = model_costs(model(MLP, (8, 8)))
    way = Execution(BATCH)
    shared, personal = ["hidden.0.weight", "hidden.0.bias"], ["output"]
    personal = list(Plan.of(costs.manifest, personal).names)
    plain = training_bytes(costs, shared, way, personal=personal)
    fed_back = training_bytes(costs, shared, way, personal=personal, error_feedback=True)
    assert fed_back - plain == 4 * (64 * 64 + 64)
    assert plain == training_bytes(costs, [*shared, *personal], way)
    with pytest.raises(ValueError, match="needs a unit"):
        training_bytes(costs, [], way)


def test_smaller_micro_batches_and_segments_need_less_of_a_deep_model() -> None:
    config = TaskConfig(name="cnn", outputs=4, options={"channels": [8] * 3, "kernel": 3})
    costs = model_costs(model(config, (40, 40)))
    sizes = [fixed_bytes(costs, 0, Execution(size), 16) for size in (16, 8, 4, 2, 1)]
    assert sizes == sorted(sizes, reverse=True)
    assert fixed_bytes(costs, 0, Execution(16, 1)) < fixed_bytes(costs, 0, Execution(16))


def test_costs_of_known_layers() -> None:
    costs = model_costs(model(CNN, (14, 14)))
    assert [stage.name for stage in costs.stages] == ["convs.0", "convs.1", "hidden.0", "output"]
    first = costs.stages[0]
    assert costs.example_bytes == first.input_bytes == 4 * 14 * 14
    assert first.output_bytes == 4 * 8 * 6 * 6
    assert first.inner_bytes == 4 * 8 * 12 * 12
    # A multiplication and an addition for each weight at each place.
    multiplied = 2 * 9 * 8 * 12 * 12 / 1e6
    # Biases, activation and pooling come on top.
    assert multiplied < first.mflop < 1.3 * multiplied
    assert costs.stages[3].mflop == pytest.approx(2 * 32 * 10 / 1e6, rel=0.1)
    assert (first.shared, costs.stages[3].shared) == (True, False)
    assert costs.target_bytes == 4
    assert sum(costs.params_bytes) == 4 * costs.manifest.size


class Reader:
    """A user's network without stages: an embedding, attention and a head."""

    def __init__(self) -> None:
        self.embed = nn.Linear(6, 16)
        self.query = nn.Linear(16, 16)
        self.key = nn.Linear(16, 16)
        self.head = nn.Linear(16, 3)

    def __call__(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        scores = self.query(h) @ self.key(h).transpose(1, 2)
        return self.head((scores.softmax() @ h).mean(1))


class Normed:
    """A user's network with stages: a depthwise convolution and a norm."""

    def __init__(self) -> None:
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.norm = nn.GroupNorm(2, 4)
        self.output = nn.Linear(4, 3)

    @property
    def stages(self) -> list[Stage]:
        return [
            Stage("depthwise", self.depthwise),
            Stage("norm", self.norm, lambda x: x.relu().mean((2, 3))),
            Stage("output", self.output),
        ]

    def __call__(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return x


class OwnTask:
    target_dtype: np.dtype[Any] = np.dtype(np.int32)

    def __init__(self, network: type, input_shape: tuple[int, ...]) -> None:
        self.network, self.input_shape = network, input_shape

    def build(self) -> Any:
        return self.network()

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        return output.sparse_categorical_crossentropy(targets)

    def metrics(self, outputs: Any, targets: Any) -> dict[str, float]:
        return {"right": float((outputs.argmax(1) == targets).mean())}


@pytest.mark.parametrize(
    ("network", "shape", "stages"), [(Reader, (12, 6), 1), (Normed, (4, 10, 10), 3)]
)
def test_users_own_networks_are_traced(network: type, shape: tuple[int, ...], stages: int) -> None:
    built = Model(OwnTask(network, shape), TaskConfig(name="own:task", outputs=3))
    costs = model_costs(built)
    assert len(costs.stages) == stages
    assert costs.stages[0].input_bytes == 4 * np.prod(shape)
    everything = list(built.manifest.by_name)
    planned = planned_bytes(built, Plan.of(built.manifest, everything), BATCH, Execution(BATCH))
    modelled = training_bytes(costs, everything, Execution(BATCH), batch=BATCH)
    assert 0.5 < modelled / planned < 2, (modelled, planned)
