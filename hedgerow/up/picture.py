"""What is shown while a run goes on, gathered in one place for the live view and the plain one."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from aggregator.status import Status
from hedgerow.up.poll import NODE_UP, History, Point, Traffic

_EVENTS = 8
_BARS = "▁▂▃▄▅▆▇█"
_UNITS = ("B", "KB", "MB", "GB", "TB")


@dataclass
class Picture:
    """The run as it stands. `elapsed_s` counts all its sessions."""

    broker: str
    page: str
    traffic: Traffic
    history: History
    status: Status | None = None
    elapsed_s: float = 0.0
    events: deque[str] = field(default_factory=lambda: deque(maxlen=_EVENTS))

    def take(self, status: Status) -> list[Point]:
        """Take a newer picture from the aggregator; return the points of its curve that are new."""
        self.status = status
        self.traffic.take(status)
        return self.history.take(status, self.traffic.total(NODE_UP), self.elapsed_s)


def sparkline(values: Iterable[float], width: int) -> str:
    """Draw values from their smallest to their largest in at most `width` characters."""
    numbers = list(values)
    if not numbers:
        return ""
    if len(numbers) > width:
        numbers = [numbers[i * (len(numbers) - 1) // (width - 1)] for i in range(width)]
    low, high = min(numbers), max(numbers)
    span = (high - low) or 1.0
    return "".join(_BARS[int((n - low) / span * (len(_BARS) - 1))] for n in numbers)


def evenly_by_bytes(points: list[Point], width: int) -> list[float]:
    """Return the metric at `width` evenly spaced amounts of bytes, the last known value at each."""
    if not points:
        return []
    first, last = points[0].bytes_up, points[-1].bytes_up
    values, index = [], 0
    for step in range(width):
        bytes_up = first + (last - first) * step / max(width - 1, 1)
        while index + 1 < len(points) and points[index + 1].bytes_up <= bytes_up:
            index += 1
        values.append(points[index].value)
    return values


def in_bytes(count: float) -> str:
    """Return a number of bytes for people; units are powers of 1000."""
    for unit in _UNITS[:-1]:
        if abs(count) < 1000:  # noqa: PLR2004 - the definition of KB
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} {_UNITS[-1]}"


def progress(status: Status, value: float | None) -> str:
    """Return the metric against its target."""
    shown = "-" if value is None else f"{value:.4f}"
    goal = "" if status.target is None else f" of {status.target:g}"
    return f"{status.metric} {shown}{goal}"
