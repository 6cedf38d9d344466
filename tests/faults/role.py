"""One process of a fleet under test: started, struck, watched and stopped from outside."""

import json
import os
import resource
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
_STOP_S = 15.0


class Role:
    """A process that can be started again and again; everything it prints goes to one log."""

    def __init__(self, name: str, command: Sequence[str], folder: Path, log: Path) -> None:
        self.name = name
        self.command = list(command)
        self.folder = folder
        self.log = log
        self.starts = 0
        self.source = REPOSITORY
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The last process's exit code, negative for a signal; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    @property
    def rss_bytes(self) -> int:
        return int(psutil.Process(self.pid).memory_info().rss)

    def start(
        self,
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        address_bytes: int = 0,
    ) -> None:
        """Start it, under the command `prefix`, with an address space of at most `address_bytes`."""
        assert not self.running, f"{self.name} runs already"

        def limit() -> None:
            if address_bytes:
                resource.setrlimit(resource.RLIMIT_AS, (address_bytes, address_bytes))

        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                [*prefix, *self.command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.source,
                env={**os.environ, "PYTHONPATH": str(self.source), **(environment or {})},
                start_new_session=True,
                preexec_fn=limit,  # noqa: PLW1509 - sets a limit and nothing else
            )
        self.starts += 1

    def kill(self) -> None:
        """Kill it without a warning, whether it is paused or not."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(_STOP_S)

    def stop(self) -> None:
        """Stop it in order; one that does not end is killed and fails the run."""
        if not self.running:
            return
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.name} did not stop:\n{self.tail()}") from None

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def wait(self, bound_s: float) -> int | None:
        """Wait for its end and return the exit code, None when it still runs then."""
        assert self._process is not None
        try:
            return self._process.wait(bound_s)
        except subprocess.TimeoutExpired:
            return None

    def events(self, event: str, reason: str | None = None) -> int:
        """Return how often an event has been recorded, over all starts."""
        return sum(
            int(entry.get("amount", 0))
            for entry in self.entries()
            if entry.get("event") == event and reason in (None, entry.get("reason"))
        )

    def entries(self) -> list[dict[str, Any]]:
        """Return the log's entries; what a dying process has cut short is left out."""
        found: list[dict[str, Any]] = []
        if not self.log.exists():
            return found
        for line in self.log.read_bytes().splitlines():
            if line.startswith(b"{"):
                try:
                    found.append(json.loads(line))
                except ValueError:
                    continue
        return found

    def tail(self, size: int = 1500) -> str:
        return self.log.read_bytes()[-size:].decode(errors="replace") if self.log.exists() else ""
