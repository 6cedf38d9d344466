"""A broker that is killed twenty times while gateways are away half of the time: is an update lost?

Mosquitto, an aggregator and gateways are real processes; light nodes are real node protocols that only
pretend to train. After every other kill the broker's database is gone. Each gateway is away half of the time,
killed or frozen in turn. When all updates are made, everybody comes back and the outboxes drain. The books of
the nodes and the ledger then say what was lost or applied twice; the exit code is 1 if anything was.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from bench.light_nodes import name_of, shapes_of
from bench.light_outboxes import Report
from bench.measure import BenchError, machine
from bench.struck_fleet import AGGREGATOR, BROKER, StruckFleet, write_figures
from bench.subjects import Subject
from hedgerow.up.law import Account

LIGHT = "light"
SUBJECT = Subject("broker kills", 32, "int8")
NODES, KILLS = 40, 20
BROKER_AWAY_S = 1.0
AWAY_S = (2.0, 5.0)
"""A gateway is away, and there, for between so many seconds."""

BOUND_S, DRAIN_BOUND_S = 1200.0, 180.0
OK, FAILED = 0, 1


@dataclass
class Swing:
    """One gateway's coming and going."""

    name: str
    turn_s: float
    away: bool = False
    turns: int = 0
    away_s: float = 0.0


class Hardship:
    """Kills the broker as updates are made, and takes gateways away; everything from its seed."""

    def __init__(self, fleet: StruckFleet, gateways: Sequence[str], kills: int, seed: int) -> None:
        self.kills = 0
        self.wipes = 0
        self.struck: Counter[str] = Counter()
        self._fleet = fleet
        self._wanted = kills
        self._random = random.Random(seed)
        now = time.monotonic()
        self._swings = [Swing(name, now + self._random.uniform(*AWAY_S)) for name in gateways]
        self._began = now
        self._ended = now

    @property
    def away_share(self) -> float:
        """The share of the time that gateways were away, on average."""
        whole_s = (self._ended - self._began) * len(self._swings)
        return sum(swing.away_s for swing in self._swings) / whole_s if whole_s else 0.0

    def step(self, progress: float) -> None:
        """Do what is due; `progress` is the share of all updates that are made."""
        self._ended = time.monotonic()
        for swing in self._swings:
            if self._ended >= swing.turn_s:
                self._swing(swing)
        if progress * (self._wanted + 1) >= self.kills + 1 and self.kills < self._wanted:
            self._kill_broker()

    def end(self) -> None:
        """Bring everybody back."""
        for swing in self._swings:
            if swing.away:
                self._swing(swing)

    def _swing(self, swing: Swing) -> None:
        fleet, wait_s = self._fleet, self._random.uniform(*AWAY_S)
        swing.turn_s = time.monotonic() + wait_s
        if swing.away:
            if swing.name in fleet.frozen:
                fleet.thaw(swing.name)
            else:
                fleet.start_gateway(swing.name)
            swing.away = False
            return
        swing.away, swing.turns = True, swing.turns + 1
        swing.away_s += wait_s
        if swing.turns % 2:
            fleet.kill(swing.name)
            self.struck["gateway killed"] += 1
        else:
            fleet.freeze(swing.name)
            self.struck["gateway frozen"] += 1

    def _kill_broker(self) -> None:
        self.kills += 1
        wipe = self.kills % 2 == 0
        self.wipes += wipe
        self._fleet.kill(BROKER, wipe=wipe)
        time.sleep(BROKER_AWAY_S)
        self._fleet.start_broker()


def tables(nodes: int, gateways: int) -> dict[str, Any]:
    """Return the configuration: a small model, ten updates a version, short patience."""
    return SUBJECT.tables() | {
        "fleet": {"site": "bench", "model": "bench", "nodes": nodes, "gateways": gateways},
        "plan": {"preset": "biases+last"},
        # What a frozen gateway holds must not grow too old meanwhile: what is asked is whether it gets lost.
        "staleness": {"tau_max": 200},
        "aggregation": {"buffer_size": 10, "deadline_s": 5.0},
        "node": {"sleep_s": 1.0, "resend_s": 4.0},
        "gateway": {"flush_count": 4, "report_s": 1.0},
    }


def run(folder: Path, options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run all of it and return the figures. Raises BenchError when something does not come up."""
    gateways = [f"gw-{number}" for number in range(1, options.gateways + 1)]
    with StruckFleet(folder, tables(options.nodes, options.gateways)) as fleet:
        fleet.start_broker()
        fleet.start_aggregator()
        fleet.wait_until("the aggregator serves", lambda: fleet.applied() >= 0, 90)
        for name in gateways:
            fleet.start_gateway(name)
        report_file = _start_light(fleet, options)
        began = time.monotonic()
        hardship = Hardship(fleet, gateways, options.kills, options.seed)
        issued = _until_issued(fleet, hardship, report_file, options.updates, console)
        hardship.end()
        healed = time.monotonic()
        _drain(fleet, report_file)
        drained = time.monotonic()
        fleet.stop([LIGHT, *gateways, AGGREGATOR])
        report = _read(report_file)
        account = fleet.account(map(name_of, range(options.nodes)))
    figures = _figures(account, report)
    return figures | {
        "asked": options.updates,
        "issued_under_faults": issued,
        "broker_kills": hardship.kills,
        "broker_databases_deleted": hardship.wipes,
        "gateways": len(gateways),
        "gateways_away_share": round(hardship.away_share, 3),
        **{what.replace(" ", "s_"): count for what, count in sorted(hardship.struck.items())},
        "seconds": round(drained - began, 1),
        "seconds_to_drain_after_heal": round(drained - healed, 1),
    }


def _start_light(fleet: StruckFleet, options: argparse.Namespace) -> Path:
    report = fleet.folder / "light.report"
    arguments = ["--count", str(options.nodes), "--quota", str(options.updates // options.nodes)]
    arguments += ["--shapes", shapes_of(SUBJECT.plan.manifest), "--report", str(report)]
    arguments += ["--folder", str(fleet.folder)]
    fleet.start_script(LIGHT, "bench.light_outboxes", str(fleet.config_file), *arguments)
    fleet.wait_until("the light nodes report", report.exists, 60)
    return report


def _until_issued(
    fleet: StruckFleet, hardship: Hardship, file: Path, updates: int, console: Console
) -> int:
    deadline, said = time.monotonic() + BOUND_S, -1
    while True:
        fleet.must_run(LIGHT, AGGREGATOR)
        issued = _read(file).issued
        if 10 * issued // updates > said:
            said = 10 * issued // updates
            console.print(f"{issued} of {updates} issued, {hardship.kills} kills of the broker")
        if issued >= updates:
            return issued
        if time.monotonic() > deadline:
            raise BenchError(f"only {issued} of {updates} updates were made in {BOUND_S:g} s")
        hardship.step(issued / updates)
        time.sleep(0.1)


def _drain(fleet: StruckFleet, file: Path) -> None:
    fleet.wait_until("all outboxes are empty", lambda: _read(file).held == 0, DRAIN_BOUND_S)


def _read(file: Path) -> Report:
    return msgspec.msgpack.decode(file.read_bytes(), type=Report)


def _figures(account: Account, report: Report) -> dict[str, Any]:
    terms = ("issued", "applied", "rejected", "expired", "coalesced", "outbox")
    sums = {term: sum(getattr(node, term) for node in account.nodes) for term in terms}
    ends = sum(sums[term] for term in terms[1:])
    return {
        **sums,
        "lost": sums["issued"] - ends,
        "duplicates_applied": sum(problem.startswith("C1") for problem in account.problems),
        "bodies_sent": round(report.bodies),
        "retransmission_share": round(report.bodies / max(report.issued, 1) - 1, 4),
        "problems": account.problems,
    }


def is_kept(figures: dict[str, Any]) -> bool:
    """Whether nothing was lost or applied twice, and the run was what it is about."""
    sound = not figures["problems"] and figures["lost"] == figures["duplicates_applied"] == 0
    return sound and figures["broker_kills"] > 0 and figures["applied"] >= 0.9 * figures["asked"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print and write the figures; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.broker_kills", description=__doc__)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--gateways", type=int, default=2)
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=Path("runs/broker_kills.json"))
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    with tempfile.TemporaryDirectory(prefix="hedgerow-kills-") as folder:
        try:
            figures = run(Path(folder) / "fleet", options, console)
        except BenchError as error:
            console.print(f"broker_kills: {error}", markup=False)
            return FAILED
    figures["machine"] = machine()
    write_figures(figures, options.json)
    console.print_json(json.dumps({k: v for k, v in figures.items() if k != "machine"}))
    return OK if is_kept(figures) else FAILED


if __name__ == "__main__":
    sys.exit(main())
