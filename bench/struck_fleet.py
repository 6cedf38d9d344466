"""A fleet of real processes that is treated badly: killed, frozen, wiped, started again.

Broker is Mosquitto, with its database on disk, so that losing it is something. Every process leads a group of
its own; a watchdog stops them all should this process be killed.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import psutil

from aggregator.status import Status
from bench.blas import ORIGINAL_ENVIRONMENT
from bench.measure import BenchError
from hedgerow.core.config import Config
from hedgerow.core.configcheck import parse_config
from hedgerow.runtime.configfile import write_config
from hedgerow.runtime.mosquitto import find_program, mosquitto_config
from hedgerow.up import watchdog
from hedgerow.up.law import Account, check_run

AGGREGATOR, BROKER = "aggregator", "broker"
_HOST = "127.0.0.1"
_STOP_S = 15.0
_PAUSE_S = 0.1
_PERSISTENT = "persistence true\npersistence_location {folder}/\nautosave_interval 1"
# A proxy of the environment must not stand between processes of one machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class StruckFleet:
    """The processes of one fleet, by name: "broker", "aggregator", "gw-1", "node-01", ...; a context manager.

    `tables` is the configuration without ports. Raises BenchError without Mosquitto.
    """

    def __init__(self, folder: Path, tables: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.processes: dict[str, psutil.Popen] = {}
        self.frozen: set[str] = set()
        ports = {"broker": {"kind": "external", "host": _HOST, "port": free_port()}}
        ports["http"] = {"port": free_port()}
        merged = {name: {**tables.get(name, {}), **own} for name, own in ports.items()}
        self.config: Config = parse_config({**tables, **merged})
        write_config(self.config, self.config_file)
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
        self.stop_all()
        # At the end of its input it ends by itself.
        self._watchdog.communicate()

    @property
    def config_file(self) -> Path:
        """What every process reads that has no configuration of its own."""
        return self.folder / "config.json"

    def own_config(self, name: str, table: str, **changes: Any) -> None:
        """Give one process a configuration of its own, from its next start on."""
        section = msgspec.structs.replace(getattr(self.config, table), **changes)
        changed = msgspec.structs.replace(self.config, **{table: section})
        write_config(changed, self._own_config_file(name))

    def _own_config_file(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def start_broker(self) -> None:
        """Start Mosquitto and wait until it accepts a connection."""
        program = find_program("mosquitto")
        if program is None:
            raise BenchError("mosquitto is not installed")
        folder = self.folder / BROKER
        folder.mkdir(exist_ok=True)
        text = mosquitto_config(self.config.broker, None, None)
        persistent = _PERSISTENT.format(folder=folder.resolve())
        (folder / "mosquitto.conf").write_text(text.replace("persistence false", persistent))
        self._spawn(BROKER, [program, "-c", str(folder / "mosquitto.conf")])
        self.wait_until("the broker accepts", self._broker_accepts, 20)

    def _broker_accepts(self) -> bool:
        try:
            socket.create_connection((_HOST, self.config.broker.port), timeout=1).close()
        except OSError:
            return False
        return True

    def start_aggregator(self) -> None:
        """Start the aggregator."""
        self._start("aggregator", AGGREGATOR, [])

    def start_gateway(self, name: str) -> None:
        """Start or restart a gateway."""
        self._start("gateway", name, ["--id", name])

    def start_node(self, name: str, index: int) -> None:
        """Start or restart a node; `index` is its share of the data."""
        self._start("node", name, ["--id", name, "--index", str(index)])

    def start_script(self, name: str, module: str, *arguments: str) -> None:
        """Start a module of this folder as a process."""
        self._spawn(name, [sys.executable, "-m", module, *arguments])

    def _start(self, role: str, name: str, rest: list[str]) -> None:
        own = self._own_config_file(name)
        command = [sys.executable, "-m", "hedgerow.cli", role]
        command += [str(own if own.exists() else self.config_file)]
        self._spawn(name, [*command, "--dir", str(self.folder / name), *rest])

    def _spawn(self, name: str, command: list[str]) -> None:
        with self.log(name).open("ab") as output:
            self.processes[name] = process = psutil.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**ORIGINAL_ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
        self._tell_watchdog("+", process.pid)

    def is_running(self, name: str) -> bool:
        """Whether a process is there, frozen or not."""
        process = self.processes.get(name)
        return process is not None and process.poll() is None

    def must_run(self, *names: str) -> None:
        """Raise BenchError, with the end of its log, when one of these has ended."""
        for name in names:
            if not self.is_running(name):
                raise BenchError(f"{name} has ended\n{self.tail(name)}")

    def kill(self, name: str, *, wipe: bool = False) -> None:
        """Kill -9, and delete the process's folder if asked."""
        process = self.processes.pop(name)
        self.frozen.discard(name)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(_STOP_S)
        self._tell_watchdog("-", process.pid)
        if wipe:
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def freeze(self, name: str) -> None:
        """Stop a process where it stands: its connections stay open and silent."""
        self.processes[name].send_signal(signal.SIGSTOP)
        self.frozen.add(name)

    def thaw(self, name: str) -> None:
        """Let a frozen process go on."""
        self.processes[name].send_signal(signal.SIGCONT)
        self.frozen.discard(name)

    def stop(self, names: Iterable[str]) -> None:
        """End processes together, gently first, and forget them."""
        chosen = [(name, self.processes.pop(name)) for name in names if name in self.processes]
        for name, process in chosen:
            if name in self.frozen:
                process.send_signal(signal.SIGCONT)
                self.frozen.discard(name)
            process.terminate()
        for _, process in chosen:
            try:
                process.wait(_STOP_S)
            except psutil.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(_STOP_S)
            self._tell_watchdog("-", process.pid)

    def stop_all(self) -> None:
        """Stop nodes, then gateways, the aggregator, the broker: each tier may still send upwards."""
        last = [name for name in self.processes if name in (AGGREGATOR, BROKER)]
        gateways = [name for name in self.processes if name.startswith("gw-")]
        first = [name for name in self.processes if name not in {*last, *gateways}]
        for names in (first, gateways, [AGGREGATOR], [BROKER]):
            self.stop(names)

    def revive(self, restart: Callable[[str], None]) -> list[str]:
        """Start again what ended by itself; returns the names of these."""
        dead = [name for name, process in self.processes.items() if process.poll() is not None]
        for name in dead:
            restart(name)
        return dead

    def log(self, name: str) -> Path:
        """Return the log of a process."""
        return self.folder / f"{name}.log"

    def tail(self, name: str) -> str:
        """Return the end of a process's log."""
        with suppress(OSError):
            return self.log(name).read_bytes()[-2000:].decode(errors="replace")
        return ""

    def status(self) -> Status | None:
        """Return the aggregator's picture of the fleet, None while it cannot be asked."""
        url = f"http://{_HOST}:{self.config.http.port}/v1/fleet"
        try:
            with _OPENER.open(url, timeout=5) as answer:
                return msgspec.json.decode(answer.read(), type=Status)
        except (OSError, urllib.error.URLError, msgspec.MsgspecError):
            return None

    def applied(self) -> int:
        """Return how many updates the aggregator has applied, -1 while it cannot be asked."""
        status = self.status()
        return status.updates_applied if status is not None else -1

    def wait_until(self, what: str, ready: Callable[[], bool], bound_s: float) -> None:
        """Wait for a condition; raises BenchError with the ends of all logs when it does not come."""
        deadline = time.monotonic() + bound_s
        while not ready():
            if time.monotonic() > deadline:
                logs = "\n".join(f"--- {name}\n{self.tail(name)}" for name in self.processes)
                raise BenchError(f"not within {bound_s:g} s: {what}\n{logs}")
            time.sleep(_PAUSE_S)

    def account(self, nodes: Iterable[str]) -> Account:
        """Check the conservation law from what is on the disks; call it when all has stopped."""
        return check_run(self.folder, nodes)

    def _tell_watchdog(self, sign: str, pid: int) -> None:
        if self._watchdog.stdin is not None:
            self._watchdog.stdin.write(f"{sign}{pid}\n".encode())
            self._watchdog.stdin.flush()


def free_port() -> int:
    """Return a port of the loopback interface that nobody listens on."""
    with socket.socket() as trial:
        trial.bind((_HOST, 0))
        port: int = trial.getsockname()[1]
        return port


def write_figures(figures: Mapping[str, Any], path: Path) -> None:
    """Write figures as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")
