"""How long a gateway waits for more updates before it flushes.

Half the time a fast node takes between two updates: measured better than a fixed count alone, because a
version that waits in a gateway makes every other update older.
"""

from collections import deque

_SAMPLES = 64
_MAX_NODES = 8192
_FIRST_US = 1_000_000
_LEAST_US = 50_000
_MOST_US = 10_000_000


class Pace:
    """Keeps the intervals between a node's updates and derives the flush timer from them."""

    def __init__(self, fixed_us: int) -> None:
        self._fixed_us = fixed_us
        self._last_us: dict[str, int] = {}
        self._intervals_us: deque[int] = deque(maxlen=_SAMPLES)

    def saw_update(self, node: str, now_us: int) -> None:
        """A node's update arrived."""
        last_us = self._last_us.pop(node, None)
        if last_us is not None:
            self._intervals_us.append(now_us - last_us)
        elif len(self._last_us) >= _MAX_NODES:
            del self._last_us[next(iter(self._last_us))]
        self._last_us[node] = now_us

    def flush_after_us(self, deadline_us: int) -> int:
        """Return the flush timer: fixed, or half the tenth-percentile interval, within the deadline."""
        if self._fixed_us:
            wanted = self._fixed_us
        elif self._intervals_us:
            tenth = sorted(self._intervals_us)[len(self._intervals_us) // 10]
            wanted = min(max(tenth // 2, _LEAST_US), _MOST_US)
        else:
            wanted = _FIRST_US
        return min(wanted, deadline_us) if deadline_us else wanted
