"""What a fault is, how it is run again and again, and what comes of it."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.faults.fleet import Fleet, Setup, running
from tests.faults.oracle import Totals, verify

_WORK_S = 240.0
"""How long a fleet may take, after the last strike, for the updates it is to have applied at least."""

Strike = Callable[[Fleet, int], str]
"""Strikes a running fleet for the n-th time, n from 0; returns what was seen of it.

Raises AssertionError where the fault did not do what it is about. Links and processes that it leaves struck
are healed by whoever calls it.
"""


@dataclass(frozen=True)
class Fault:
    """One row of the table; `setup` is the fleet it strikes, `apart` says that it needs mounts of its own."""

    number: str
    name: str
    strike: Strike
    setup: Setup = Setup()  # noqa: RUF009 - frozen
    apart: bool = False


@dataclass(frozen=True)
class Outcome:
    """What came of `runs` strikes; `drain_s` are the median and the longest time to drain after them."""

    number: str
    name: str
    runs: int
    totals: Totals
    drain_s: tuple[float, float]
    seen: list[str]


def strike_once(fleet: Fleet, fault: Fault, run: int) -> tuple[str, float]:
    """Strike, heal and probe; returns what was seen and the seconds until all was drained."""
    try:
        seen = fault.strike(fleet, run)
        fleet.heal()
        return seen, fleet.probe()
    except AssertionError as error:
        raise AssertionError(f"{fault.number} {fault.name}, run {run}: {error}") from error


def repeat(fault: Fault, runs: int, folder: Path, *, applied: int = 0) -> Outcome:
    """Strike one fleet `runs` times, wait until `applied` updates count, then stop it and read its disks."""
    with running(folder, fault.setup) as fleet:
        strikes = [strike_once(fleet, fault, run) for run in range(runs)]
        fleet.until(lambda: len(fleet.ledger()) >= applied, _WORK_S, f"{applied} updates applied")
        totals = verify(fleet)
    drains = [drain_s for _, drain_s in strikes]
    return Outcome(
        fault.number,
        fault.name,
        runs,
        totals,
        (round(statistics.median(drains), 2), round(max(drains), 2)),
        [seen for seen, _ in strikes],
    )
