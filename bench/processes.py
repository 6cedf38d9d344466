"""The processes that are measured: started, watched through their own clocks, always stopped."""

import asyncio
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import psutil

from aggregator.status import Status
from bench.blas import ORIGINAL_ENVIRONMENT
from bench.measure import BenchError, BrokerChoice
from bench.subjects import GATEWAY
from hedgerow.core.configcheck import parse_config
from hedgerow.runtime.broker import RunningBroker, start_broker
from hedgerow.runtime.configfile import write_config
from hedgerow.up import watchdog

_HOST = "127.0.0.1"
_PAUSE_S = 0.01
_STOP_S = 10.0
# A proxy of the environment must not stand between processes of one machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Fleet:
    """Broker, aggregator and gateway as real processes, and whatever else is added; a context manager.

    `tables` is the configuration; ports are chosen here. Should this process be killed, a watchdog stops
    the children.
    """

    def __init__(self, folder: Path, broker: BrokerChoice, tables: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.processes: dict[str, psutil.Popen] = {}
        self._http = _free_port()
        self._metrics = _free_port()
        self._config = parse_config(
            {
                **tables,
                "broker": {"kind": broker},
                "http": {"port": self._http},
                "gateway": {**tables.get("gateway", {}), "metrics_port": self._metrics},
            }
        )
        self._runner = asyncio.Runner()
        self._broker: RunningBroker | None = None
        self._watchdog = subprocess.Popen(
            [sys.executable, "-S", "-E", watchdog.__file__],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(_STOP_S)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(_STOP_S)
        if self._broker is not None:
            self._runner.run(self._broker.stop())
        self._runner.close()
        # At the end of its input it ends by itself, after stopping what was left.
        self._watchdog.communicate()

    @property
    def config_file(self) -> Path:
        """What every process reads."""
        return self.folder / "config.json"

    @property
    def broker_kind(self) -> str:
        """Which broker runs."""
        return self._broker.kind if self._broker is not None else "none"

    @property
    def broker(self) -> psutil.Process:
        """The broker's process."""
        if self._broker is None or self._broker.pid is None:
            raise BenchError("the broker was not started")
        return psutil.Process(self._broker.pid)

    def start_broker(self) -> None:
        """Start the broker and write the configuration that names its port."""
        starting = start_broker(self._config.broker, self.folder / "broker")
        self._broker = self._runner.run(starting)
        self._tell_watchdog(self._broker.pid)
        settled = msgspec.structs.replace(self._config, broker=self._broker.config)
        write_config(settled, self.config_file)

    def start_tier(self, role: str, identity: str = "") -> psutil.Popen:
        """Start `hedgerow ROLE` as an operator would."""
        name = identity or role
        command = ["-m", "hedgerow.cli", role, str(self.config_file)]
        command += ["--dir", str(self.folder / name), *(["--id", identity] if identity else [])]
        return self.start(name, *command)

    def start(self, name: str, *arguments: str) -> psutil.Popen:
        """Start a Python process as the leader of its own process group; its output goes to its log."""
        environment = {**ORIGINAL_ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
        with self.log(name).open("ab") as output:
            process = psutil.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment,
                start_new_session=True,
            )
        self.processes[name] = process
        self._tell_watchdog(process.pid)
        return process

    def start_all(self) -> None:
        """Start broker, aggregator and gateway and wait until the gateway serves a version."""
        self.start_broker()
        self.start_tier("aggregator")
        self.wait_for("aggregator", self.aggregator_serves, 60)
        self.start_tier("gateway", GATEWAY)
        self.wait_for(GATEWAY, self.gateway_serves, 60)

    def log(self, name: str) -> Path:
        """Return the log of a process."""
        return self.folder / f"{name}.log"

    def logged(self, name: str, text: str) -> bool:
        """Whether a process has logged a text."""
        return text in self.log(name).read_text(errors="replace")

    def aggregator_serves(self) -> bool:
        """Whether the aggregator answers."""
        return _get(f"http://{_HOST}:{self._http}/healthz") is not None

    def gateway_serves(self) -> bool:
        """Whether the gateway is ready for nodes."""
        return _get(f"http://{_HOST}:{self._metrics}/readyz") is not None

    def gateway_counts(self) -> dict[str, float]:
        """Return the gateway's events by name, all reasons together."""
        text = _get(f"http://{_HOST}:{self._metrics}/metrics")
        if text is None:
            raise BenchError(f"the gateway's metrics cannot be read\n{self._tail(GATEWAY)}")
        counts: dict[str, float] = {}
        for event, value in re.findall(rb'hedgerow_events_total\{event="(\w+)".*\} (\S+)', text):
            counts[event.decode()] = counts.get(event.decode(), 0) + float(value)
        return counts

    def status(self) -> Status:
        """Return the aggregator's picture of the fleet."""
        body = _get(f"http://{_HOST}:{self._http}/v1/fleet")
        if body is None:
            raise BenchError(f"the aggregator cannot be asked\n{self._tail('aggregator')}")
        return msgspec.json.decode(body, type=Status)

    def wait_for(self, name: str, ready: Callable[[], bool], bound_s: float) -> None:
        """Wait until a process is ready; raises BenchError with the end of its log when it is not."""
        deadline = time.monotonic() + bound_s
        while not ready():
            code = self.processes[name].poll()
            if code is not None or time.monotonic() > deadline:
                manner = f"within {bound_s:g} s" if code is None else f"but ended with code {code}"
                raise BenchError(f"{name} was not ready {manner}\n{self._tail(name)}")
            time.sleep(_PAUSE_S)

    def _tail(self, name: str) -> str:
        return self.log(name).read_bytes()[-2000:].decode(errors="replace")

    def _tell_watchdog(self, pid: int | None) -> None:
        if self._watchdog.stdin is not None and pid is not None:
            self._watchdog.stdin.write(f"+{pid}\n".encode())
            self._watchdog.stdin.flush()


def cpu_s(process: psutil.Process) -> float:
    """Return the CPU-seconds a process has used so far, its children's left out."""
    times = process.cpu_times()
    return float(times.user + times.system)


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind((_HOST, 0))
        port: int = trial.getsockname()[1]
        return port


def _get(url: str) -> bytes | None:
    """Return the body of a 200, None for anything else."""
    try:
        with _OPENER.open(url, timeout=5) as answer:
            body: bytes = answer.read()
            return body
    except (OSError, urllib.error.URLError):
        return None
