"""Nodes that roam while gateways restart and lose their disks: nothing is lost, in processes and simulated.

Each of the real nodes is bound to another gateway when it starts again, and all have to move when a gateway
is killed and its folder deleted.
"""

import itertools
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from aggregator.ledger import read_ledger
from bench.struck_fleet import AGGREGATOR, BROKER, StruckFleet
from hedgerow.runtime.mosquitto import find_program
from sims.clock import SECOND_US
from sims.measure import Meter
from sims.run import build_fleet, make_world
from sims.scenariofile import load_scenario, strategy_setup, with_overrides
from sims.traces import Traces

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

NODES = [f"node-{number:02d}" for number in range(1, 7)]
GATEWAYS = ["gw-1", "gw-2", "gw-3"]
TABLES: dict[str, Any] = {
    "fleet": {"site": "campus", "model": "digits", "nodes": len(NODES), "gateways": len(GATEWAYS)},
    "data": {"source": "digits", "split": "dirichlet", "alpha": 0.5},
    "task": {"name": "mlp", "outputs": 10, "options": {"hidden": [64]}},
    "plan": {"preset": "biases+last"},
    "training": {"passes": 1, "batch_size": 16},
    "aggregation": {"buffer_size": 4, "deadline_s": 3.0},
    "node": {"sleep_s": 0.3, "resend_s": 2.0},
    "gateway": {"flush_count": 2, "report_s": 0.5},
    "stop": {"max_versions": 1_000_000},
}
ENOUGH_APPLIED, DRAIN_S, READY_S = 100, 30, 60
STORM_S, STRIKE_S = 300, 1.5


class Campus:
    """Six nodes, three gateways, one broker; `strike` does the next thing on the list."""

    def __init__(self, fleet: StruckFleet) -> None:
        self.fleet = fleet
        self.struck: Counter[str] = Counter()
        self._random = random.Random(1)
        self._kinds = itertools.cycle(["roam", "wipe gateway", "roam", "kill gateway"])
        self._down = ""

    def begin(self) -> None:
        self.fleet.start_broker()
        self.fleet.start_aggregator()
        for name in GATEWAYS:
            self.fleet.start_gateway(name)
        for index, name in enumerate(NODES):
            self.fleet.own_config(name, "node", home=GATEWAYS[index % len(GATEWAYS)])
            self.fleet.start_node(name, index)
        self.fleet.wait_until("updates are applied", lambda: self.fleet.applied() > 0, READY_S)

    def strike(self) -> None:
        self.heal()
        kind = next(self._kinds)
        self.struck[kind] += 1
        if kind == "roam":
            index = self._random.randrange(len(NODES))
            self.fleet.kill(NODES[index])
            self.fleet.own_config(NODES[index], "node", home=self._random.choice([*GATEWAYS, ""]))
            self.fleet.start_node(NODES[index], index)
        else:
            self._down = self._random.choice(GATEWAYS)
            self.fleet.kill(self._down, wipe=kind == "wipe gateway")

    def heal(self) -> None:
        if self._down:
            self.fleet.start_gateway(self._down)
        self._down = ""

    def held(self) -> int:
        """Return how many updates nodes hold, as far as the aggregator has heard."""
        status = self.fleet.status()
        nodes = status.nodes if status is not None else []
        return sum(node.state.counters.get("outbox", 0) for node in nodes)


def test_processes_lose_nothing(tmp_path: Path) -> None:
    if find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed")
    with StruckFleet(tmp_path / "campus", TABLES) as fleet:
        campus = Campus(fleet)
        campus.begin()
        deadline = time.monotonic() + STORM_S
        while fleet.applied() < ENOUGH_APPLIED or campus.struck.total() < 8:
            assert time.monotonic() < deadline, campus.struck
            campus.strike()
            time.sleep(STRIKE_S)
        campus.heal()
        before = fleet.applied()
        fleet.wait_until("a fresh update lands", lambda: fleet.applied() > before, DRAIN_S)
        for names in (NODES, GATEWAYS, [AGGREGATOR, BROKER]):
            fleet.stop(names)
        account = fleet.account(NODES)
        rows = read_ledger(fleet.folder / AGGREGATOR)
    assert account.problems == []
    assert sum(node.applied for node in account.nodes) == len(rows) >= ENOUGH_APPLIED
    assert min(node.applied for node in account.nodes) > 0
    assert campus.struck["wipe gateway"] >= 2


def test_the_simulated_campus_loses_nothing() -> None:
    changes = {
        "scenario.duration_s": 5400.0,
        "scenario.evaluate_every_s": 500.0,
        "scenario.compute": "surrogate",
        "fleet.nodes": 12,
        "fleet.gateways": 4,
        "network.brokers": 4,
        "aggregation.buffer_size": 5,
        "faults.0.at_s": 600.0,
        "faults.2.every_s": 120.0,
        "faults.3.at_s": 300.0,
        "faults.3.every_s": 200.0,
        "devices.carried.roam_every_s": {"uniform": [60.0, 300.0]},
    }
    scenario = with_overrides(load_scenario("campus"), changes)
    strategy, config = strategy_setup(scenario, "ftte")
    world = make_world(scenario, config, scenario.scenario.seed)
    fleet = build_fleet(
        scenario, config, strategy, world, Traces(None), Meter(config.stop.metric, 1.0)
    )
    fleet.start()
    fleet.run_until_us(round(scenario.scenario.duration_s * SECOND_US))
    assert fleet.replay is not None
    fleet.replay.verify()
    fleet.watch.balance(node.disk for node in fleet.nodes)
    assert fleet.watch.violations == []
    assert len(fleet.ledger.ledger) >= ENOUGH_APPLIED
    lives = [gateway.process.life for gateway in fleet.gateways]
    assert max(lives) > 1, "no gateway came back"
