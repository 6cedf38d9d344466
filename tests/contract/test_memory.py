import json
import mmap
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
from tinygrad.device import Buffer
from tinygrad.helpers import Context

from hedgerow.core.config import Config, DataConfig, FleetConfig, PlanConfig, TaskConfig
from hedgerow.core.plan import choose_plan
from hedgerow.runtime.buffers import SharedArray
from hedgerow.runtime.memory import PeakMeter
from hedgerow.runtime.model import load_model
from tests.contract.tiny_models import examples, job_of, mlp, trainer_of

REPOSITORY = Path(__file__).resolve().parents[2]


def test_the_peak_is_the_largest_sum_of_live_memory() -> None:
    before = SharedArray.of((1000,))
    with PeakMeter() as meter:
        first = SharedArray.of((100,))
        assert meter.peak_bytes == 400
        del first
        second = SharedArray.of((50,))
        assert meter.peak_bytes == 400
        third = SharedArray.of((70,), np.int32)
        assert meter.peak_bytes == 480
        del before
        fourth = SharedArray.of((10,))
        assert meter.peak_bytes == 520
    fifth = SharedArray.of((1000,))
    assert meter.peak_bytes == 520
    del second, third, fourth, fifth


def test_the_meter_leaves_the_allocator_as_it_was_even_after_an_error() -> None:
    found = Buffer.allocate, Buffer.deallocate
    with PeakMeter():
        assert Buffer.allocate is not found[0]
    assert (Buffer.allocate, Buffer.deallocate) == found
    with pytest.raises(ZeroDivisionError), PeakMeter():
        raise ZeroDivisionError
    assert (Buffer.allocate, Buffer.deallocate) == found


def test_a_trainings_peak_covers_what_it_must_hold(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 12, jit_folder)
    job = job_of(model)
    batch_bytes = 4 * (5 + 1) * 4
    peak = trainer.train(job).peak_bytes
    assert peak > model.manifest.size * 4 + batch_bytes
    assert trainer.train(job_of(model, passes=5, seed=2)).peak_bytes == peak
    assert trainer.train(job_of(model, batch_size=8)).peak_bytes > peak


def test_the_order_of_trainings_does_not_change_their_peaks(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 12, jit_folder)
    jobs = [job_of(model), job_of(model, plan=choose_plan(model.manifest, last_layers=1))]
    forward = [trainer.train(job).peak_bytes for job in jobs]
    model.predict(jobs[0].params, examples(9)[0])
    backward = [trainer.train(job).peak_bytes for job in reversed(jobs)]
    assert forward == backward[::-1]
    assert forward[1] < forward[0]


def config_of(folder: Path) -> Config:
    inputs, targets = examples(60, (40,))
    path = folder / "data.npz"
    np.savez(path, x=inputs, y=targets)
    return Config(
        fleet=FleetConfig(nodes=2),
        data=DataConfig(source=str(path)),
        task=TaskConfig(outputs=3, options={"hidden": [32]}),
        plan=PlanConfig(preset="biases+last"),
    )


def test_the_allocator_is_measured_in_whole_pages() -> None:
    with Context(LRU=0), PeakMeter() as meter:  # type: ignore[no-untyped-call]
        first = SharedArray.of((100,))
        assert meter.mapped_bytes == mmap.PAGESIZE
        del first
        second = SharedArray.of((mmap.PAGESIZE,))
        assert meter.mapped_bytes == 4 * mmap.PAGESIZE
    third = SharedArray.of((8 * mmap.PAGESIZE,))
    assert meter.mapped_bytes == 4 * mmap.PAGESIZE
    del second, third


def test_a_trainings_mapped_memory_is_its_buffers_in_pages(jit_folder: Path) -> None:
    model = mlp()
    trainer = trainer_of(model, 12, jit_folder)
    found = trainer.train(job_of(model))
    buffers = len(model.manifest.units) * 2 + 4
    assert found.peak_bytes < trainer.mapped_bytes
    assert trainer.mapped_bytes <= found.peak_bytes + (buffers + 1) * mmap.PAGESIZE


def run_report(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_node.memory_report", str(path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_command_measures_the_plan_against_training_everything(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(msgspec.json.encode(config_of(tmp_path)))
    done = run_report(path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    steps = {step["name"]: step for step in found["steps"]}
    params = 4 * (40 * 32 + 32 + 32 * 3 + 3)
    assert params < found["plan"] < found["full"] == steps["full"]["held_bytes"]
    assert steps["full"]["execution"] == "16 at a time, one gradient"
    assert steps["full, least memory"]["held_bytes"] <= found["full"]
    for step in steps.values():
        assert step["planned_bytes"] == pytest.approx(step["held_bytes"], rel=0.15)
        assert step["held_bytes"] <= step["mapped_bytes"]
        assert step["step_cpu_ms"] > 0


@pytest.mark.parametrize("text", ["{", '{"data": {"source": "/nowhere.npz"}}'])
def test_the_command_explains_a_wrong_configuration(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    done = run_report(path)
    assert done.returncode == 2
    assert str(path) in done.stderr
    assert "Traceback" not in done.stderr


def test_evaluating_often_holds_no_more_memory_than_evaluating_once() -> None:
    model = load_model(TaskConfig(outputs=10, options={"hidden": [64]}), (64,))
    params, process = model.initial_params(1), psutil.Process()
    inputs = np.ones((8, 64), np.float32)
    for _ in range(50):
        model.predict(params, inputs)
    before = process.memory_info().rss
    for _ in range(300):
        model.predict(params, inputs)
    # A new network's graph of random numbers was once kept at each call: 38 KB, 11 MB here.
    assert process.memory_info().rss - before < 4 << 20
