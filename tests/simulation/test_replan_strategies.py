"""Every strategy keeps its promises while the plan changes: replayed bit by bit, nothing lost."""

from pathlib import Path

import pytest

from sims.measure import Meter
from sims.run import build_fleet, make_world
from sims.scenariofile import load_scenario, strategy_setup
from sims.strategies import STRATEGIES
from sims.traces import Traces

SCENARIO = """
[scenario]
name = "living"
duration_s = 900.0
evaluate_every_s = 20.0
target = 0.9
compute = "surrogate"
surrogate_parameters = 64

[fleet]
nodes = 6
gateways = 2

[data]
source = "digits"

[node]
sleep_s = 5.0

[aggregation]
buffer_size = 3
deadline_s = 30.0

[[devices]]
name = "any"
mflop_per_s = 20.0
"""
# Under these settings the measured values soon beat the first plan, which is the last units that fit.
PLAN = """
[strategies.{name}.config.plan]
budget_bytes = 700
replan_versions = 4
warmup_versions = 0
hysteresis = 0.0
probe_share = 1.0
"""


@pytest.mark.parametrize("name", STRATEGIES)
def test_plans_change_under_every_strategy(name: str, tmp_path: Path) -> None:
    file = tmp_path / "living.toml"
    head = SCENARIO.replace("[fleet]", f'strategies = ["{name}"]\n\n[fleet]')
    file.write_text(head + PLAN.format(name=name))
    scenario = load_scenario(file)
    strategy, config = strategy_setup(scenario, name)
    world = make_world(scenario, config, 1)
    meter = Meter("accuracy", 0.9)
    fleet = build_fleet(scenario, config, strategy, world, Traces(None), meter)
    fleet.start()
    fleet.run_until_us(900_000_000)
    assert fleet.replay is not None
    fleet.replay.verify()
    fleet.watch.balance(node.disk for node in fleet.nodes)
    assert fleet.watch.violations == []
    assert fleet.aggregator.recorder.events["probe_taken"] > 6
    newest = fleet.ledger.descriptors[fleet.ledger.version]
    # No plan but a later one could change what the first one leaves out.
    left_out = sorted(newest.units.keys() - set(fleet.blueprint.plans.widest.names))
    assert left_out
    assert any(newest.units[name].changed > 0 for name in left_out)
    last = world.evaluate(fleet.ledger.params[fleet.ledger.version])["accuracy"]
    assert last > world.evaluate(world.initial_params())["accuracy"]
