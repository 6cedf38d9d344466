"""What a step is planned to need is what it needs."""

from pathlib import Path

import numpy as np
import pytest
from tinygrad.device import Buffer
from tinygrad.helpers import GlobalCounters

from edge_node.oracle import planned_bytes
from edge_node.trainer import Trainer
from hedgerow.core.config import TaskConfig
from hedgerow.core.execution import Execution
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.runtime.memory import PeakMeter
from hedgerow.runtime.model import load_model
from tests.contract.test_lean import ZOO, inputs_of
from tests.contract.tiny_models import job_of

TOLERANCE = 0.15
CASES = [
    ("mlp", 1, [], Execution(8)),
    ("mlp", 4, ["hidden.1.weight[:,6:12]", "output"], Execution(4, 1)),
    ("cnn", 1, ["convs.1.bias", "hidden.0", "output"], Execution(4)),
    ("cnn", 4, ["convs.1", "output.bias"], Execution(1, 1)),
    ("cnn1d", 4, ["convs.1", "hidden.0"], Execution(8, 2)),
    ("depthwise", 1, ["pointwise", "norms.1", "dilated"], Execution(4, 1)),
    ("sequence", 1, ["output"], Execution(4)),
]


@pytest.mark.parametrize(("name", "groups", "names", "way"), CASES, ids=str)
@pytest.mark.parametrize("prefix", ["cached", "computed in every step"])
def test_planned_and_measured_peaks_agree(
    name: str, groups: int, names: list[str], way: Execution, prefix: str, jit_folder: Path
) -> None:
    model = ZOO[name](groups)
    plan = Plan.of(model.manifest, names or model.manifest.by_name)
    cached = prefix == "cached"
    planned = planned_bytes(model, plan, 8, way, cached=cached)
    trainer = Trainer(
        model, *inputs_of(model, 16), jit_folder, feature_bytes=1 << 20 if cached else 1
    )
    found = trainer.train(job_of(model, plan=plan, batch_size=8), way)
    assert abs(planned - found.peak_bytes) <= TOLERANCE * min(planned, found.peak_bytes)
    assert found.planned_bytes == planned


def test_planning_runs_and_allocates_nothing() -> None:
    model = ZOO["cnn"](1)
    plan = choose_plan(model.manifest, preset="all")
    kernels, allocated = GlobalCounters.kernel_count, Buffer.allocate
    with PeakMeter() as meter:
        assert planned_bytes(model, plan, 8, Execution(8)) > 4 * model.manifest.size
    assert meter.peak_bytes == 0
    assert GlobalCounters.kernel_count == kernels
    assert Buffer.allocate is allocated


def test_smaller_micro_batches_and_segments_need_less() -> None:
    options = {"channels": [16, 32], "kernel": 3, "hidden": [64]}
    model = load_model(TaskConfig(name="cnn", outputs=10, options=options), (28, 28))
    plan = choose_plan(model.manifest, preset="all")
    held = 2 * 4 * model.manifest.size

    def beyond(micro_batch: int, segment: int = 0, *, usual: bool = False) -> int:
        return planned_bytes(model, plan, 16, Execution(micro_batch, segment, usual)) - held

    usual, whole = beyond(16, usual=True), beyond(16)
    assert whole < 0.75 * usual
    assert beyond(16, 1) < whole
    assert beyond(4, 1) < beyond(4) < 0.4 * whole
    assert beyond(1, 1) < 0.1 * usual


def test_a_regression_of_several_values_is_planned_right(jit_folder: Path) -> None:
    model = load_model(TaskConfig(kind="regression", outputs=6, options={"hidden": [4]}), (3,))
    rng = np.random.default_rng(0)
    inputs, targets = rng.standard_normal((8, 3)), rng.standard_normal((8, 6))
    job = job_of(model, batch_size=8)
    found = Trainer(model, inputs, targets, jit_folder).train(job)
    assert planned_bytes(model, job.plan, 8, Execution(8), target=(6,)) == found.planned_bytes
    assert found.planned_bytes == pytest.approx(found.peak_bytes, rel=0.01)
