"""The store on disks that fail or fill up, and in processes that die: what was acknowledged is there."""

import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contract.store_child import BURSTS

_ROOT = Path(__file__).parents[2]
_WRITER = [sys.executable, "-m", "tests.contract.store_child"]
_ALL = sorted(x for burst in BURSTS for x in burst)
_SHORT_LOG = str(1 << 19)
"""A ballast so small makes the log short, so that it is written back several times."""

_MOUNT = 'mount -t tmpfs -o size=8m none "$0" && exec "$@"'

needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=_ROOT, capture_output=True, text=True, check=False, timeout=60
    )


def _write_under(path: Path, injected: str) -> dict[str, list[int]]:
    """Run the writer with a fault at its syncs; return the numbers it reported, by word."""
    inject = ["strace", "-f", "-o", "/dev/null", "-e", "trace=fdatasync", "-e"]
    child = _run(
        [*inject, f"inject=fdatasync:{injected}", *_WRITER, str(path), "write", _SHORT_LOG]
    )
    assert "Traceback" not in child.stderr, child.stderr
    said: dict[str, list[int]] = {"saved": [], "failed": [], "done": []}
    for line in child.stdout.splitlines():
        word, number = line.split()
        said[word].append(int(number))
    return said


def _committed(path: Path) -> list[int]:
    """Return what the next start finds."""
    connection = sqlite3.connect(path)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        if not connection.execute("SELECT * FROM sqlite_master WHERE name = 't'").fetchall():
            return []
        return [x for (x,) in connection.execute("SELECT x FROM t ORDER BY x")]
    finally:
        connection.close()


@needs_strace
@pytest.mark.parametrize("when", ["14", "15..17", "21..23", "32..34", "38..50"])
def test_a_sync_that_fails_is_never_acknowledged(tmp_path: Path, when: str) -> None:
    path = tmp_path / "a"
    said = _write_under(path, f"error=EIO:when={when}")
    assert said["done"] == [0]
    assert sorted(said["saved"] + said["failed"]) == _ALL
    assert 1 <= len(said["failed"]) < 20
    # The process ended without closing, as in a crash: what was refused has not come back.
    assert _committed(path) == sorted(said["saved"])


@needs_strace
def test_a_disk_that_goes_on_failing_takes_nothing_and_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    said = _write_under(path, "error=EIO:when=20+")
    assert sorted(said["saved"] + said["failed"]) == _ALL
    assert len(said["saved"]) > 5
    assert said["failed"] == _ALL[len(said["saved"]) :]
    # Only the first refused commit reached the log; a crash may bring it back, as one inside any commit.
    extra = set(_committed(path)) - set(said["saved"])
    assert set(said["saved"]) <= set(_committed(path))
    assert extra <= {said["failed"][0]}


@needs_strace
@pytest.mark.parametrize("when", [6, 15, 20, 22, 29, 36, 44, 49])
def test_a_kill_at_a_sync_keeps_what_was_acknowledged(tmp_path: Path, when: int) -> None:
    path = tmp_path / "a"
    said = _write_under(path, f"signal=KILL:when={when}")
    assert said["done"] == []
    assert said["failed"] == []
    committed = _committed(path)
    assert committed[: len(said["saved"])] == said["saved"]
    # At most the group that was being written is there without having been acknowledged.
    assert committed == _ALL[: len(committed)]
    assert len(committed) - len(said["saved"]) <= max(map(len, BURSTS))


def _on_small_disk(folder: Path, mode: str, ballast_bytes: int) -> list[str]:
    """Run the writer on a disk of 8 MB of its own; return what it said."""
    folder.mkdir()
    alone = ["unshare", "-Urm", "sh", "-c", _MOUNT, str(folder)]
    if _run([*alone, "true"]).returncode != 0:
        pytest.skip("no file system can be mounted in a namespace of one's own")
    child = _run([*alone, *_WRITER, str(folder / "a"), mode, str(ballast_bytes)])
    assert child.returncode == 0, child.stderr
    return child.stdout.splitlines()


def test_a_full_disk_takes_nothing_more_and_still_lets_go(tmp_path: Path) -> None:
    said = _on_small_disk(tmp_path / "disk", "fill", 1 << 20)
    saved = [line for line in said if line.startswith("saved")]
    rows = len(saved) - 1
    assert rows > 100
    assert not any(line.startswith("stuck") for line in said)
    after = said[said.index("full True") + 1 :]
    assert after[0] == "failed 2000"
    assert after[1 : rows + 1] == [f"ended {x}" for x in range(rows)]
    # What was let go is room again, on the disk too: the store takes new rows.
    assert after[rows + 1 :] == ["room True", "saved 2001"]


def test_without_a_ballast_a_full_disk_lets_nothing_go(tmp_path: Path) -> None:
    said = _on_small_disk(tmp_path / "disk", "fill", 0)
    assert any(line.startswith("stuck 0 ") and line.endswith("the disk is full") for line in said)


def test_a_store_starts_on_a_disk_that_others_have_filled(tmp_path: Path) -> None:
    said = _on_small_disk(tmp_path / "disk", "restart", 1 << 20)
    ended = [f"ended {x}" for x in range(10)]
    assert said[10:] == ["full True", "failed 10", *ended, "saved 11", "full False"]


def test_nobody_waits_for_a_commit_that_finds_no_memory(tmp_path: Path) -> None:
    child = _run([*_WRITER, str(tmp_path / "a"), "starve"])
    assert child.stdout.splitlines() == ["saved 0", "ended MemoryError", "ended MemoryError"]
    assert _committed(tmp_path / "a") == [0]
