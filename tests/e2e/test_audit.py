"""The audit of a whole fleet of real processes, at rest."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.fleet_process import UpRun
from tests.e2e.test_backup import hedgerow
from tests.e2e.test_up import SMALL
from tests.unit.test_audit import DAMAGES

pytestmark = pytest.mark.e2e

# Eight updates of one version are fewer bytes as a sum.
SUMMED = SMALL.replace("nodes = 4", "nodes = 8").replace("gateways = 2", "gateways = 1")
SUMMED = SUMMED.replace(
    "[aggregation]", "[gateway]\nflush_count = 8\n\n[aggregation]\nbuffer_size = 8"
)

DAMAGE = (
    "a partial's sums",
    "a partial's weight",
    "a header beside sums",
    "a header is gone",
    "a partial is gone",
    "all partials are gone",
    "a partial waits again",
    "a parameter",
    "a parameter, and the file's name",
    "what a version says of itself",
    "a version is gone",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    file = folder / "fleet.toml"
    file.write_text(SUMMED)
    with UpRun(file, folder / "run", "--target", "0.999", "--max-versions", "12") as up:
        up.wait(100)
        assert up.report["law_holds"], up.output[-3000:]
    return folder / "run"


@pytest.mark.timeout(180)
def test_a_run_keeps_every_promise(run: Path) -> None:
    found = hedgerow("audit", run, "--replay-all")
    promises = {promise["name"]: promise for promise in found["promises"]}
    assert found["holds"]
    assert promises["C4"]["checked"] == "versions 0 to 12, 12 made anew"
    assert sum(node["applied"] for node in found["nodes"]) >= 96
    assert len(found["nodes"]) == 8


@pytest.mark.timeout(180)
@pytest.mark.parametrize("what", DAMAGE)
def test_damage_to_a_run_is_found(run: Path, tmp_path: Path, what: str) -> None:
    damage, promise = DAMAGES[what]
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    damage(copy)
    found = hedgerow("audit", copy, code=1)
    assert promise in {one["name"] for one in found["promises"] if one["violations"]}


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("file", "sql", "promise"),
    [
        ("aggregator/ledger.sqlite3", "DELETE FROM ledger WHERE rowid = 5", "C2"),
        ("aggregator/ledger.sqlite3", "UPDATE ledger SET seq = 99 WHERE rowid = 5", "C3"),
        (
            "node-05/outbox.sqlite",
            "INSERT INTO issued SELECT epoch, max(seq) + 1, 0, NULL, NULL, 'applied', '' FROM issued",
            "C2",
        ),
        ("node-05/outbox.sqlite", "DELETE FROM issued WHERE seq = 3", "law"),
        (
            "node-05/outbox.sqlite",
            "UPDATE issued SET outcome = 'rejected', reason = 'norm' WHERE seq = 3",
            "C2",
        ),
    ],
)
def test_damage_to_the_books_of_a_run_is_found(
    run: Path, tmp_path: Path, file: str, sql: str, promise: str
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    with closing(sqlite3.connect(copy / file, isolation_level=None)) as connection:
        assert connection.execute(sql).rowcount >= 1
    found = hedgerow("audit", copy, code=1)
    assert promise in {one["name"] for one in found["promises"] if one["violations"]}
