import sys
from pathlib import Path

import numpy as np
import pytest

from edge_node.trainer import Trainer
from hedgerow.core.config import TaskConfig
from hedgerow.core.effects import Probe, Probed, Train, Trained
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.runtime.model import Model, load_model
from hedgerow.runtime.ports import ComputeError
from sims.training import FleetTrainer
from tests.contract.tiny_models import Array, examples, job_of, mlp, params_of

SIZES = (22, 3, 9)
CNN1D = TaskConfig(name="cnn1d", outputs=3, options={"channels": [3], "kernel": 3, "hidden": [6]})


def shards_for(model: Model) -> list[tuple[Array, Array]]:
    return [examples(rows, model.task.input_shape) for rows in SIZES]


def mixed_jobs(model: Model) -> list[tuple[int, Train]]:
    """Three plans, two batch sizes and two strengths of the proximal pull, all in disorder."""
    plans = [
        choose_plan(model.manifest, preset="all"),
        choose_plan(model.manifest, last_layers=1),
        choose_plan(model.manifest, preset="biases+last"),
    ]
    return [
        (
            number % 3,
            job_of(
                model,
                job=number,
                plan=plans[number % len(plans)],
                batch_size=4 if number % 2 else 9,
                seed=number,
                proximal=0.5 if number == 6 else 0.0,
            ),
        )
        for number in range(8)
    ]


@pytest.mark.parametrize("model", [mlp(), load_model(CNN1D, (10, 2))], ids=["mlp", "cnn1d"])
def test_any_mix_of_jobs_equals_single_trainings(model: Model, jit_folder: Path) -> None:
    shards, jobs = shards_for(model), mixed_jobs(model)
    found = FleetTrainer(model, shards, jit_folder).train(jobs)
    for (shard, job), result in zip(jobs, found, strict=True):
        expected = Trainer(model, *shards[shard], jit_folder).train(job)
        assert isinstance(result, Trained)
        np.testing.assert_allclose(result.delta, expected.delta, rtol=1e-4, atol=1e-6)
        assert (result.job, result.examples, result.steps) == (
            job.job,
            expected.examples,
            expected.steps,
        )


def test_groups_of_convolutions_and_of_heads_are_trained_in_one_go(jit_folder: Path) -> None:
    config = TaskConfig(
        name="cnn1d", outputs=3, options={"channels": [16], "kernel": 3, "hidden": [32]}
    )
    model = load_model(config, (10, 4), groups=2)
    shards = shards_for(model)
    plans = [
        Plan.of(model.manifest, ["hidden.0.weight[:,0:32]", "output.bias"]),
        Plan.of(model.manifest, [*model.manifest.by_name][:1]),
    ]
    assert plans[1].manifest.by_name[plans[1].names[0]].part is not None
    jobs = [
        (n % 3, job_of(model, job=n, plan=plans[n % 2], seed=n, max_steps=3 * (n % 3)))
        for n in range(5)
    ]
    found = FleetTrainer(model, shards, jit_folder).train(jobs)
    for (shard, job), result in zip(jobs, found, strict=True):
        expected = Trainer(model, *shards[shard], jit_folder).train(job)
        assert isinstance(result, Trained)
        np.testing.assert_allclose(result.delta, expected.delta, rtol=1e-4, atol=1e-6)
        assert (result.steps, result.delta.shape) == (expected.steps, (job.plan.size,))
        assert result.loss_last == pytest.approx(expected.loss_last, rel=1e-4)


@pytest.mark.parametrize("last_layers", [1, 3])
def test_a_bound_is_kept_or_the_training_refused(last_layers: int, jit_folder: Path) -> None:
    """Of a head, which is stacked, and of a convolution, which is not."""
    model = load_model(CNN1D, (10, 2))
    trainer = FleetTrainer(model, shards_for(model), jit_folder)
    plan = choose_plan(model.manifest, last_layers=last_layers)

    def job(memory_bytes: int) -> Train:
        return job_of(model, plan=plan, batch_size=8, memory_bytes=memory_bytes)

    (free,) = trainer.train([(0, job(0))])
    assert isinstance(free, Trained)
    tight = job(free.peak_bytes - 1)
    assert trainer.too_large(tight) is None
    (held,) = trainer.train([(0, tight)])
    assert isinstance(held, Trained)
    assert 0 < held.peak_bytes < free.peak_bytes
    assert held.execution != free.execution
    np.testing.assert_allclose(held.delta, free.delta, rtol=1e-3, atol=1e-5)
    hopeless = job(100)
    assert "of 100 allowed" in str(trainer.too_large(hopeless))
    (refused,) = trainer.train([(0, hopeless)])
    assert isinstance(refused, ComputeError)
    assert "of 100 allowed" in str(refused)


def test_a_probe_is_what_the_node_alone_would_say(jit_folder: Path) -> None:
    model = mlp()
    shards = shards_for(model)
    plan = choose_plan(model.manifest, preset="all")
    probe = Probe(5, plan, params_of(model), batch_size=4, batches=3, seed=2)
    found = FleetTrainer(model, shards, jit_folder).probe(2, probe)
    assert isinstance(found, Probed)
    assert found == Trainer(model, *shards[2], jit_folder).probe(probe)
    assert list(found.squares) == list(plan.names)
    short = Probe(5, plan, np.zeros(3, np.float32), batch_size=4, batches=3, seed=2)
    failed = FleetTrainer(model, shards, jit_folder).probe(2, short)
    assert isinstance(failed, ComputeError)


def test_features_of_single_nodes_are_bounded(jit_folder: Path) -> None:
    config = TaskConfig(
        name="cnn1d", outputs=3, options={"channels": [3, 4], "kernel": 3, "hidden": [6]}
    )
    model = load_model(config, (12, 2))
    shards = shards_for(model)
    plan = Plan.of(model.manifest, ["convs.1"])
    one_bytes = 4 * SIZES[0] * 3 * 5
    trainer = FleetTrainer(model, shards, jit_folder, feature_bytes=one_bytes)
    jobs = [(shard, job_of(model, job=shard, plan=plan)) for shard in (0, 1, 2, 0)]
    kept = []
    for job in jobs:
        (result,) = trainer.train([job])
        assert isinstance(result, Trained)
        kept.append(len(trainer.singles))
    assert kept == [1, 1, 2, 1]


def test_the_peak_is_what_one_node_needs_alone(jit_folder: Path) -> None:
    model = mlp()
    shards = shards_for(model)
    trainer = FleetTrainer(model, shards, jit_folder)
    peaks = []
    for batch_size in (4, 9):
        jobs = [(i % 2, job_of(model, job=i, batch_size=batch_size)) for i in range(6)]
        expected = Trainer(model, *shards[0], jit_folder).train(jobs[0][1]).peak_bytes
        found = {r.peak_bytes for r in trainer.train(jobs) if isinstance(r, Trained)}
        assert found == {expected}
        peaks.append(expected)
    assert peaks[0] < peaks[1]


def test_a_failing_job_fails_alone(jit_folder: Path) -> None:
    for model in (mlp(), load_model(CNN1D, (10, 2))):
        trainer = FleetTrainer(model, shards_for(model), jit_folder)
        jobs = [(0, job_of(model)), (1, job_of(model, job=7, learning_rate=1e30))]
        fine, failed = trainer.train(jobs)
        assert isinstance(fine, Trained)
        assert isinstance(failed, ComputeError)
        assert "job 7" in str(failed)
    assert trainer.train([]) == []


def test_nodes_are_evaluated_on_their_own_examples(jit_folder: Path) -> None:
    model = mlp()
    shards, params = shards_for(model), params_of(model)
    found = FleetTrainer(model, shards, jit_folder).evaluate_nodes(params)
    for metrics, shard in zip(found, shards, strict=True):
        assert metrics == pytest.approx(model.evaluate(params, *shard))


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
        return {"accuracy": float((outputs.argmax(1) == targets).mean())}
"""


def test_a_users_task_is_trained_node_by_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fleet_own.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = load_model(TaskConfig(name="fleet_own:Task", outputs=3), (5,))
    shards = shards_for(model)
    trainer = FleetTrainer(model, shards, tmp_path / "jit")
    job = job_of(model)
    (found,) = trainer.train([(2, job)])
    expected = Trainer(model, *shards[2], tmp_path / "jit").train(job)
    assert isinstance(found, Trained)
    np.testing.assert_array_equal(found.delta, expected.delta)
    assert found.peak_bytes == expected.peak_bytes
    assert [set(metrics) for metrics in trainer.evaluate_nodes(job.params)] == [{"accuracy"}] * 3
