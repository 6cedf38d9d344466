"""`make bench` as a smoke test: the figures that need no other process."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
MACHINE_KEYS = {"processor", "cores", "load_1_min", "load_1_min_after", "memory_gb", "python"}


def run_bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def check_row(row: dict[str, Any]) -> None:
    assert set(row) == {"figure", "what", "unit", "median", "min", "max", "values", "note"}
    assert row["what"]
    assert row["unit"]
    assert row["min"] == min(row["values"])
    assert row["max"] == max(row["values"])
    assert 0 < row["min"] <= row["median"] <= row["max"]


@pytest.mark.e2e
def test_a_quick_run_writes_figures_that_a_machine_can_read(tmp_path: Path) -> None:
    file = tmp_path / "new-folder" / "bench.json"
    done = run_bench("--quick", "--json", str(file))
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text())
    assert document["schema"] == 1
    assert document["quick"] is True
    assert set(document["machine"]) >= MACHINE_KEYS
    assert document["reference"]["value"] == 520
    for row in document["rows"]:
        check_row(row)
    named = {(row["figure"], row["what"]) for row in document["rows"]}
    sizes = {"10 KB int8", "400 KB int8", "400 KB fp32"}
    assert {("gateway-core", size) for size in sizes} <= named
    assert {("merge", f"{size}: all three") for size in ("400 KB", "4 MB")} <= named
    assert all(row["figure"] in {"gateway-core", "merge"} for row in document["rows"])
    assert "400 KB int8" in done.stdout
    assert "520" in done.stdout


def test_an_unknown_figure_is_refused_by_naming_the_known_ones(tmp_path: Path) -> None:
    done = run_bench("--only", "speed", "--json", str(tmp_path / "bench.json"))
    assert done.returncode == 2
    for name in ("gateway", "gateway-core", "merge", "node", "start-up", "memory"):
        assert name in done.stderr
    assert not (tmp_path / "bench.json").exists()
