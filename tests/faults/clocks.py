"""F11: wall clocks that start in 1970, and that jump while a process runs."""

import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.fault import Fault
from tests.faults.fleet import AGGREGATOR, Fleet, NotHereError

_SOURCE = Path(__file__).with_name("wall_clock.c")
_BOOT, _LATE = 1970, 2038


def faked(folder: Path, offset_file: Path) -> dict[str, str]:
    """Return the environment in which wall clocks are off by the seconds in `offset_file`."""
    library = folder / "wall_clock.so"
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise NotHereError("no C compiler is installed")
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(_SOURCE)]
    subprocess.run(command, check=True, timeout=60)
    return {"LD_PRELOAD": str(library), "WALL_CLOCK_FILE": str(offset_file)}


def jump(fleet: Fleet, run: int) -> str:
    """F11: a node, a gateway or the aggregator begins in 1970, and its clock jumps forward and back."""
    name = (fleet.nodes[0], fleet.gateways[0], AGGREGATOR)[run % 3]
    role = fleet[name]
    offset_file = fleet.folder / f"{name}.offset"
    role.stop()
    lines = len(role.entries())
    offset_file.write_text(str(_seconds_to(_BOOT)))
    role.start(environment=faked(fleet.folder, offset_file))
    for offset_s in (_seconds_to(_LATE), -400 * 86400, 0):
        _learn(fleet)
        offset_file.write_text(str(offset_s))
    _learn(fleet)
    years = {str(entry.get("timestamp", ""))[:4] for entry in role.entries()[lines:]} - {""}
    assert {str(_BOOT), str(_LATE)} <= years, f"the clock of {name} did not jump: {years}"
    return f"{name} wrote of the years {', '.join(sorted(years))}"


def _seconds_to(year: int) -> int:
    there = datetime(year, 1, 20, tzinfo=UTC)
    return int(there.timestamp() - time.time())  # noqa: TID251 - the clock that is to be off


def _learn(fleet: Fleet) -> None:
    before = {node: len(fleet.applied(node)) for node in fleet.nodes}
    fleet.until(
        lambda: all(len(fleet.applied(node)) > n for node, n in before.items()), 20, "both learn"
    )


FAULTS = [Fault("F11", "clock jumps, 1970 boot", jump)]
