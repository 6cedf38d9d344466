"""`make bench` as a smoke test: the figures without servers, and the simulator beside peers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench import peers
from bench.measure import BenchError

REPOSITORY = Path(__file__).resolve().parents[2]
MACHINE_KEYS = {"processor", "cores", "load_1_min", "load_1_min_after", "memory_gb", "python"}


PEER = """
import argparse, json
parser = argparse.ArgumentParser()
for name in ("hidden", "clients", "per-round", "rounds"):
    parser.add_argument("--" + name, type=int)
options = parser.parse_args()
assert (options.clients, options.per_round) == (100, 10)
print("some words before")
print("RESULT " + json.dumps({"updates_per_cpu_s": 32 / options.hidden * RATE}))
"""


def run_bench(
    *arguments: str, module: str = "bench", bound_s: float = 100
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=bound_s,
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
    for name in ("gateway", "gateway-core", "merge", "node", "start-up", "memory", "simulator"):
        assert name in done.stderr
    assert not (tmp_path / "bench.json").exists()


@pytest.mark.e2e
def test_what_an_encoding_costs_is_measured(tmp_path: Path) -> None:
    file = tmp_path / "payload.json"
    words = ["--quick", "--seed", "1", "--only", "sign", "--only", "sign + feedback"]
    done = run_bench(*words, "--json", str(file), module="bench.payload")
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads(file.read_text())["rows"]}
    for row in rows.values():
        check_row(row)
    for case in ("sign", "sign + feedback"):
        payload = rows[f"{case}: payload and scales"]["median"]
        assert payload == 4810 // 8 + 1 + 4 * 4
        assert rows[f"{case}: uplink per update"]["median"] > payload


@pytest.mark.e2e
@pytest.mark.timeout(240)
def test_the_simulator_is_measured_beside_peers_on_both_sizes(tmp_path: Path) -> None:
    for script, text in (("bare_loop.py", "10.0"), ("flower_sim.py", "0.1")):
        (tmp_path / script).write_text(PEER.replace("RATE", text))
    file = tmp_path / "bench.json"
    words = ["--quick", "--json", str(file), "--peers", str(tmp_path)]
    done = run_bench(*words, module="bench.simulator", bound_s=200)
    assert done.returncode == 0, done.stderr
    rows = {row["what"]: row for row in json.loads(file.read_text())["rows"]}
    for row in rows.values():
        check_row(row)
    for size, hidden in (("2,410", 32), ("99,985", 1333)):
        ours = rows[f"{size} parameters, K 50: ours"]["median"]
        for peer, rate in (("bare numpy loop", 10.0), ("Flower", 0.1)):
            theirs = rows[f"{size} parameters: {peer}"]["median"]
            assert theirs == pytest.approx(32 / hidden * rate)
            ratio = rows[f"{size} parameters, K 50: ours / {peer}"]["median"]
            assert ratio == pytest.approx(ours / theirs)
        phases = ("training", "evaluation", "all else")
        costs = [rows[f"{size} parameters, K 50: {phase}"]["median"] for phase in phases]
        assert sum(costs) == pytest.approx(1e6 / ours)
        assert rows[f"{size} parameters, K 50: compiling"]["median"] > 0


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("print('no figures')", "printed no line of results"),
        ("raise SystemExit('out of order')", "out of order"),
        ("import time\ntime.sleep(600)", "took more than 1 s"),
    ],
)
def test_a_peer_that_fails_is_named_with_what_it_said(
    tmp_path: Path, script: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bare_loop.py").write_text(script)
    monkeypatch.setattr(peers, "BOUND_S", 1.0)
    with pytest.raises(BenchError, match="(?s)bare numpy loop.*" + said):
        peers.Peers(tmp_path, sys.executable).updates_per_cpu_s(peers.LOOP, 32)
