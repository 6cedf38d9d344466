"""Every fault, in the order of the table, and the shorter way through them that CI takes."""

from tests.faults import clocks, disks, history, hostile, kills, mixed, pressure, wires
from tests.faults.fault import Fault

_MODULES = (kills, wires, disks, clocks, hostile, pressure, history, mixed)


def _place(fault: Fault) -> int:
    return int(fault.number.removeprefix("F").partition("-")[0])


FAULTS = sorted((fault for module in _MODULES for fault in module.FAULTS), key=_place)


def chosen(numbers: list[str]) -> list[Fault]:
    """Return the faults with these numbers or names, such as "F3"; all without any.

    Raises KeyError for one that there is not.
    """
    known = {fault.number for fault in FAULTS} | {fault.name for fault in FAULTS}
    for number in numbers:
        if number not in known:
            raise KeyError(f"no fault {number}; there are {', '.join(sorted(known))}")
    return [f for f in FAULTS if not numbers or {f.number, f.name} & set(numbers)]
