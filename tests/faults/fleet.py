"""A small fleet of real processes whose every link, disk and clock is in the hands of the test."""

import io
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import tarfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from hedgerow.core.config import BrokerConfig
from hedgerow.core.messages import UpdateId
from hedgerow.custody.books import read_node
from hedgerow.custody.errors import CustodyError
from hedgerow.custody.folders import LEDGER
from hedgerow.runtime.mosquitto import find_program, mosquitto_config, write_private
from tests.faults.links import Link, LinkThread
from tests.faults.role import REPOSITORY, Role

AGGREGATOR, BROKER = "aggregator", "broker"
START_S = 90.0
DRAIN_S = 60.0
"""How long after the last fault everything may take to be settled."""

_BUSY = 4
_POLL_S = 0.05
_BASE: dict[str, dict[str, Any]] = {
    "fleet": {"site": "test", "model": "digits"},
    "data": {"source": "digits", "split": "dirichlet", "alpha": 10.0},
    "task": {"outputs": 10, "options": {"hidden": [16]}},
    "plan": {"preset": "all"},
    "training": {"learning_rate": 0.1, "batch_size": 64},
    "aggregation": {"buffer_size": 2, "deadline_s": 1.0, "checkpoint_versions": 1_000_000},
    "node": {"sleep_s": 0.05, "resend_s": 1.0},
    "gateway": {
        "flush_count": 2,
        "flush_s": 0.2,
        "report_s": 0.5,
        "spool_after_s": 1.0,
        "held_updates": 32,
        "held_bytes": 1 << 20,
    },
    "broker": {"kind": "external", "keepalive_s": 2},
    "http": {"timeout_s": 4.0},
    "stop": {"max_versions": 1_000_000},
    "logs": {"level": "debug"},
}
Overrides = Mapping[str, Mapping[str, Any]]


class NotHereError(Exception):
    """This machine lacks what the fault is made with; the text says what."""


@dataclass(frozen=True)
class Setup:
    """How large a fleet is, and what its configuration says beyond the usual.

    `tmpfs` are processes whose folders are on a small disk of their own, with its bytes. With `commit`
    everything begins with the code of that commit.
    """

    nodes: int = 2
    gateways: int = 1
    overrides: Overrides = field(default_factory=dict)
    tmpfs: Mapping[str, int] = field(default_factory=dict)
    commit: str = ""


@dataclass(frozen=True)
class Mark:
    """What one node has issued and holds at one moment."""

    epoch: int
    issued: int
    held: frozenset[int]


class Fleet:
    """Broker, aggregator, gateways and nodes in `folder`. Every client has a link of its own.

    `links` are those to the broker by process, `uplinks` those of the gateways to the aggregator.
    `ended` are folders of nodes' epochs that are over, for the books; `strangers` are senders without any.
    """

    def __init__(self, folder: Path, setup: Setup) -> None:
        if find_program("mosquitto") is None:
            raise NotHereError("mosquitto is not installed")
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.setup = setup
        self.nodes = [f"node-{number:02d}" for number in range(1, setup.nodes + 1)]
        self.gateways = [f"gw-{number}" for number in range(1, setup.gateways + 1)]
        self.ended: list[Path] = []
        self.strangers: set[str] = set()
        self.tables = self._tables(setup)
        self._thread = LinkThread()
        self.http_port = _free_port()
        self.broker_port = _free_port()
        self.links = {name: self._link(self.broker_port) for name in (*self.nodes, *self.gateways)}
        self.uplinks = {name: self._link(self.http_port, mqtt=False) for name in self.gateways}
        self.roles = self._roles()
        for name, size_bytes in setup.tmpfs.items():
            _mount_tmpfs(folder / name, size_bytes)
        if setup.commit:
            former = export(setup.commit, folder / "former")
            for role in self.roles.values():
                role.source = former

    def start(self) -> None:
        """Start everything and wait until each node has had an update applied."""
        for role in self.roles.values():
            role.start()
        self.until(lambda: all(self.applied(node) for node in self.nodes), START_S, "first updates")

    def stop(self) -> None:
        """Stop nodes first, then upwards, as a person would."""
        for name in (*self.nodes, *self.gateways, AGGREGATOR, BROKER):
            self.roles[name].stop()

    def close(self) -> None:
        """Leave nothing running, whatever has happened."""
        for role in self.roles.values():
            role.kill()
        for link in (*self.links.values(), *self.uplinks.values()):
            link.close()
        self._thread.close()
        for name in self.setup.tmpfs:
            subprocess.run(["umount", str(self.folder / name)], check=False)  # noqa: S607 - as mount

    def __getitem__(self, name: str) -> Role:
        return self.roles[name]

    def heal(self) -> None:
        """Take every fault of the links back, and start what does not run."""
        for link in (*self.links.values(), *self.uplinks.values()):
            link.heal()
        for role in self.roles.values():
            if not role.running:
                role.start()

    def until(self, condition: Callable[[], bool], bound_s: float, what: str) -> float:
        """Wait for a condition; returns the seconds it took.

        Fails beyond the bound, of which a machine that is shared may take the multiple.
        """
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > _BUSY * bound_s:
                tails = "\n".join(f"{role.name}: {role.tail()}" for role in self.roles.values())
                raise AssertionError(f"not within {bound_s:g} s: {what}\n{tails}")
            time.sleep(_POLL_S)
        return time.monotonic() - began

    def probe(self, bound_s: float = DRAIN_S) -> float:
        """Check liveness (C5): all that is held now is settled, and a fresh update of each node lands.

        Returns the seconds it took.
        """
        marks = {node: self.mark(node) for node in self.nodes}
        return self.until(lambda: self._all_passed(marks), bound_s, f"drained: {marks}")

    def mark(self, node: str) -> Mark:
        """Return what a node's disk says of its current epoch; 0 and nothing where there is none."""
        with suppress(CustodyError, TypeError):
            for book in read_node(self.folder / node):
                if not book.ended:
                    held = frozenset(seq for seq, row in book.rows.items() if not row.outcome)
                    return Mark(book.epoch, max(book.rows, default=0), held)
        return Mark(0, 0, frozenset())

    def applied(self, node: str) -> set[tuple[int, int]]:
        """Return (epoch, seq) of a node's rows in the ledger."""
        return {(one.epoch, one.seq) for one in self.ledger() if one.node == node}

    def ledger(self) -> list[UpdateId]:
        """Return the ids in the ledger, the oldest first."""
        return [UpdateId(*row) for row in self._ask("SELECT node, epoch, seq FROM ledger")]

    def versions(self) -> dict[int, bytes]:
        """Return every version in the ledger with its descriptor's bytes."""
        return dict(self._ask("SELECT version, descriptor FROM versions"))

    def status(self) -> dict[str, Any]:
        """Return what the aggregator says; raises OSError while it cannot be asked."""
        with urllib.request.urlopen(self.url("/v1/fleet"), timeout=3) as reply:  # noqa: S310 - ours
            found: dict[str, Any] = json.load(reply)
        return found

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http_port}{path}"

    @property
    def duplicates(self) -> int:
        """Bodies that were on a link once more, and updates posted once more to the aggregator."""
        repeats = sum(link.tap.repeats for link in self.links.values())
        answered = self[AGGREGATOR].events
        return repeats + sum(answered("partial_answered", how) for how in ("known", "overlap"))

    def keep(self, node: str) -> Path:
        """Copy a stopped node's folder aside, as it would be on an SD card's image."""
        assert not self[node].running
        copy = self.folder / f"{node}.image-{len(list(self.folder.glob('*.image-*')))}"
        shutil.copytree(self.folder / node, copy)
        return copy

    def write_config(self, name: str, overrides: Overrides | None = None) -> Path:
        """Write the configuration of one process and return the file."""
        tables = _merged(self.tables, overrides or {})
        gateway = name if name in self.gateways else self.gateways[0]
        link = self.links.get(name)
        tables["broker"]["port"] = self.broker_port if link is None else link.port
        tables["http"]["port"] = self.http_port
        tables["http"]["url"] = f"http://127.0.0.1:{self.uplinks[gateway].port}"
        file = self.folder / f"{name}.json"
        file.write_text(json.dumps(tables))
        return file

    def _tables(self, setup: Setup) -> dict[str, dict[str, Any]]:
        size = {"fleet": {"nodes": setup.nodes, "gateways": setup.gateways}}
        tables = _merged(_merged(_BASE, size), setup.overrides)
        if setup.commit:
            # A release refuses keys that came after it.
            tables["gateway"].pop("spool_after_s")
        return tables

    def _link(self, target: int, *, mqtt: bool = True) -> Link:
        return Link(self._thread, target, mqtt=mqtt)

    def _roles(self) -> dict[str, Role]:
        roles = {BROKER: self._broker(), AGGREGATOR: self._role(AGGREGATOR, AGGREGATOR)}
        for name in self.gateways:
            roles[name] = self._role("gateway", name, "--id", name)
        for index, name in enumerate(self.nodes):
            roles[name] = self._role("node", name, "--id", name, "--index", str(index))
        return roles

    def _role(self, role: str, name: str, *rest: str) -> Role:
        folder = self.folder / name
        command = [sys.executable, "-m", "hedgerow.cli", role, str(self.write_config(name))]
        command += ["--dir", str(folder), *rest]
        return Role(name, command, folder, self.folder / f"{name}.log")

    def _broker(self) -> Role:
        settings = msgspec.convert(
            {**self.tables["broker"], "port": self.broker_port}, BrokerConfig
        )
        file = self.folder / "mosquitto.conf"
        write_private(file, mosquitto_config(settings, None, None))
        command = [str(find_program("mosquitto")), "-c", str(file)]
        return Role(BROKER, command, self.folder, self.folder / "broker.log")

    def _all_passed(self, marks: Mapping[str, Mark]) -> bool:
        landed = self.ledger()
        return all(self._passed(node, mark, landed) for node, mark in marks.items())

    def _passed(self, node: str, mark: Mark, landed: list[UpdateId]) -> bool:
        """Whether what a node held is settled and something newer has been applied."""
        now = self.mark(node)
        same = now.epoch == mark.epoch
        fresh = {one.seq for one in landed if (one.node, one.epoch) == (node, now.epoch)}
        newest = mark.issued if same else 0
        return not (same and mark.held & now.held) and max(fresh, default=0) > newest

    def _ask(self, query: str) -> list[Any]:
        """Ask the ledger's file, which the aggregator may have open."""
        uri = f"file:{self.folder / AGGREGATOR / LEDGER}?mode=ro"
        with suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True)) as connection:
            return connection.execute(query).fetchall()
        return []


@contextmanager
def running(folder: Path, setup: Setup) -> Iterator[Fleet]:
    """A fleet that has begun to learn; nothing of it is left at the end."""
    fleet = Fleet(folder, setup)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.close()


def _merged(tables: Overrides, overrides: Overrides) -> dict[str, dict[str, Any]]:
    names = sorted({*tables, *overrides})
    return {name: {**tables.get(name, {}), **overrides.get(name, {})} for name in names}


def export(commit: str, folder: Path) -> Path:
    """Write the files of a commit to a folder and return it."""
    archive = subprocess.run(
        ["git", "archive", commit],  # noqa: S607 - wherever git is
        cwd=REPOSITORY,
        capture_output=True,
        check=False,
    )
    if archive.returncode:
        raise NotHereError(f"the history does not go back to {commit}")
    folder.mkdir()
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def _mount_tmpfs(folder: Path, size_bytes: int) -> None:
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "none", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NotHereError(f"a small disk cannot be mounted: {done.stderr.strip()}")


def _free_port() -> int:
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        port: int = trial.getsockname()[1]
        return port
