from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from tinygrad.helpers import GlobalCounters

from edge_node.micro import StepMemory
from edge_node.trainer import Trainer, pass_order, pass_orders
from hedgerow.core.config import TaskConfig
from hedgerow.core.effects import Train
from hedgerow.core.errors import ConfigError
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.runtime.model import load_model
from hedgerow.runtime.ports import ComputeError
from tests.contract.tiny_models import (
    SHAPE,
    Array,
    NumpyResult,
    examples,
    job_of,
    mlp,
    mlp_gradient,
    params_of,
    trainer_of,
)

PLANS: list[dict[str, Any]] = [
    {"preset": "all"},
    {"preset": "biases+last"},
    {"last_layers": 1},
    {"units": ["hidden.1.weight"]},
]


@pytest.mark.parametrize("chosen", PLANS, ids=str)
@pytest.mark.parametrize("rows", [22, 3])
def test_training_equals_plain_numpy(chosen: dict[str, Any], rows: int, jit_folder: Path) -> None:
    model = mlp()
    job = job_of(model, plan=choose_plan(model.manifest, **chosen), passes=3)
    found = trainer_of(model, rows, jit_folder).train(job)
    expected = NumpyResult(job, *examples(rows))
    assert found.delta.dtype == np.float32
    np.testing.assert_allclose(found.delta, expected.delta, rtol=1e-4, atol=1e-5)
    assert np.abs(expected.delta).max() > 1e-2
    assert found.step_square_sum == pytest.approx(expected.square_sum, rel=1e-4)
    assert found.loss_first == pytest.approx(expected.losses[0], rel=1e-5)
    assert found.loss_last == pytest.approx(expected.losses[-1], rel=1e-5)
    assert (found.job, found.examples, found.steps) == (1, rows, expected.steps)


def test_an_offset_is_added_first_and_not_counted(jit_folder: Path) -> None:
    model = mlp()
    plan = choose_plan(model.manifest, last_layers=2)
    offset = np.random.default_rng(5).standard_normal(plan.size).astype(np.float32)
    trainer = trainer_of(model, 12, jit_folder)
    plain = job_of(model, plan=plan)
    job = job_of(model, plan=plan, offset=offset)
    found = trainer.train(job).delta
    np.testing.assert_allclose(found, NumpyResult(job, *examples(12)).delta, rtol=1e-4, atol=1e-5)
    assert np.abs(found - trainer.train(plain).delta).max() > 1e-2


@pytest.mark.parametrize("chosen", PLANS[:2], ids=str)
def test_the_proximal_pull_equals_plain_numpy(chosen: dict[str, Any], jit_folder: Path) -> None:
    model = mlp()
    plan = choose_plan(model.manifest, **chosen)
    trainer = trainer_of(model, 22, jit_folder)
    job = job_of(model, plan=plan, passes=3, proximal=2.0)
    found, free = trainer.train(job), trainer.train(replace(job, proximal=0.0))
    params, square_sum = proximal_reference(job, *examples(22))
    np.testing.assert_allclose(found.delta, params, rtol=1e-4, atol=1e-5)
    assert found.step_square_sum == pytest.approx(square_sum, rel=1e-4)
    assert np.linalg.norm(found.delta) < 0.9 * np.linalg.norm(free.delta)
    assert found.peak_bytes == free.peak_bytes + 2 * 4 * plan.size


def proximal_reference(job: Train, inputs: Array, targets: Array) -> tuple[Array, float]:
    """FedProx's steps (Li et al., 2020) in float64: the delta on the plan's units, and the sum of squares."""
    start = job.params.astype(np.float64)
    params, square_sum = start.copy(), 0.0
    for number in range(job.passes):
        order = pass_order(job.seed, number, len(inputs))
        for at in range(0, len(order) - job.batch_size + 1, job.batch_size):
            rows = order[at : at + job.batch_size]
            _, gradient = mlp_gradient(job.plan, params, inputs[rows], targets[rows])
            square_sum += float(gradient @ gradient)
            params -= job.learning_rate * (gradient + job.proximal * (params - start))
    slices = job.plan.manifest.slices
    return np.concatenate([(params - start)[slices[name]] for name in job.plan.names]), square_sum


def test_without_a_proximal_pull_nothing_changes(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 12, jit_folder)
    plain, tiny = trainer.train(job_of(model)), trainer.train(job_of(model, proximal=1e-30))
    np.testing.assert_array_equal(plain.delta, tiny.delta)
    assert plain.step_square_sum == tiny.step_square_sum


@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(1, 40)), min_size=1, max_size=6),
    st.integers(0, 5),
)
def test_orders_of_many_jobs_are_those_of_each(jobs: list[tuple[int, int]], number: int) -> None:
    seeds = np.array([seed for seed, _ in jobs], np.uint64)
    orders = pass_orders(seeds, number, np.array([size for _, size in jobs]))
    for (seed, size), order in zip(jobs, orders, strict=True):
        assert sorted(order[:size]) == list(range(size))
        np.testing.assert_array_equal(order[:size], pass_order(seed, number, size))


def test_orders_differ_by_seed_and_pass_and_are_even() -> None:
    orders = [pass_order(seed, number, 6) for seed in range(400) for number in range(3)]
    assert len({tuple(order) for order in orders}) > 500
    firsts = np.bincount([order[0] for order in orders], minlength=6)
    assert firsts.min() > 150
    assert firsts.max() < 250


def test_the_jobs_parameters_are_not_changed(jit_folder: Path) -> None:
    model = mlp()
    job = job_of(model, offset=np.ones(model.manifest.size, np.float32))
    before = job.params.copy()
    trainer_of(model, 12, jit_folder).train(job)
    np.testing.assert_array_equal(job.params, before)


def test_a_job_gives_the_same_bits_again_whatever_ran_between(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 12, jit_folder)
    first = trainer.train(job_of(model))
    other = trainer.train(job_of(model, params=params_of(model, 9), learning_rate=0.5, seed=4))
    again = trainer.train(job_of(model))
    np.testing.assert_array_equal(first.delta, again.delta)
    assert first.step_square_sum == again.step_square_sum
    assert not np.array_equal(first.delta, other.delta)


def test_the_learning_rate_is_not_compiled_in(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 4, jit_folder)
    small = trainer.train(job_of(model, passes=1, learning_rate=0.01)).delta
    large = trainer.train(job_of(model, passes=1, learning_rate=0.02)).delta
    np.testing.assert_allclose(large, 2 * small, rtol=1e-3, atol=1e-6)


def test_trainers_of_one_process_share_steps_but_not_examples(jit_folder: Path) -> None:
    model = mlp()
    for rows in (12, 17):
        job = job_of(model)
        found = trainer_of(model, rows, jit_folder).train(job)
        expected = NumpyResult(job, *examples(rows))
        np.testing.assert_allclose(found.delta, expected.delta, rtol=1e-4, atol=1e-5)


def kernels_of(trainer: Trainer, job: Any) -> int:
    trainer.train(job)
    before = GlobalCounters.kernel_count
    trainer.train(job)
    return int(GlobalCounters.kernel_count - before)


def test_training_the_last_layer_only_computes_less(jit_folder: Path) -> None:
    """The backward pass must not reach the frozen layers: fewer kernels and less memory."""
    model = mlp()
    trainer = trainer_of(model, 12, jit_folder)
    full = job_of(model)
    last = job_of(model, plan=choose_plan(model.manifest, last_layers=1))
    assert kernels_of(trainer, last) < 0.75 * kernels_of(trainer, full)
    assert trainer.train(last).peak_bytes < trainer.train(full).peak_bytes


def test_units_outside_the_plan_keep_their_bits(
    jit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a tensor trained in part, too."""
    model = load_model(TaskConfig(outputs=3, options={"hidden": [24, 16]}), SHAPE, groups=4)
    plan = Plan.of(model.manifest, ["hidden.1.weight[:,6:12]", "output.weight", "hidden.1.bias"])
    made = []

    def remember(*arguments: Any) -> StepMemory:
        made.append(StepMemory(*arguments))
        return made[-1]

    monkeypatch.setattr("edge_node.trainer.StepMemory", remember)
    job = job_of(model, plan=plan)
    trainer_of(model, 12, jit_folder).train(job)
    before, after = model.manifest.split(job.params), made[-1].views
    assert {name.split(".")[0] for name in after} == {"hidden", "output"}
    assert len(after) == 7
    for name, values in after.items():
        assert np.array_equal(values, before[name]) == (name not in plan.names), name


def test_a_training_that_diverges_is_an_error(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 12, jit_folder)
    with pytest.raises(ComputeError, match=r"job 1.*training.learning_rate \(now 1e\+30\)"):
        trainer.train(job_of(model, learning_rate=1e30))
    assert np.isfinite(trainer.train(job_of(model)).delta).all()


def test_vectors_of_wrong_length_are_refused(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 12, jit_folder)
    with pytest.raises(ComputeError, match=r"params have shape \(3,\)"):
        trainer.train(job_of(model, params=np.zeros(3, np.float32)))
    with pytest.raises(ComputeError, match=r"offset has shape \(3,\)"):
        trainer.train(job_of(model, offset=np.zeros(3, np.float32)))


def test_examples_of_another_shape_are_refused(jit_folder: Path) -> None:
    with pytest.raises(ConfigError, match="shape"):
        Trainer(mlp(), *examples(9, (6,)), jit_folder)


def test_regression_learns(jit_folder: Path) -> None:
    model = load_model(TaskConfig(kind="regression", outputs=1, options={"hidden": [8]}), (2,))
    inputs = np.random.default_rng(0).uniform(-1, 1, (64, 2)).astype(np.float32)
    targets = inputs[:, 0] - 2 * inputs[:, 1]
    plan = Plan.of(model.manifest, model.manifest.by_name)
    params = params_of(model)
    job = job_of(model, plan=plan, params=params, passes=20, batch_size=8)
    trained = params + Trainer(model, inputs, targets, jit_folder).train(job).delta
    assert model.evaluate(trained, inputs, targets)["skill"] > 0.95


def test_convolutions_learn(jit_folder: Path) -> None:
    """The classes differ in where a bump lies, not in any mean."""
    options = {"channels": [4], "kernel": 3, "hidden": []}
    model = load_model(TaskConfig(name="cnn1d", outputs=2, options=options), (12, 2))
    labels = np.arange(40) % 2
    inputs = np.random.default_rng(0).standard_normal((40, 12, 2)).astype(np.float32) * 0.1
    inputs[labels == 0, 2:4, 0] += 1
    inputs[labels == 1, 8:10, 0] += 1
    params = params_of(model)
    job = job_of(model, params=params, passes=10, batch_size=8)
    trained = params + Trainer(model, inputs, labels, jit_folder).train(job).delta
    assert model.evaluate(trained, inputs, labels)["accuracy"] == 1
