"""The main job on real processes, as the README promises it."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.fleet_process import UpRun

pytestmark = pytest.mark.e2e

SMALL = """
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
options = { hidden = [64] }

[plan]
preset = "biases+last"

[training]
learning_rate = 0.3

[aggregation]
deadline_s = 5.0

[node]
sleep_s = 0.1
resend_s = 2.0

[stop]
target = 0.85
max_versions = 200
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


def _need(broker: str) -> None:
    if (
        broker == "mosquitto"
        and shutil.which("mosquitto", path=os.environ["PATH"] + ":/usr/sbin") is None
    ):
        pytest.skip("mosquitto is not installed")


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    ("broker", "law", "encoding"),
    [("mosquitto", "exponential", "int8"), ("embedded", "polynomial", "fp32")],
)
def test_a_fleet_reaches_its_target_and_accounts_for_every_update(
    small: Path, tmp_path: Path, broker: str, law: str, encoding: str
) -> None:
    _need(broker)
    options = ["--broker", broker, "--staleness", law, "--encoding", encoding]
    with UpRun(small, tmp_path / "run", *options) as run:
        assert run.wait(200) == 0, run.output[-3000:]
        report = run.report
    assert broker in run.output
    assert report["before"] < 0.3
    assert report["after"] >= 0.85
    assert report["law_holds"]
    assert all(node["applied"] > 0 for node in report["account"]["nodes"])
    assert (tmp_path / "run" / "report.png").stat().st_size > 10_000


@pytest.mark.timeout(240)
def test_kill_9_of_every_tier_loses_nothing(small: Path, tmp_path: Path) -> None:
    _need("mosquitto")
    with UpRun(small, tmp_path / "run", "--target", "0.999", "--max-versions", "30") as run:
        for version, role, identity in [
            (3, "node", "node-01"),
            (6, "gateway", "gw-1"),
            (9, "aggregator", ""),
            (12, "broker", ""),
        ]:
            run.wait_for_version(version, 120)
            os.kill(run.pid_of(role, identity), signal.SIGKILL)
        run.wait(150)
        report = run.report
    assert report["law_holds"], report["account"]["problems"]
    assert report["version"] >= 30, run.output[-3000:]
    assert set(report["restarts"]) == {"node-01", "gw-1", "aggregator", "broker"}
    assert all(node["applied"] > 0 for node in report["account"]["nodes"])


@pytest.mark.timeout(240)
def test_interrupted_and_resumed(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with UpRun(small, folder, "--target", "0.999", "--max-versions", "1000") as run:
        run.wait_for_version(3, 120)
        run.process.send_signal(signal.SIGINT)
        assert run.wait(60) == 130
        assert "--resume" in run.output
        before = run.report["version"]
        assert run.report["law_holds"]
    assert before >= 3
    with UpRun(small, folder, "--resume", "--max-versions", str(before + 5)) as run:
        assert run.wait(150) == 1, "the target is out of reach, and that must be said"
        assert run.report["version"] >= before + 5
        assert run.report["law_holds"]


@pytest.mark.timeout(120)
def test_no_process_outlives_a_killed_up(small: Path, tmp_path: Path) -> None:
    with UpRun(small, tmp_path / "run") as run:
        run.wait_for_version(1, 90)
        pids = [run.pid_of("aggregator"), run.pid_of("gateway", "gw-1"), run.pid_of("broker")]
        os.kill(run.process.pid, signal.SIGKILL)
        run.wait(10)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in pids):
        time.sleep(0.1)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
