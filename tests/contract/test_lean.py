"""The same gradients whatever way they are computed, and less memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from tinygrad.tensor import Tensor

from edge_node.trainer import Trainer
from hedgerow.core.config import TaskConfig
from hedgerow.core.effects import Probe, Trained
from hedgerow.core.errors import ConfigError
from hedgerow.core.execution import Execution, executions
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.runtime.model import Model, load_model
from hedgerow.runtime.ports import ComputeError
from hedgerow.runtime.stages import Stage
from tests.contract.tiny_models import examples, job_of, mlp, mlp_gradient, params_of, trainer_of
from tests.contract.user_tasks import DepthwiseNet, SequenceNet, user_model

PLAIN = Execution(8, autograd=True)


def cnn(groups: int = 1) -> Model:
    options = {"channels": [4, 8], "kernel": 3, "hidden": [12]}
    return load_model(TaskConfig(name="cnn", outputs=3, options=options), (12, 12), groups)


def cnn1d(groups: int = 1) -> Model:
    options = {"channels": [6, 8], "kernel": 3, "hidden": [16]}
    return load_model(TaskConfig(name="cnn1d", outputs=3, options=options), (20, 3), groups)


ZOO: dict[str, Callable[[int], Model]] = {
    "mlp": lambda groups: load_model(
        TaskConfig(outputs=3, options={"hidden": [24, 16]}), (30,), groups
    ),
    "cnn": cnn,
    "cnn1d": cnn1d,
    "depthwise": lambda groups: user_model(DepthwiseNet, (2, 13, 13), groups),
    "sequence": lambda groups: user_model(SequenceNet, (5,), groups),
}
# Model, groups, the layers or units trained, ways to compute it.
CASES: list[tuple[str, int, list[str], list[Execution]]] = [
    (
        "mlp",
        4,
        ["hidden.0.weight[:,7:15]", "hidden.1", "output.bias"],
        [Execution(2), Execution(8, 1)],
    ),
    ("cnn", 1, [], [Execution(8), Execution(2, 1)]),
    ("cnn", 4, ["convs.1", "output"], [Execution(8, 2), Execution(2)]),
    ("cnn1d", 1, ["convs.0.bias", "convs.1.bias", "output"], [Execution(8, 1)]),
    ("depthwise", 4, [], [Execution(4, 1)]),
    ("sequence", 1, ["gates", "output"], [Execution(2)]),
]


def inputs_of(model: Model, rows: int) -> tuple[Any, Any]:
    inputs, targets = examples(rows, model.task.input_shape)
    return (np.abs(inputs * 3) % 7 if len(model.task.input_shape) == 1 else inputs), targets


def trained(
    model: Model, names: list[str], way: Execution | None, folder: Path, **changes: Any
) -> Trained:
    plan = Plan.of(model.manifest, names or model.manifest.by_name)
    job = job_of(model, plan=plan, batch_size=8, **changes)
    return Trainer(model, *inputs_of(model, 24), folder).train(job, way)


@pytest.mark.parametrize(("name", "groups", "names", "ways"), CASES, ids=str)
def test_every_way_gives_the_same_result(
    name: str, groups: int, names: list[str], ways: list[Execution], jit_folder: Path
) -> None:
    model = ZOO[name](groups)
    plain = trained(model, names, PLAIN, jit_folder)
    size = np.abs(plain.delta).max()
    assert size > 1e-3
    for way in ways:
        found = trained(model, names, way, jit_folder)
        np.testing.assert_allclose(found.delta, plain.delta, atol=1e-4 * size, rtol=1e-4)
        assert found.step_square_sum == pytest.approx(plain.step_square_sum, rel=1e-4)
        assert found.loss_last == pytest.approx(plain.loss_last, rel=1e-5)
        assert found.execution == way
        # The plan said so before.
        assert found.planned_bytes == pytest.approx(found.peak_bytes, rel=0.01)


def test_frozen_stages_are_not_held(jit_folder: Path) -> None:
    model = ZOO["mlp"](1)
    found = trained(model, ["output"], None, jit_folder)
    assert found.peak_bytes < 0.8 * 4 * model.manifest.size


def test_the_fastest_way_that_fits_is_taken(jit_folder: Path) -> None:
    model = cnn()
    free = trained(model, [], None, jit_folder)
    assert free.execution is not None
    assert free.execution.in_words == "8 at a time"
    tight = trained(model, [], None, jit_folder, memory_bytes=free.peak_bytes - 1)
    assert tight.execution != free.execution
    assert tight.peak_bytes < free.peak_bytes
    np.testing.assert_allclose(tight.delta, free.delta, atol=1e-5, rtol=1e-3)
    again = trained(model, [], None, jit_folder, memory_bytes=free.peak_bytes)
    assert again.execution == free.execution


def test_what_fits_in_no_way_says_what_it_needs(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 12, jit_folder)
    with pytest.raises(ComputeError, match=r"needs at least (\d+) bytes .* 100 allowed") as caught:
        trainer.train(job_of(model, memory_bytes=100))
    needed = int(str(caught.value).split("at least ")[1].split()[0])
    assert trainer.train(job_of(model, memory_bytes=needed)).peak_bytes <= needed
    with pytest.raises(ComputeError):
        trainer.train(job_of(model, memory_bytes=needed - 1))


def test_a_choice_is_remembered_beside_the_steps(tmp_path: Path) -> None:
    model = mlp()
    job = job_of(model, memory_bytes=3000)
    first = trainer_of(model, 12, tmp_path).train(job)
    (note,) = tmp_path.glob("*.json")
    before = note.read_bytes()
    assert trainer_of(model, 12, tmp_path).train(job).execution == first.execution
    note.write_bytes(b"{")
    assert trainer_of(model, 12, tmp_path).train(job).execution == first.execution
    assert note.read_bytes() == before


def test_max_steps_ends_early(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 12, jit_folder)
    whole, one = trainer.train(job_of(model)), trainer.train(job_of(model, passes=1))
    cut = trainer.train(job_of(model, max_steps=4))
    assert (whole.steps, one.steps, cut.steps) == (6, 3, 4)
    assert cut.loss_first == one.loss_first == whole.loss_first
    assert cut.step_square_sum > one.step_square_sum
    assert cut.loss_last != cut.loss_first
    equal = trainer.train(job_of(model, max_steps=3))
    np.testing.assert_array_equal(equal.delta, one.delta)
    assert equal.loss_last == one.loss_last
    np.testing.assert_array_equal(trainer.train(job_of(model, max_steps=9)).delta, whole.delta)


def probe_of(model: Model, **changes: Any) -> Probe:
    plan = choose_plan(model.manifest, preset="all")
    return replace(Probe(3, plan, params_of(model), 4, 3, seed=5), **changes)


def test_a_probe_equals_plain_numpy(jit_folder: Path) -> None:
    model = mlp()
    inputs, targets = examples(12)
    # Three batches are a whole pass, in whatever order: all rows once.
    found = trainer_of(model, 12, jit_folder).probe(probe_of(model, batch_size=12, batches=1))
    _, gradient = mlp_gradient(
        choose_plan(model.manifest, preset="all"), params_of(model), inputs, targets
    )
    expected = {
        name: float(gradient[where] @ gradient[where])
        for name, where in model.manifest.slices.items()
    }
    assert found.squares == pytest.approx(expected, rel=1e-4)
    assert (found.job, found.batches) == (3, 1)


def test_a_probe_needs_no_memory_for_gradients(jit_folder: Path) -> None:
    model = ZOO["mlp"](1)
    trainer = Trainer(model, *inputs_of(model, 12), jit_folder)
    whole = trainer.probe(probe_of(model))
    least = 4 * model.manifest.size + 4000
    assert least < trainer.train(job_of(model)).peak_bytes
    small = trainer.probe(probe_of(model, memory_bytes=least))
    assert set(small.squares) == set(model.manifest.by_name)
    # Of fewer examples, gradients are noisier: never smaller in the mean.
    assert sum(small.squares.values()) >= 0.99 * sum(whole.squares.values())
    with pytest.raises(ComputeError, match="1000 allowed"):
        trainer.probe(probe_of(model, memory_bytes=1000))


def test_a_probe_of_more_batches_than_a_pass_has_goes_on(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 9, jit_folder)
    found = [trainer.probe(probe_of(model, batches=count)).squares for count in (2, 5)]
    assert found[0] != found[1]
    assert trainer.probe(probe_of(model, batches=5)).squares == found[1]


def test_executions_are_ordered_and_complete() -> None:
    ways = executions(6, 3)
    assert ways[0] == Execution(6)
    assert {way.micro_batch for way in ways} == {6, 3, 2, 1}
    assert {way.segment for way in ways} == {0, 1, 2}
    costs = [way.cost(6) for way in ways]
    assert costs == sorted(costs)
    assert {way.segment for way in executions(6, 1)} == {0}


class Forgetful(DepthwiseNet):
    """Says nothing of its first stage."""

    @property
    def stages(self) -> list[Stage]:
        return super().stages[1:]

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(self.first(x)) if x.shape[1] == 2 else super().__call__(x)


class Flattening(DepthwiseNet):
    """Loses the batch's axis after the first stage."""

    @property
    def stages(self) -> list[Stage]:
        return [Stage("first", self.first, lambda x: x.reshape(-1)), *super().stages[1:]]

    def __call__(self, x: Tensor) -> Tensor:
        return self.output(self.first(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("network", "message"),
    [(Forgetful, "'first.weight' belongs to none"), (Flattening, "first axis must stay")],
)
def test_wrong_stages_are_refused(network: type[Any], message: str, jit_folder: Path) -> None:
    model = user_model(network, (2, 13, 13))
    with pytest.raises(ConfigError, match=message):
        Trainer(model, *inputs_of(model, 4), jit_folder)
