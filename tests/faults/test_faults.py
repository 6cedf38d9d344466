"""Every fault of the table on real processes; `HEDGEROW_SOAK=1` strikes each of them many more times.

Faults that want the same fleet share one in CI: starting the processes is what takes the time.
"""

import os
from itertools import groupby
from pathlib import Path

import pytest

from tests.faults.catalog import FAULTS
from tests.faults.fault import Fault, strike_once
from tests.faults.fleet import Fleet, NotHereError, running
from tests.faults.oracle import verify
from tests.faults.table import row_of

pytestmark = pytest.mark.e2e

SOAK = bool(os.environ.get("HEDGEROW_SOAK"))
SOAK_RUNS = 24
SOAK_APPLIED = 100


def _groups() -> list[list[Fault]]:
    """Return the faults by the fleet they strike."""
    usual = [fault for fault in FAULTS if not fault.apart]
    by_fleet = sorted(usual, key=lambda fault: repr(fault.setup))
    return [list(group) for _, group in groupby(by_fleet, key=lambda fault: fault.setup)]


def _name(faults: list[Fault]) -> str:
    return "+".join(dict.fromkeys(fault.number for fault in faults))


@pytest.mark.skipif(SOAK, reason="the soak strikes every fault by itself")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("faults", _groups(), ids=_name)
def test_faults_one_after_another_on_one_fleet(faults: list[Fault], tmp_path: Path) -> None:
    try:
        with running(tmp_path / "fleet", faults[0].setup) as fleet:
            missing = [_strike(fleet, fault, run) for run, fault in enumerate(faults)]
            totals = verify(fleet)
    except NotHereError as error:
        pytest.skip(str(error))
    assert totals.applied >= 2 * len(faults)
    if any(missing):
        pytest.skip("all others are survived; not struck: " + ", ".join(filter(None, missing)))


def _strike(fleet: Fleet, fault: Fault, run: int) -> str:
    """Strike once; returns what this machine lacks for it, "" when nothing."""
    try:
        strike_once(fleet, fault, run)
    except NotHereError as error:
        fleet.heal()
        return f"{fault.number} {fault.name}: {error}"
    return ""


@pytest.mark.skipif(SOAK, reason="the soak strikes every fault by itself")
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "fault", [f for f in FAULTS if f.apart], ids=lambda f: f"{f.number}-{f.name}"
)
def test_a_fault_with_mounts_of_its_own(fault: Fault, tmp_path: Path) -> None:
    row = row_of(fault, 1, 4, tmp_path / "fleet")
    if "skipped" in row:
        pytest.skip(row["skipped"])
    assert "failed" not in row, row["failed"]
    assert row["lost"] == 0


@pytest.mark.skipif(not SOAK, reason="minutes for each fault: make soak")
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.number}-{f.name}")
def test_a_fault_again_and_again(fault: Fault, tmp_path: Path) -> None:
    row = row_of(fault, SOAK_RUNS, SOAK_APPLIED, tmp_path / "fleet")
    if "skipped" in row:
        pytest.skip(row["skipped"])
    assert "failed" not in row, row["failed"]
    assert row["lost"] == 0
    assert row["applied"] >= SOAK_APPLIED
