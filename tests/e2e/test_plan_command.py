"""`hedgerow plan` as a person or a script uses it: tables, JSON, files, exit codes."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from hedgerow.core.search import first_plan
from hedgerow.runtime.configfile import load_config
from hedgerow.runtime.model import load_model

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

REPOSITORY = Path(__file__).resolve().parents[2]
HEDGEROW = [sys.executable, "-m", "hedgerow.cli"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "160"}
FLEET = """
[fleet]
site = "lab"
model = "digits"
nodes = 4

[data]
source = "digits"

[task]
name = "mlp"
outputs = 10
options = { hidden = [48, 32] }

[plan]
budget_bytes = 30000
enough_value = 1.0

[training]
batch_size = 16
learning_rate = 0.2
"""


@pytest.fixture
def fleet(tmp_path: Path) -> Path:
    path = tmp_path / "fleet.toml"
    path.write_text(FLEET)
    return path


def plan(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*HEDGEROW, "plan", *map(str, words)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


def found(*words: object) -> dict[str, Any]:
    done = plan(*words, "--json")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def test_plans_are_measured_and_written(fleet: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    report = found(
        fleet, "--class", "sensor=24KiB", "--verify", "--out", folder, "--examples", "512"
    )
    assert json.loads((folder / "plan.json").read_text()) == report
    assert (folder / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert report["budget_bytes"] == 30000
    assert report["plans"][0]["value"] == max(row["value"] for row in report["plans"])
    for row in report["plans"]:
        assert row["oracle_bytes"] <= 30000
        run = row["verified"]
        assert run["failed"] == ""
        assert run["metrics"].keys() == {"accuracy", "loss"}
        # The promise of issue 4: what was planned is what is measured, within 15%.
        assert run["peak_bytes"] == pytest.approx(row["oracle_bytes"], rel=0.15)
    # A tenth would be chance: 160 steps teach the best plan something.
    assert report["plans"][0]["verified"]["metrics"]["accuracy"] > 0.3
    sensor = report["classes"]["sensor"]
    assert sensor["oracle_bytes"] <= 24 * 1024
    assert set(sensor["units"]) < set(report["classes"]["default"]["units"])
    assert report["toml"][1:] == ["budget_bytes = 30000", "class_budgets = { sensor = 24576 }"]


def test_the_toml_lines_train_the_units_found(fleet: Path, tmp_path: Path) -> None:
    report = found(fleet, "--budget", "14KiB", "--values", "prior")
    pasted = tmp_path / "pasted.toml"
    lines = "\n".join(report["toml"])
    pasted.write_text(re.sub(r"\[plan\]\nbudget_bytes = \d+", lines, FLEET))
    assert any("[" in name for name in tomllib.loads(pasted.read_text())["plan"]["units"])
    check = subprocess.run(
        [*HEDGEROW, "config", "check", str(pasted)],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr
    config = load_config(pasted)
    manifest = load_model(config.task, (64,), config.plan.unit_groups).manifest
    assert list(first_plan(manifest, config.plan).names) == report["plans"][0]["units"]


def test_one_seed_gives_one_result(fleet: Path) -> None:
    again = [found(fleet, "--seed", seed, "--examples", "64") for seed in (3, 3, 4)]
    assert again[0]["values"] == again[1]["values"]
    assert again[0]["plans"] == again[1]["plans"]
    assert again[0]["values"] != again[2]["values"]


def test_the_table_shows_the_network(fleet: Path) -> None:
    done = plan(fleet, "--values", "prior")
    assert done.returncode == 0, done.stderr
    for words in ("hidden.0", "hidden.1", "output", "weight ■", "planner", "[plan]"):
        assert words in done.stdout
    assert done.stdout.rstrip().splitlines()[-1].startswith(("units = [", "groups = "))


def test_given_parameters_are_used(fleet: Path, tmp_path: Path) -> None:
    zeros = {
        "hidden.0.weight": (48, 64),
        "hidden.0.bias": (48,),
        "hidden.1.weight": (32, 48),
        "hidden.1.bias": (32,),
        "output.weight": (10, 32),
        "output.bias": (10,),
    }
    file = tmp_path / "zeros.safetensors"
    save_file({name: np.zeros(shape, np.float32) for name, shape in zeros.items()}, file)
    values = found(fleet, "--model", file, "--budget", "64KiB", "--examples", "64")["values"]
    # With all parameters 0 nothing but the last bias has a gradient.
    assert [name for name, value in values.items() if value > 0] == ["output.bias"]
    short = tmp_path / "short.safetensors"
    save_file({"output.bias": np.zeros(10, np.float32)}, short)
    done = plan(fleet, "--model", short)
    assert done.returncode == 2
    assert "--model: " in done.stderr
    assert "hidden.0.weight" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--budget", "1KiB"], 1, "the smallest budget that would do is"),
        (["--class", "sensor=1KiB", "--values", "prior"], 1, "memory class 'sensor'"),
        (["--budget", "many"], 2, "--budget: 'many' is no amount of memory; write it like 256KiB"),
        (["--budget", "0"], 2, "--budget: '0' is no amount of memory"),
        (["--class", "sensor"], 2, "--class: 'sensor' is not like sensor=256KiB"),
        (["--class", "Big One=1MiB"], 2, "is not like sensor=256KiB"),
        (["--class", "sensor=big"], 2, "--class sensor: 'big'"),
        (["--examples", "0"], 2, "--examples: 0 must be 1 or more"),
        (["--model", "no-such-file"], 2, "--model: no-such-file cannot be read"),
    ],
)
def test_bad_input_is_named(fleet: Path, words: list[str], code: int, says: str) -> None:
    done = plan(fleet, *words)
    assert done.returncode == code, done.stdout + done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_help_has_an_example() -> None:
    done = plan("--help")
    assert done.returncode == 0
    assert "hedgerow plan configs/demo.toml --budget" in done.stdout
