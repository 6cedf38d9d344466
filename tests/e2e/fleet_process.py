"""A whole `hedgerow up` as a child process, seen as a user sees it: its page, its pids, its report."""

import json
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]


class UpRun:
    """One run in `folder`; `wait` returns the exit code and leaves the report in `report`."""

    def __init__(self, config: Path | str, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self.report_file = folder.with_suffix(".json")
        self.output_file = folder.with_suffix(".txt")
        source = [] if "--resume" in arguments else [str(config)]
        command = [sys.executable, "-m", "hedgerow.cli", "up", *source, "--dir", str(folder)]
        command += ["--plain", "--json", str(self.report_file), *arguments]
        with self.output_file.open("a") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, cwd=REPOSITORY
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(60)

    @property
    def output(self) -> str:
        """Everything printed so far."""
        return self.output_file.read_text()

    @property
    def report(self) -> dict[str, Any]:
        """The JSON report."""
        return cast("dict[str, Any]", json.loads(self.report_file.read_text()))

    def wait(self, bound_s: float) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(bound_s)

    def status(self) -> dict[str, Any] | None:
        """What the aggregator says, None while it cannot be asked."""
        with suppress(OSError, ValueError):
            port = json.loads((self.folder / "config.json").read_text())["http"]["port"]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/fleet", timeout=2) as reply:
                return cast("dict[str, Any]", json.load(reply))
        return None

    def wait_for_version(self, version: int, bound_s: float) -> None:
        """Wait until the model has reached a version, or fail with what was printed."""
        deadline = time.monotonic() + bound_s
        while time.monotonic() < deadline and self.process.poll() is None:
            status = self.status()
            if status is not None and status["version"] >= version:
                return
            time.sleep(0.1)
        raise AssertionError(f"version {version} was not reached:\n{self.output[-3000:]}")

    def pid_of(self, role: str, identity: str = "") -> int:
        """Return the pid of one of the run's own processes."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            words = child.cmdline()
            if role == "broker" and any("mosquitto" in w or "embedded_broker" in w for w in words):
                return child.pid
            if role in words and (not identity or identity in words):
                return child.pid
        raise AssertionError(f"no process of {role} {identity}")
