"""What every figure shares: rows of repeated measurements, CPU time of a call, the machine."""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import numpy as np
import psutil

import hedgerow

BrokerChoice = Literal["auto", "mosquitto", "embedded"]


class BenchError(Exception):
    """Something that is to be measured did not run; the text says what."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of the table: `values` are its repeats, in `unit`."""

    figure: str
    what: str
    unit: str
    values: tuple[float, ...]
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the row for JSON, with its median, least and greatest value."""
        return {
            "figure": self.figure,
            "what": self.what,
            "unit": self.unit,
            "median": median(self.values),
            "min": min(self.values),
            "max": max(self.values),
            "values": list(self.values),
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure. `folder` is scratch space, `say` shows progress."""

    quick: bool
    broker: BrokerChoice
    folder: Path
    say: Callable[[str], None]

    @property
    def repeats(self) -> int:
        """How often each figure is measured."""
        return 2 if self.quick else 5

    @property
    def least_s(self) -> float:
        """CPU-seconds of one repeat of an in-process figure, at least."""
        return 0.01 if self.quick else 0.2


def cpu_s_per_call(work: Callable[[], object], settings: Settings) -> tuple[float, ...]:
    """Return the CPU-seconds of one call, once for each repeat of as many calls as a repeat needs."""
    work()
    count = 1
    while (spent := _cpu_s(work, count)) < settings.least_s:
        count = max(2 * count, round(1.2 * count * settings.least_s / max(spent, 1e-6)))
    return tuple(_cpu_s(work, count) / count for _ in range(settings.repeats))


def _cpu_s(work: Callable[[], object], count: int) -> float:
    before = time.process_time()
    for _ in range(count):
        work()
    return time.process_time() - before


def machine() -> dict[str, Any]:
    """Describe the machine and how busy it is now."""
    memory = psutil.virtual_memory()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_1_min": round(os.getloadavg()[0], 2),
        "memory_gb": round(memory.total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "hedgerow": hedgerow.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()
