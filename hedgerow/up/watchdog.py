"""Ends the processes of a run when `hedgerow up` itself is killed.

Run as a script with a pipe on its standard input: "+PID" and "-PID" lines name process groups that live;
the pipe closes when the parent dies, however it dies, and what still lives is stopped.
"""

import os
import signal
import sys
import time
from contextlib import suppress

GRACE_S = 5.0
_PAUSE_S = 0.1


def watch(lines: list[str]) -> set[int]:
    """Return the groups that were named and not taken back."""
    alive: set[int] = set()
    for line in lines:
        sign, number = line[:1], line[1:].strip()
        if not number.isdecimal():
            continue
        if sign == "+":
            alive.add(int(number))
        else:
            alive.discard(int(number))
    return alive


def end(groups: set[int]) -> None:
    """Stop process groups, gently first."""
    _signal(groups, signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while groups and time.monotonic() < deadline:
        time.sleep(_PAUSE_S)
        # Signal 0 only asks whether anybody is left.
        groups = _signal(groups, 0)
    _signal(groups, signal.SIGKILL)


def _signal(groups: set[int], number: int) -> set[int]:
    """Signal each group and return those that exist."""
    found = set()
    for group in groups:
        with suppress(ProcessLookupError):
            os.killpg(group, number)
            found.add(group)
    return found


if __name__ == "__main__":
    end(watch(list(sys.stdin)))
