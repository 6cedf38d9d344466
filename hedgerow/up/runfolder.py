"""The folder of a run: one lock, the state that outlives `hedgerow up`, and what children are given."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

import hedgerow
from hedgerow.core.config import Config
from hedgerow.core.errors import ConfigError
from hedgerow.runtime.configfile import find_config, load_config, write_config
from hedgerow.up.options import Options, apply_options
from hedgerow.up.poll import Point
from hedgerow.up.ports import Ports

CONFIG_FILE, STATE_FILE, LOCK_FILE = "config.json", "state.json", "lock"
_SAME_IN_ALL_SESSIONS = ("fleet", "data", "task", "plan")
_LARGEST_LOG_BYTES = 16 << 20


class RunState(Struct, kw_only=True):
    """What a later session needs to know. Times and counters are sums over the sessions so far."""

    hedgerow: str = hedgerow.__version__
    broker_port: int = 0
    http_port: int = 0
    module_folders: list[str] = []
    wall_s: float = 0.0
    cpu_s: float = 0.0
    restarts: dict[str, int] = {}
    traffic: dict[str, dict[str, int]] = {}
    curve: list[Point] = []


class RunFolder:
    """An open run. `state` is written back by `save`."""

    def __init__(self, path: Path, state: RunState) -> None:
        self.path = path
        self.state = state

    @property
    def config_file(self) -> Path:
        """The configuration that every child reads."""
        return self.path / CONFIG_FILE

    def write_config(self, config: Config) -> None:
        """Write what the children read."""
        write_config(config, self.config_file)

    def process(self, name: str) -> Path:
        """Return the folder of one process."""
        return self.path / name

    def log(self, name: str) -> Path:
        """Return a process's log file; one that has grown large makes room first."""
        log = self.process(name) / "log.txt"
        if log.exists() and log.stat().st_size > _LARGEST_LOG_BYTES:
            log.replace(log.with_name("log.1.txt"))
        return log

    def save(self) -> None:
        """Write the state durably."""
        file = self.path / STATE_FILE
        fresh = file.with_suffix(".new")
        with fresh.open("wb") as output:
            output.write(msgspec.json.format(msgspec.json.encode(self.state)))
            output.flush()
            os.fsync(output.fileno())
        fresh.replace(file)


@contextmanager
def open_run(options: Options) -> Iterator[tuple[RunFolder, Config]]:
    """Lock the run's folder and yield it with its configuration; `--fresh` and `--resume` are done here.

    Raises ConfigError when the folder is in use, holds something else, or is not what was asked for.
    """
    path = options.run_folder.resolve()
    if options.resume and not (path / STATE_FILE).exists():
        raise ConfigError(f"--resume: {path} holds no run; leave --resume out to begin one")
    if not options.resume and options.config is None:
        raise ConfigError("up: name a configuration, for example: hedgerow up demo")
    _check_ours(path)
    # Read before anything is deleted: a mistake in it must not cost the earlier run.
    config = _configuration(options, path)
    path.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        state = _state(path)
        if options.resume:
            _check_same(path, config)
        elif state is not None:
            if not options.fresh:
                raise ConfigError(
                    f"--dir: {path} holds an earlier run; add --resume to go on with it, or --fresh to"
                    " delete it"
                )
            _empty(path)
            state = None
        folder = RunFolder(path, state or RunState())
        if options.config is not None:
            here = find_config(options.config).parent.resolve()
            folder.state.module_folders = [str(here), str(Path.cwd())]
        yield folder, config


def settle_ports(folder: RunFolder, config: Config, ports: Ports) -> tuple[Config, list[str]]:
    """Return the configuration with ports that are free, those of the last session where possible.

    The second value says in sentences which configured port had to be another.
    """
    state, http, broker = folder.state, config.http, config.broker
    notices = []
    wanted = state.http_port or http.port
    state.http_port = ports.take(http.host, wanted)
    if wanted not in {0, state.http_port}:
        notices.append(f"port {wanted} is in use; the aggregator takes {state.http_port}")
    http = msgspec.structs.replace(http, port=state.http_port)
    if broker.kind != "external" and broker.port == 0:
        state.broker_port = ports.take(broker.host, state.broker_port)
        broker = msgspec.structs.replace(broker, port=state.broker_port)
    return msgspec.structs.replace(config, http=http, broker=broker), notices


def _configuration(options: Options, path: Path) -> Config:
    source = options.config if options.config is not None else path / CONFIG_FILE
    return apply_options(load_config(source), options)


def _check_ours(path: Path) -> None:
    """Refuse a folder with other things in it: `--fresh` would delete them."""
    if not path.exists():
        return
    if not path.is_dir():
        raise ConfigError(f"--dir: {path} is not a folder")
    strangers = [entry.name for entry in path.iterdir() if entry.name != LOCK_FILE]
    if strangers and not (path / STATE_FILE).exists():
        raise ConfigError(
            f"--dir: {path} holds {strangers[0]!r} and no run of ours; choose an empty or new folder"
        )


def _check_same(path: Path, config: Config) -> None:
    """A resumed run goes on with the same data and model; other tables may change."""
    earlier = load_config(path / CONFIG_FILE)
    for table in _SAME_IN_ALL_SESSIONS:
        before, now = getattr(earlier, table), getattr(config, table)
        for key in before.__struct_fields__:
            if getattr(before, key) != getattr(now, key):
                raise ConfigError(
                    f"--resume: {table}.{key} is {getattr(now, key)!r} but the run in {path} has"
                    f" {getattr(before, key)!r}; take that, or begin another run"
                )


def _state(path: Path) -> RunState | None:
    file = path / STATE_FILE
    if not file.exists():
        return None
    try:
        return msgspec.json.decode(file.read_bytes(), type=RunState)
    except msgspec.MsgspecError as error:
        raise ConfigError(f"--dir: {file} is not a run's state: {error}") from error


def _empty(path: Path) -> None:
    """Delete everything but the lock, the state last: what is left half-way is still known as ours."""
    entries = [entry for entry in path.iterdir() if entry.name not in {LOCK_FILE, STATE_FILE}]
    for entry in entries:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    (path / STATE_FILE).unlink()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with (path / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"--dir: {path} is in use by another `hedgerow up`; stop that one, or choose another"
            ) from None
        yield
