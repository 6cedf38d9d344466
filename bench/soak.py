"""Forty real nodes for half an hour, with random kills: does anything grow, is anything busy when idle?

Node, gateway and aggregator processes and Mosquitto run on this machine; now and then one of them is killed
and started again. Resident memory, open files, CPU time and bytes written of each are sampled. Then all nodes
are put to sleep, and the CPU time of the idle fleet is measured. In the end the conservation law is checked
from the disks. The exit code is 1 when the law is broken, a process grows without bound or is busy when idle.

Forty nodes need about 7 GB of memory. SOAK_S in the environment sets the length in seconds.
"""

import argparse
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bench.measure import BenchError, machine
from bench.soak_plot import draw
from bench.struck_fleet import AGGREGATOR, BROKER, StruckFleet, write_figures
from hedgerow.up.law import Account

OK, FAILED = 0, 1
SAMPLE_S, KILL_EVERY_S = 5.0, 10.0
IDLE_S, SETTLE_S = 60.0, 20.0
DRAIN_BOUND_S = 180.0
START_BOUND_S = 240.0
WARM_UP = 0.3
"""This share of a life is left out of its growth: caches fill and the allocator finds its size."""

LONG_LIFE_S = 300.0
"""Shorter lives say nothing about growth."""

BOUNDS = {
    "node": (64.0, 8.0),
    "gateway": (32.0, 8.0),
    "aggregator": (64.0, 8.0),
    "broker": (32.0, 8.0),
}
"""What a process of a role may grow in an hour: MB of resident memory, open files."""

IDLE_CPU = 0.01
"""The share of a core that an idle process may use."""

ROLES = {"node": "node-", "gateway": "gw-", "aggregator": AGGREGATOR, "broker": BROKER}


@dataclass
class Life:
    """One process from its start to its end: rows of seconds, RSS bytes, open files, CPU s, bytes written."""

    name: str
    role: str
    pid: int
    rows: list[tuple[float, int, int, float, int]] = field(default_factory=list)

    @property
    def length_s(self) -> float:
        """How long it was watched."""
        return self.rows[-1][0] - self.rows[0][0] if self.rows else 0.0

    def growth_per_hour(self, column: int) -> float:
        """Return the slope of a column after the warm-up, by least squares."""
        kept = np.array(self.rows[int(WARM_UP * len(self.rows)) :], np.float64)
        hours = kept[:, 0] / 3600
        return float(np.polyfit(hours - hours[0], kept[:, column], 1)[0])


class Watcher:
    """Samples every process of a fleet."""

    def __init__(self, fleet: StruckFleet) -> None:
        self.lives: dict[int, Life] = {}
        self._fleet = fleet
        self._began = time.monotonic()

    def sample(self) -> None:
        """Look at every process once."""
        at_s = time.monotonic() - self._began
        for name, process in list(self._fleet.processes.items()):
            with suppress(psutil.Error):
                life = self.lives.setdefault(process.pid, Life(name, role_of(name), process.pid))
                times = process.cpu_times()
                row = (process.memory_info().rss, process.num_fds(), times.user + times.system)
                life.rows.append((at_s, *row, process.io_counters().write_bytes))

    def written_bytes(self) -> dict[str, int]:
        """Return what reached the disks, by role, over all lives."""
        written: Counter[str] = Counter()
        for life in self.lives.values():
            written[life.role] += life.rows[-1][4]
        return dict(written)


def role_of(name: str) -> str:
    """Return the role of a process by its name."""
    return next(role for role, start in ROLES.items() if name.startswith(start))


class Killer:
    """Kills a random process every few seconds and starts it again a moment later; all from its seed."""

    def __init__(self, fleet: StruckFleet, start: dict[str, Callable[[], None]], seed: int) -> None:
        self.kills: Counter[str] = Counter()
        self.unexpected: list[str] = []
        self._fleet = fleet
        self._start = start
        self._random = random.Random(seed)
        self._due_s = time.monotonic() + KILL_EVERY_S
        self._down: dict[str, float] = {}

    def step(self) -> None:
        """Do what is due, and start again what fell over by itself."""
        now = time.monotonic()
        for name in [name for name, due in self._down.items() if due <= now]:
            del self._down[name]
            self._start[name]()
        self.unexpected += self._fleet.revive(lambda name: self._start[name]())
        if now >= self._due_s:
            self._due_s = now + self._random.uniform(0.5, 1.5) * KILL_EVERY_S
            self._strike()

    def end(self) -> None:
        """Start what is down."""
        for name in sorted(self._down):
            self._start[name]()
        self._down.clear()

    def _strike(self) -> None:
        # Nodes are many: half of the strikes are theirs, the others go to the few.
        names = sorted(self._fleet.processes)
        nodes = [name for name in names if role_of(name) == "node"]
        rest = [name for name in names if role_of(name) != "node"]
        chosen = self._random.choice(
            self._random.choice([group for group in (nodes, rest) if group])
        )
        self._fleet.kill(chosen)
        self.kills[role_of(chosen)] += 1
        self._down[chosen] = time.monotonic() + self._random.uniform(0.5, 5.0)


def tables(nodes: int, gateways: int) -> dict[str, Any]:
    """Return the configuration: the demo's task at the pace of a fleet in the field, only faster."""
    return {
        "fleet": {
            "site": "soak",
            "model": "digits",
            "seed": 1,
            "nodes": nodes,
            "gateways": gateways,
        },
        "data": {"source": "digits", "split": "dirichlet", "alpha": 1.0},
        "task": {"name": "mlp", "outputs": 10, "options": {"hidden": [64]}},
        "plan": {"preset": "biases+last"},
        "training": {"passes": 1, "batch_size": 16},
        "aggregation": {"buffer_size": 10, "deadline_s": 20.0},
        "node": {"sleep_s": 5.0, "resend_s": 10.0},
        "gateway": {"report_s": 5.0},
        "stop": {"max_versions": 1_000_000},
    }


class Soak:
    """One run. `say` shows progress."""

    def __init__(self, fleet: StruckFleet, options: argparse.Namespace) -> None:
        self.fleet = fleet
        self.options = options
        self.nodes = [f"node-{number:02d}" for number in range(1, options.nodes + 1)]
        self.gateways = [f"gw-{number}" for number in range(1, options.gateways + 1)]
        self.start: dict[str, Callable[[], None]] = {
            BROKER: fleet.start_broker,
            AGGREGATOR: fleet.start_aggregator,
        }
        for name in self.gateways:
            self.start[name] = lambda name=name: fleet.start_gateway(name)  # type: ignore[misc]
        for index, name in enumerate(self.nodes):
            self.start[name] = lambda name=name, index=index: fleet.start_node(name, index)  # type: ignore[misc]

    def begin(self) -> None:
        """Start everybody, nodes a few at a time: each compiles first."""
        for name in (BROKER, AGGREGATOR, *self.gateways):
            self.start[name]()
        self.fleet.wait_until("the aggregator serves", lambda: self.fleet.applied() >= 0, 90)
        for name in self.nodes:
            self.start[name]()
            time.sleep(0.5)
        self.fleet.wait_until("all nodes contribute", self._all_contribute, START_BOUND_S)

    def _all_contribute(self) -> bool:
        status = self.fleet.status()
        seen = status.nodes if status is not None else []
        return sum(node.state.counters.get("issued", 0) > 0 for node in seen) >= len(self.nodes)

    def rage(self, watcher: Watcher, killer: Killer, bar: Progress) -> None:
        """Kill and sample for the asked time."""
        task = bar.add_task("soak", total=self.options.seconds, note="")
        began = sampled = time.monotonic()
        while (elapsed := time.monotonic() - began) < self.options.seconds:
            killer.step()
            if time.monotonic() - sampled >= SAMPLE_S:
                sampled = time.monotonic()
                watcher.sample()
            note = f"{killer.kills.total()} kills, {self.fleet.applied()} updates applied"
            bar.update(task, completed=elapsed, note=note)
            time.sleep(0.5)

    def rest(self) -> dict[str, float]:
        """Put all nodes to sleep and return each process's share of a core while nothing happens."""
        for name in self.nodes:
            self.fleet.own_config(name, "node", sleep_s=3600.0)
        self.fleet.stop(self.nodes)
        for name in self.nodes:
            self.start[name]()
            time.sleep(0.3)
        self.fleet.wait_until("the nodes are quiet", self._all_quiet, DRAIN_BOUND_S)
        time.sleep(SETTLE_S)
        before, began = self._cpu_s(), time.monotonic()
        time.sleep(self.options.idle)
        took_s = time.monotonic() - began
        return {name: (cpu - before[name]) / took_s for name, cpu in self._cpu_s().items()}

    def _all_quiet(self) -> bool:
        """Whether no node trains or holds anything: each makes at most one update before it sleeps."""
        status = self.fleet.status()
        states = (
            {node.state.node: node.state for node in status.nodes} if status is not None else {}
        )
        quiet = [
            state
            for state in states.values()
            if state.state in ("ready", "sleeping") and not state.counters.get("outbox", 0)
        ]
        return len(quiet) >= len(self.nodes)

    def _cpu_s(self) -> dict[str, float]:
        out = {}
        for name, process in self.fleet.processes.items():
            times = process.cpu_times()
            out[name] = float(times.user + times.system)
        return out

    def drain(self) -> None:
        """Give the nodes time to see what they hold settled."""
        with suppress(BenchError):
            self.fleet.wait_until("outboxes drain", self._all_quiet, DRAIN_BOUND_S)


def growth(watcher: Watcher) -> dict[str, dict[str, Any]]:
    """Return by role how much its long lives grow per hour, the fastest of them, and against which bound.

    A single life's slope is noisy; the median over the lives of a role is what is held against the bound.
    """
    out: dict[str, dict[str, Any]] = {}
    for role, (most_mb, most_files) in BOUNDS.items():
        lives = [life for life in watcher.lives.values() if life.role == role]
        long = [life for life in lives if life.length_s >= LONG_LIFE_S]
        rss = [life.growth_per_hour(1) / 1e6 for life in long]
        files = [life.growth_per_hour(2) for life in long]
        out[role] = {
            "lives": len(lives),
            "long_lives": len(long),
            "rss_mb_median": _rounded([life.rows[-1][1] / 1e6 for life in lives if life.rows]),
            "rss_mb_per_hour": _rounded(rss),
            "rss_mb_per_hour_most": round(max(rss, default=0.0), 2),
            "files_median": _rounded([float(life.rows[-1][2]) for life in lives if life.rows]),
            "files_per_hour": _rounded(files),
            "bounded": bool(
                not long or (np.median(rss) <= most_mb and np.median(files) <= most_files)
            ),
        }
    return out


def _rounded(values: Sequence[float]) -> float:
    return round(float(np.median(values)), 2) if values else 0.0


def verdict(figures: dict[str, Any]) -> list[str]:
    """Return in sentences what is not as it should be."""
    problems = [f"law: {problem}" for problem in figures["problems"]]
    problems += [f"{role} grows" for role, one in figures["growth"].items() if not one["bounded"]]
    busy = {name: cpu for name, cpu in figures["idle_cpu"].items() if cpu >= IDLE_CPU}
    problems += [f"{name} is idle and uses {cpu:.2%} of a core" for name, cpu in busy.items()]
    problems += [f"{name} fell over by itself" for name in figures["fell_over"]]
    if figures["applied"] == 0 or sum(figures["kills"].values()) == 0:
        problems.append("nothing was applied or nobody was killed: this proves nothing")
    return problems


def run(folder: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run all of it and return the figures. Raises BenchError when something does not come up."""
    columns = [TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()]
    with StruckFleet(folder, tables(options.nodes, options.gateways)) as fleet:
        soak = Soak(fleet, options)
        soak.begin()
        watcher, killer = Watcher(fleet), Killer(fleet, soak.start, options.seed)
        with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
            soak.rage(watcher, killer, bar)
        watcher.sample()
        killer.end()
        console.print("everybody is back; nodes are put to sleep, and watched")
        idle = soak.rest()
        soak.drain()
        fleet.stop_all()
        account = fleet.account(soak.nodes)
    draw(watcher.lives.values(), options.json.with_suffix(".png"))
    return _figures(account, watcher, killer, options) | {
        "idle_cpu": {name: round(cpu, 5) for name, cpu in sorted(idle.items())}
    }


def _figures(
    account: Account, watcher: Watcher, killer: Killer, options: argparse.Namespace
) -> dict[str, Any]:
    terms = ("issued", "applied", "rejected", "expired", "coalesced", "outbox")
    sums = {term: sum(getattr(node, term, 0) for node in account.nodes) for term in terms}
    hours = options.seconds / 3600
    written = watcher.written_bytes()
    return {
        "seconds": options.seconds,
        "nodes": options.nodes,
        "gateways": options.gateways,
        "kills": dict(sorted(killer.kills.items())),
        "fell_over": killer.unexpected,
        **sums,
        "problems": account.problems,
        "growth": growth(watcher),
        "written_mb_per_hour": {role: round(n / 1e6 / hours, 1) for role, n in written.items()},
        "machine": machine(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write the figures; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__)
    usual_s = float(os.environ.get("SOAK_S", "1800"))
    parser.add_argument("--seconds", type=float, default=usual_s)
    parser.add_argument("--idle", type=float, default=IDLE_S, help="seconds of rest watched")
    parser.add_argument("--nodes", type=int, default=40)
    parser.add_argument("--gateways", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("runs/soak.json"))
    options = parser.parse_args(arguments)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="hedgerow-soak-") as folder:
        try:
            figures = run(Path(folder) / "fleet", options, console)
        except BenchError as error:
            console.print(f"soak: {error}", markup=False)
            return FAILED
    figures["verdict"] = problems = verdict(figures)
    write_figures(figures, options.json)
    console.print_json(data={k: v for k, v in figures.items() if k not in ("machine", "idle_cpu")})
    idle = figures["idle_cpu"].values()
    console.print(f"idle: at most {max(idle):.2%} of a core; written to {options.json}")
    for problem in problems:
        console.print(f"PROBLEM {problem}", markup=False)
    return FAILED if problems else OK


if __name__ == "__main__":
    sys.exit(main())
