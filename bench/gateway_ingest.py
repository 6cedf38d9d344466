"""Gateway ingest: a real gateway between a real broker and a real aggregator, in updates per CPU-second.

Light nodes in a process of their own send without a pause for training of any length. What is counted is
the gateway's own CPU time over windows of a few seconds: everything it does for an update, from the
socket to the settled receipt, versions relayed to the nodes included.
"""

import time
from dataclasses import dataclass

import psutil

from bench.measure import BenchError, Row, Settings
from bench.processes import Fleet, cpu_s
from bench.subjects import BUFFER_SIZE, FLUSH_COUNT, GATEWAY, NODES, SUBJECTS, Subject

FIGURE = "gateway"
_WARM_UP_UPDATES = 2 * BUFFER_SIZE
_TRAINING_S = {"10 KB int8": 0.08, "400 KB int8": 0.4, "400 KB fp32": 0.3}
_BOUND_S = 60.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Window:
    """What happened between two looks: updates admitted, CPU-seconds of each process."""

    updates: float
    wall_s: float
    gateway_s: float
    broker_s: float
    aggregator_s: float


def measure(settings: Settings) -> list[Row]:
    """Measure every payload size."""
    return [row for subject in SUBJECTS for row in _measure(subject, settings)]


def _measure(subject: Subject, settings: Settings) -> list[Row]:
    settings.say(f"gateway, real process: {subject.name}")
    folder = settings.folder / subject.name.replace(" ", "-")
    with Fleet(folder, settings.broker, subject.tables()) as fleet:
        fleet.start_all()
        arguments = ["--nodes", str(NODES), "--training-s", str(_TRAINING_S[subject.name])]
        fleet.start("senders", "-m", "bench.light_senders", str(fleet.config_file), *arguments)
        _wait_for_updates(fleet, _WARM_UP_UPDATES)
        windows = [_window(fleet, 1 if settings.quick else 3) for _ in range(settings.repeats)]
        return _rows(subject, windows, fleet.broker_kind)


def _rows(subject: Subject, windows: list[Window], broker: str) -> list[Row]:
    updates = sum(window.updates for window in windows)
    wall_s = sum(window.wall_s for window in windows)
    note = (
        f"{subject.payload_bytes:,} bytes; {updates / wall_s:.0f} updates/s from {NODES} light nodes;"
        f" flush {FLUSH_COUNT}, K {BUFFER_SIZE}; broker {broker}"
    )
    rates = tuple(window.updates / window.gateway_s for window in windows)
    rows = [Row(FIGURE, subject.name, "updates per gateway-CPU-second", rates, note)]
    beside = {"broker": "light nodes fetch no versions: the way down is left out", "aggregator": ""}
    for name, note in beside.items():
        spent = tuple(1000 * getattr(w, f"{name}_s") / w.updates for w in windows)
        what = f"{subject.name}: {name} beside it"
        rows.append(Row(FIGURE, what, "CPU-ms per update", spent, note))
    return rows


def _window(fleet: Fleet, least_s: float) -> Window:
    """Watch the fleet for `least_s` at least, and for a whole number of the gateway's CPU ticks' worth."""
    watched = [fleet.processes[GATEWAY], fleet.broker, fleet.processes["aggregator"]]
    began, admitted, cpu = time.monotonic(), _admitted(fleet), _cpu(watched)
    # One tick of the CPU clock is 10 ms: a second of CPU keeps it at 1 %.
    while time.monotonic() - began < least_s or _cpu(watched)[0] - cpu[0] < least_s / 3:
        if time.monotonic() - began > _BOUND_S:
            raise BenchError("the gateway is idle: the light nodes do not get through")
        time.sleep(_POLL_S)
    wall_s, later, after = time.monotonic() - began, _admitted(fleet), _cpu(watched)
    if later == admitted:
        raise BenchError("no update was admitted in a whole window")
    spent = [end - start for start, end in zip(cpu, after, strict=True)]
    return Window(later - admitted, wall_s, *spent)


def _cpu(processes: list[psutil.Process]) -> list[float]:
    return [cpu_s(process) for process in processes]


def _admitted(fleet: Fleet) -> float:
    return fleet.gateway_counts().get("update_admitted", 0.0)


def _wait_for_updates(fleet: Fleet, count: int) -> None:
    fleet.wait_for("senders", lambda: _admitted(fleet) >= count, _BOUND_S)
