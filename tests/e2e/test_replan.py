"""A plan that changes in a running fleet of real processes with Mosquitto: no update lost or misapplied."""

import asyncio
import os
import shutil
import signal
import time
from dataclasses import dataclass

import pytest

from hedgerow.core.config import Config
from hedgerow.core.units import Manifest, Vector
from hedgerow.runtime.cache import cache_folder
from hedgerow.runtime.compiler import prepare_tinygrad
from hedgerow.runtime.configfile import load_config
from hedgerow.runtime.data import load_dataset
from tests.e2e.arm_runs import History, read_history
from tests.e2e.fleet_process import UpRun

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

# Below 50, the first checkpoint, so that every version can be replayed from the ledger.
VERSIONS = 40

LIVING = f"""
[fleet]
site = "test"
model = "digits"
nodes = 4
gateways = 2

[data]
source = "digits"
split = "dirichlet"
alpha = 1.0

[task]
outputs = 10
options = {{ hidden = [64] }}

[plan]
budget_bytes = 30000
groups = 8
replan_versions = 4
warmup_versions = 0
stall_versions = 0
hysteresis = 0.0
probe_batches = 1

[training]
learning_rate = 0.3

[aggregation]
buffer_size = 2
deadline_s = 5.0

[gateway]
report_s = 0.5

[node]
sleep_s = 0.3
resend_s = 2.0

[stop]
target = 1.0
max_versions = {VERSIONS}
"""


@dataclass(frozen=True)
class Living:
    """A finished run: its configuration, report, ledger, and what was printed and logged."""

    config: Config
    report: dict[str, object]
    history: History
    log: str


def first_version(config: Config) -> tuple[Manifest, Vector]:
    """Return the model's units, and what version 0's parameters must be, shape (P,)."""
    prepare_tinygrad(cache_folder())
    from hedgerow.runtime.model import load_model  # noqa: PLC0415 - reads what was just prepared

    dataset = load_dataset(config.data, config.fleet.seed)
    model = load_model(config.task, dataset.input_shape, config.plan.unit_groups)
    return model.manifest, model.initial_params(config.fleet.seed)


@pytest.fixture(scope="module")
def living(tmp_path_factory: pytest.TempPathFactory) -> Living:
    if shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin") is None:
        pytest.skip("mosquitto is not installed")
    folder = tmp_path_factory.mktemp("living")
    file, run_folder = folder / "living.toml", folder / "run"
    file.write_text(LIVING)
    with UpRun(file, run_folder, "--broker", "mosquitto") as run:
        hold_up(run, "node-01", 6)
        hold_up(run, "node-02", 16)
        run.wait_for_version(26, 120)
        os.kill(run.pid_of("gateway", "gw-1"), signal.SIGKILL)
        run.wait(200)
        report, output = run.report, run.output
    assert report["done"] == "max-versions", output[-3000:]
    config = load_config(run_folder / "config.json")
    history = asyncio.run(read_history(run_folder / "aggregator", config, *first_version(config)))
    log = (run_folder / "aggregator" / "log.txt").read_text()
    return Living(config, report, history, log)


def hold_up(run: UpRun, node: str, version: int) -> None:
    """Stop a node at a version for as long as the fleet makes six more, and let it go on then."""
    run.wait_for_version(version, 120)
    pid = run.pid_of("node", node)
    os.kill(pid, signal.SIGSTOP)
    try:
        run.wait_for_version(version + 6, 120)
        time.sleep(0.2)
    finally:
        os.kill(pid, signal.SIGCONT)


def test_the_plan_changed_while_the_fleet_ran(living: Living) -> None:
    plans = [descriptor.plan_id for descriptor in living.history.descriptors]
    assert len(set(plans)) >= 2
    assert '"event": "replanned"' in living.log


def test_every_update_is_accounted_for(living: Living) -> None:
    assert living.report["law_holds"], living.report["account"]
    account = living.report["account"]
    assert isinstance(account, dict)
    assert account["problems"] == []
    assert all(node["applied"] > 0 for node in account["nodes"])
    assert [node["rejected"] for node in account["nodes"]] == [0, 0, 0, 0]


def test_every_version_is_the_bit_exact_merge_of_its_inputs(living: Living) -> None:
    assert len(living.history.descriptors) == VERSIONS + 1
    assert living.history.problems == []


def test_updates_of_the_former_plan_are_applied_after_the_change(living: Living) -> None:
    plans = [descriptor.plan_id for descriptor in living.history.descriptors]
    late = [
        row for row in living.history.rows if plans[row.header.base_version] != plans[row.version]
    ]
    assert late


def test_the_plan_fits_its_budget(living: Living) -> None:
    manifest, _ = first_version(living.config)
    for descriptor in living.history.descriptors:
        trained = sum(manifest.by_name[name].size for name in descriptor.plan)
        assert 0 < 4 * trained < living.config.plan.budget_bytes
