import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_node import stacked as stacked_module
from edge_node.stack import Need
from edge_node.stacked import StackedTrainer
from edge_node.trainer import Trainer
from hedgerow.core.config import TaskConfig
from hedgerow.core.effects import Train, Trained
from hedgerow.core.execution import Execution
from hedgerow.core.plan import choose_plan
from hedgerow.runtime.model import Model, load_model
from hedgerow.runtime.ports import ComputeError
from tests.contract.tiny_models import Array, examples, job_of, mlp, params_of

WIDTH = 4
SIZES = (22, 3, 9, 16, 40)
CNN1D = TaskConfig(name="cnn1d", outputs=3, options={"channels": [3], "kernel": 3, "hidden": [6]})


def shards_for(model: Model) -> list[tuple[Array, Array]]:
    return [examples(rows, model.task.input_shape) for rows in SIZES]


def trained(result: Trained | ComputeError) -> Trained:
    assert isinstance(result, Trained), result
    return result


def trained_all(trainer: StackedTrainer, jobs: Sequence[tuple[int, Train]]) -> list[Trained]:
    return [trained(result) for result in trainer.train(jobs)]


def assert_equals_single(
    model: Model, shards: list[tuple[Array, Array]], jobs: Sequence[tuple[int, Train]], folder: Path
) -> None:
    found = trained_all(StackedTrainer(model, shards, folder, WIDTH), jobs)
    assert [result.job for result in found] == [job.job for _, job in jobs]
    for (shard, job), result in zip(jobs, found, strict=True):
        expected = Trainer(model, *shards[shard], folder).train(job)
        np.testing.assert_allclose(result.delta, expected.delta, rtol=1e-4, atol=1e-6)
        assert np.abs(expected.delta).max() > 1e-3
        assert result.delta.dtype == np.float32
        for name in ("step_square_sum", "loss_first", "loss_last"):
            assert getattr(result, name) == pytest.approx(getattr(expected, name), rel=1e-4)
        assert (result.examples, result.steps) == (expected.examples, expected.steps)


def varied_jobs(model: Model, **plan: Any) -> list[tuple[int, Train]]:
    """More jobs than a stack is wide, on shards of different sizes, no two alike."""
    chosen = choose_plan(model.manifest, **plan)
    return [
        (
            number % len(SIZES),
            job_of(
                model,
                job=number,
                plan=chosen,
                params=params_of(model, number % 2),
                passes=1 + number % 3,
                learning_rate=0.05 * (1 + number),
                seed=number,
                offset=np.full(chosen.size, 0.01, np.float32) if number == 2 else None,
                proximal=0.4 * (number % 3),
            ),
        )
        for number in range(7)
    ]


@pytest.mark.parametrize(
    "plan",
    [
        {"preset": "all"},
        {"preset": "biases+last"},
        {"last_layers": 1},
        {"units": ["hidden.1.weight"]},
    ],
    ids=str,
)
def test_stacked_mlps_equal_single_ones(plan: dict[str, Any], jit_folder: Path) -> None:
    model = mlp()
    assert_equals_single(model, shards_for(model), varied_jobs(model, **plan), jit_folder)


@pytest.mark.parametrize("layers", [1, 2])
def test_heads_on_convolutions_equal_single_ones(layers: int, jit_folder: Path) -> None:
    model = load_model(CNN1D, (10, 2))
    assert_equals_single(
        model, shards_for(model), varied_jobs(model, last_layers=layers), jit_folder
    )


def test_stacked_regressions_equal_single_ones(jit_folder: Path) -> None:
    config = TaskConfig(kind="regression", outputs=2, options={"hidden": [6]})
    model = load_model(config, (5,))
    rng = np.random.default_rng(0)
    shards = [
        (examples(rows)[0], rng.standard_normal((rows, 2)).astype(np.float32)) for rows in SIZES
    ]
    assert_equals_single(model, shards, varied_jobs(model, preset="all"), jit_folder)


def test_groups_of_channels_equal_single_ones(jit_folder: Path) -> None:
    model = load_model(
        TaskConfig(name="mlp", outputs=3, options={"hidden": [32, 8]}), (5,), groups=2
    )
    names = [
        ["hidden.0.weight[:,0:2]", "hidden.1.weight[:,16:32]", "output.bias"],
        ["hidden.1.weight[:,0:16]", "hidden.1.weight[:,16:32]"],
        ["hidden.1.weight[:,0:16]"],
    ]
    for units in names:
        assert_equals_single(model, shards_for(model), varied_jobs(model, units=units), jit_folder)


def test_plans_over_the_same_tensors_share_a_step(jit_folder: Path) -> None:
    model = load_model(
        TaskConfig(name="mlp", outputs=3, options={"hidden": [32, 8]}), (5,), groups=4
    )
    stacked = StackedTrainer(model, shards_for(model), jit_folder, WIDTH)
    for first in (0, 8):
        units = [f"hidden.1.weight[:,{first}:{first + 8}]"]
        plan = choose_plan(model.manifest, units=units)
        (result,) = trained_all(stacked, [(0, job_of(model, plan=plan))])
        expected = Trainer(model, *shards_for(model)[0], jit_folder).train(job_of(model, plan=plan))
        np.testing.assert_allclose(result.delta, expected.delta, rtol=1e-4, atol=1e-6)
    assert len(stacked._stacks) == 1


def test_steps_end_where_the_job_says(jit_folder: Path) -> None:
    model = mlp()
    chosen = choose_plan(model.manifest, preset="all")
    jobs = [
        (shard, job_of(model, job=n, plan=chosen, passes=3, seed=n, max_steps=limit))
        for n, (shard, limit) in enumerate([(0, 1), (0, 7), (4, 12), (4, 0), (1, 2), (2, 100)])
    ]
    assert_equals_single(model, shards_for(model), jobs, jit_folder)
    stacked = StackedTrainer(model, shards_for(model), jit_folder, WIDTH)
    steps = [result.steps for result in trained_all(stacked, jobs)]
    assert steps == [1, 7, 12, 30, 2, 6]


def test_the_head_of_a_mobilenet_equals_single_ones(jit_folder: Path) -> None:
    config = TaskConfig(
        name="mobilenet", outputs=3, options={"channels": [8, 8], "strides": [2, 1], "hidden": [6]}
    )
    model = load_model(config, (8, 8))
    jobs = varied_jobs(model, last_layers=2)[:3]
    assert_equals_single(model, shards_for(model), jobs, jit_folder)
    stacked = StackedTrainer(model, shards_for(model), jit_folder, WIDTH)
    assert not stacked.can_train(choose_plan(model.manifest, last_layers=3))


def test_two_trainings_of_one_stack_do_not_mix(jit_folder: Path) -> None:
    model = mlp()
    stacked = StackedTrainer(model, shards_for(model), jit_folder, WIDTH)
    jobs = varied_jobs(model, preset="all")
    first = trained_all(stacked, jobs)
    stacked.train(jobs[2:4])
    for one, two in zip(first, trained_all(stacked, jobs), strict=True):
        np.testing.assert_array_equal(one.delta, two.delta)
    assert stacked.train([]) == []


def test_a_lane_does_not_depend_on_its_neighbours(jit_folder: Path) -> None:
    model = mlp()
    stacked = StackedTrainer(model, shards_for(model), jit_folder, WIDTH)
    jobs = varied_jobs(model, preset="all")
    together = trained_all(stacked, jobs)
    for job, result in zip(jobs, together, strict=True):
        (alone,) = trained_all(stacked, [job])
        np.testing.assert_array_equal(alone.delta, result.delta)
        assert alone.step_square_sum == result.step_square_sum


def test_changed_frozen_layers_are_noticed(jit_folder: Path) -> None:
    """The outputs of frozen layers are remembered, and must not outlive a change of their values."""
    model = mlp()
    shards = shards_for(model)
    stacked = StackedTrainer(model, shards, jit_folder, WIDTH)
    plan = choose_plan(model.manifest, last_layers=1)
    for seed in (0, 1, 0):
        job = job_of(model, plan=plan, params=params_of(model, seed))
        (found,) = trained_all(stacked, [(0, job)])
        expected = Trainer(model, *shards[0], jit_folder).train(job)
        np.testing.assert_allclose(found.delta, expected.delta, rtol=1e-4, atol=1e-6)


def test_jobs_that_differ_in_plan_or_batch_are_refused(jit_folder: Path) -> None:
    model = mlp()
    stacked = StackedTrainer(model, shards_for(model), jit_folder, WIDTH)
    other = job_of(model, plan=choose_plan(model.manifest, last_layers=1))
    for wrong in (other, job_of(model, batch_size=5)):
        with pytest.raises(ValueError, match="share the plan and the batch size"):
            stacked.train([(0, job_of(model)), (1, wrong)])


def test_plans_with_convolutions_are_refused(jit_folder: Path) -> None:
    model = load_model(CNN1D, (10, 2))
    stacked = StackedTrainer(model, shards_for(model), jit_folder, WIDTH)
    with pytest.raises(ValueError, match="use Trainer"):
        stacked.train([(0, job_of(model))])


def test_the_width_does_not_change_a_bit(jit_folder: Path) -> None:
    model = mlp()
    jobs = varied_jobs(model, preset="all")
    narrow = trained_all(StackedTrainer(model, shards_for(model), jit_folder, WIDTH), jobs)
    for width in (11, None):
        wide = trained_all(StackedTrainer(model, shards_for(model), jit_folder, width), jobs)
        for one, two in zip(narrow, wide, strict=True):
            np.testing.assert_array_equal(one.delta, two.delta)
            assert one.step_square_sum == two.step_square_sum


def test_without_a_width_many_jobs_fill_wide_stacks_and_few_a_narrow_one(
    jit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stacked_module, "WIDEST", 64)
    model = mlp()
    stacked = StackedTrainer(model, shards_for(model), jit_folder)
    jobs = [(i % 5, job_of(model, job=i, seed=i, passes=1)) for i in range(70)]
    widths = []
    for count in (3, 70):
        trained_all(stacked, jobs[:count])
        widths.append(sorted(width for *_, width in stacked._stacks))
    assert widths == [[8], [8, 64]]


@pytest.mark.parametrize("hidden", [[7], [13, 10]])
def test_layers_of_any_size_equal_single_ones(hidden: list[int], jit_folder: Path) -> None:
    """In a stack hidden layers are widened to a multiple of 8 with zeros, which must not show."""
    model = load_model(TaskConfig(name="mlp", outputs=3, options={"hidden": hidden}), (5,))
    assert_equals_single(model, shards_for(model), varied_jobs(model, preset="all"), jit_folder)
    last = varied_jobs(model, last_layers=1)
    assert_equals_single(model, shards_for(model), last, jit_folder)


def test_a_stack_says_the_need_it_is_told(jit_folder: Path) -> None:
    model = mlp()
    stacked = StackedTrainer(model, shards_for(model), jit_folder, WIDTH)
    (result,) = stacked.train([(0, job_of(model))], Need(1234, 1300, Execution(4)))
    found = trained(result)
    assert (found.peak_bytes, found.planned_bytes, found.execution) == (1234, 1300, Execution(4))


def test_a_diverging_lane_fails_alone(jit_folder: Path) -> None:
    model = load_model(TaskConfig(name="mlp", outputs=3, options={"hidden": [7]}), (5,))
    stacked = StackedTrainer(model, shards_for(model), jit_folder, WIDTH)
    healthy = [(i, job_of(model, job=i)) for i in range(3)]
    expected = trained_all(stacked, healthy)
    for _ in range(2):  # Nothing of it stays in the memory that is used again.
        first, failed, *others = stacked.train(
            [healthy[0], (1, job_of(model, job=5, learning_rate=1e30)), *healthy[1:]]
        )
        assert isinstance(failed, ComputeError)
        assert re.search(r"job 5.*diverged.*now 1e\+30", str(failed))
        for one, two in zip(expected, [first, *others], strict=True):
            np.testing.assert_array_equal(one.delta, trained(two).delta)
    for one, two in zip(expected, trained_all(stacked, healthy), strict=True):
        np.testing.assert_array_equal(one.delta, two.delta)


def test_vectors_of_wrong_length_fail_alone(jit_folder: Path) -> None:
    model = mlp()
    stacked = StackedTrainer(model, shards_for(model), jit_folder, WIDTH)
    short = np.zeros(3, np.float32)
    wrong = [job_of(model, params=short), job_of(model, offset=short)]
    params, offset, fine = stacked.train([(0, wrong[0]), (0, wrong[1]), (0, job_of(model))])
    assert isinstance(params, ComputeError)
    assert isinstance(offset, ComputeError)
    assert "params have shape (3,)" in str(params)
    assert "offset has shape (3,)" in str(offset)
    assert np.abs(trained(fine).delta).max() > 0


def test_frozen_features_are_computed_once_and_bounded_in_bytes(jit_folder: Path) -> None:
    model = mlp()
    shards = shards_for(model)
    pool_bytes = sum(SIZES) * 6 * 4
    stacked = StackedTrainer(model, shards, jit_folder, WIDTH, feature_bytes=2 * pool_bytes)
    plan = choose_plan(model.manifest, last_layers=1)

    def computed(seed: int, *numbers: int) -> int:
        before = stacked.pools.computed
        # The head changes from version to version, the frozen layers stay.
        params = params_of(model, seed)
        params[model.manifest.slices["output.bias"]] += before
        stacked.train([(n, job_of(model, plan=plan, params=params)) for n in numbers])
        assert stacked.pools.kept_bytes <= 2 * pool_bytes
        return stacked.pools.computed - before

    assert computed(0, 0, 1, 1) == 2
    assert computed(0, 1, 0) == 0
    assert computed(0, 1, 3) == 1
    assert computed(1, 0) == 1
    assert computed(0, 0) == 0
    assert computed(2, 0) == 1  # Makes room by what was used longest ago: seed 1.
    assert computed(0, 0) == 0
    assert computed(1, 0) == 1


OWN_TASK = """
import numpy as np
from tinygrad import nn

class Task:
    target_dtype = np.dtype(np.int32)
    def __init__(self, input_shape, kind, outputs):
        self.input_shape = input_shape
    def build(self):
        return nn.Linear(5, 3)
    def loss(self, output, targets):
        return output.sparse_categorical_crossentropy(targets)
    def metrics(self, outputs, targets):
        return {}
"""


def test_a_users_task_is_trained_singly_not_stacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stacked_own.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = load_model(TaskConfig(name="stacked_own:Task", outputs=3), (5,))
    found = Trainer(model, *examples(9), tmp_path / "jit").train(job_of(model))
    assert np.abs(found.delta).max() > 0
    with pytest.raises(TypeError, match="use Trainer"):
        StackedTrainer(model, [examples(9)], tmp_path / "jit")
