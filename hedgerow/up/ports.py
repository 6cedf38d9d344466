"""Free ports for a run, kept apart from those of other runs on the same machine.

A port that was free when it was chosen may be another run's by the time its process listens, and the two
fleets would mix. So each run holds a lock on its ports for as long as it lasts.
"""

import fcntl
import os
import socket
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from hedgerow.core.errors import ConfigError

_TRIALS = 100


class Ports:
    """The ports of one run. A context manager: leaving it gives them back."""

    def __init__(self) -> None:
        self._locks: dict[int, IO[bytes]] = {}

    def __enter__(self) -> Self:
        """Begin with none."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give all back."""
        for lock in self._locks.values():
            lock.close()
        self._locks.clear()

    def take(self, host: str, wanted: int) -> int:
        """Return `wanted` when it is nobody's, else a free port; 0 wants any.

        Raises ConfigError when this machine has no address `host`.
        """
        for port in (wanted, *[0] * _TRIALS):
            found = _bindable(host, port)
            if found is not None and self._lock(found):
                return found
        raise ConfigError(f"host: no free port on {host!r}; is it an address of this machine?")

    def _lock(self, port: int) -> bool:
        if port in self._locks:
            return False
        folder = Path(tempfile.gettempdir()) / f"hedgerow-ports-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        lock = (folder / str(port)).open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            return False
        self._locks[port] = lock
        return True


def _bindable(host: str, port: int) -> int | None:
    """Return the port, a free one for 0, or None when somebody listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError:
            return None
        found: int = trial.getsockname()[1]
        return found
