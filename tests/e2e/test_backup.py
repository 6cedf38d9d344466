"""Backup, restore and audit on real processes: a fleet goes on after either tier's disk was put back."""

import json
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

from hedgerow.core.versions import LIFE_VERSIONS
from tests.e2e.fleet_process import REPOSITORY, UpRun
from tests.e2e.test_up import SMALL

pytestmark = pytest.mark.e2e

ENDLESS = ["--target", "0.999", "--max-versions", str(9 * LIFE_VERSIONS)]


def hedgerow(*words: object, code: int = 0) -> dict[str, Any]:
    """Run a command with --json and return what it prints."""
    command = [sys.executable, "-m", "hedgerow.cli", *map(str, words), "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=REPOSITORY, check=False, timeout=60
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    return cast("dict[str, Any]", json.loads(done.stdout))


def interrupt(run: UpRun) -> None:
    run.process.send_signal(signal.SIGINT)
    assert run.wait(60) == 130, run.output[-3000:]


def rows(folder: Path, query: str) -> set[tuple[Any, ...]]:
    with closing(sqlite3.connect(folder)) as connection:
        return set(connection.execute(query))


def issued(folder: Path) -> set[tuple[Any, ...]]:
    """Return a node's updates: node, epoch, seq and outcome."""
    query = "SELECT node, issued.epoch, seq, outcome FROM issued, identity"
    return rows(folder / "outbox.sqlite", query)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.toml"
    file.write_text(SMALL)
    return file


@pytest.mark.timeout(240)
def test_a_fleet_goes_on_after_its_aggregator_was_put_back(small: Path, tmp_path: Path) -> None:
    folder, backup = tmp_path / "run", tmp_path / "backup.tar.gz"
    aggregator = folder / "aggregator"
    with UpRun(small, folder, *ENDLESS) as run:
        for version in (3, 5, 7):
            run.wait_for_version(version, 120)
            manifest = hedgerow("backup", aggregator, backup)
        then = manifest["version"]
        assert then >= 7
        run.wait_for_version(then + 6, 120)
        interrupt(run)
    assert hedgerow("audit", folder)["holds"]

    done = hedgerow("restore", backup, aggregator, "--force")
    before = Path(done["set_aside"]) / "ledger.sqlite3"
    assert before.parent == folder / "aggregator.before-1"
    with UpRun(small, folder, "--resume", *ENDLESS) as run:
        run.wait_for_version(LIFE_VERSIONS + then + 6, 150)
        interrupt(run)
        assert run.report["law_holds"], run.report["account"]["problems"]

    ledger = aggregator / "ledger.sqlite3"
    versions = "SELECT version FROM versions"
    given_out_again = {
        one for one in rows(ledger, versions) & rows(before, versions) if one[0] > then
    }
    assert given_out_again == set()
    found = hedgerow("audit", folder)
    assert found["holds"]
    settled = "SELECT node, epoch, seq FROM ledger"
    lost = rows(before, settled) - rows(ledger, settled)
    ends = {one[:3]: one[3] for number in range(1, 5) for one in issued(folder / f"node-0{number}")}
    # What a node had not seen settled yet it offers again, and hears what became of it.
    seen = [one for one in lost if ends[one] == "applied"]
    assert {ends[one] for one in lost} <= {"applied", "rejected", ""}
    assert sum(node["forgotten"] for node in found["nodes"]) == len(seen) > 0
    newly = rows(ledger, f"SELECT DISTINCT node FROM ledger WHERE version > {LIFE_VERSIONS}")  # noqa: S608
    assert len(newly) == 4, "every node's updates settle again"


@pytest.mark.timeout(240)
def test_a_node_that_was_put_back_issues_no_update_twice(small: Path, tmp_path: Path) -> None:
    folder, backup = tmp_path / "run", tmp_path / "node.tar"
    with UpRun(small, folder, *ENDLESS) as run:
        run.wait_for_version(3, 120)
        manifest = hedgerow("backup", folder / "node-01", backup)
        assert (manifest["role"], manifest["node"]) == ("node", "node-01")
        run.wait_for_version(9, 120)
        interrupt(run)
    hedgerow("restore", backup, folder / "node-01", "--force")
    with UpRun(small, folder, "--resume", *ENDLESS) as run:
        run.wait_for_version(15, 150)
        interrupt(run)
        assert run.report["law_holds"], run.report["account"]["problems"]
    epochs = rows(folder / "node-01" / "outbox.sqlite", "SELECT epoch, ended FROM epoch")
    assert {ended for _, ended in epochs} == {"", "restored"}
    found = hedgerow("audit", folder)
    assert found["holds"]
    (node,) = [node for node in found["nodes"] if node["node"] == "node-01"]
    assert node["unknown"] > 0
    ((fresh,),) = [{epoch} for epoch, ended in epochs if not ended]
    ledger = folder / "aggregator" / "ledger.sqlite3"
    query = f"SELECT seq FROM ledger WHERE node = 'node-01' AND epoch = {fresh}"  # noqa: S608
    assert rows(ledger, query), "its updates settle under its new epoch"
