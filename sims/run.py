"""One strategy in one scenario and seed: from the scenario file to its figures."""

import random
from collections.abc import Callable

from msgspec.structs import replace

from aggregator.planner import first_plans
from hedgerow.core.config import Config
from hedgerow.core.costs import ModelCosts
from hedgerow.core.plan import choose_plan
from hedgerow.core.planbook import PlanSet
from hedgerow.core.strategy import Strategy
from hedgerow.core.units import Manifest
from sims.checks import Watch
from sims.clock import SECOND_US
from sims.devices import make_devices
from sims.faults import schedule
from sims.fleet import Blueprint, Fleet
from sims.links import make_link
from sims.measure import Meter
from sims.personal import node_values, personal_values
from sims.result import StrategyResult
from sims.scenario import Scenario
from sims.scenariofile import strategy_setup
from sims.sites import SiteMeter
from sims.surrogate import SurrogateTrainer
from sims.traces import Traces
from sims.world import FleetWorld, real_world

Progress = Callable[[float, int], None]
"""Is told the virtual seconds so far and the updates applied."""

_STEPS = 200


def run_strategy(
    scenario: Scenario, name: str, *, traces: Traces, progress: Progress = lambda *_: None
) -> StrategyResult:
    """Run one strategy of a scenario, with the scenario's seed, and return its figures.

    Raises ConfigError for a scenario that cannot be built, ViolationError when a promise is broken.
    """
    strategy, config = strategy_setup(scenario, name)
    seed = scenario.scenario.seed
    world = make_world(scenario, config, seed)
    metric = config.stop.metric if scenario.scenario.compute == "real" else "accuracy"
    meter = Meter(metric, scenario.scenario.target)
    fleet = build_fleet(scenario, config, strategy, world, traces, meter)
    sites = SiteMeter(fleet, metric, round(scenario.scenario.evaluate_every_s * SECOND_US))
    if scenario.scenario.sites:
        sites.begin()
    fleet.start()
    _run(fleet, scenario, meter, progress)
    result = _finish(fleet, world, meter, metric)
    return replace(result, sites=sites.curves if scenario.scenario.sites else [])


def make_world(scenario: Scenario, config: Config, seed: int) -> FleetWorld:
    """Return what is learnt and who learns it: real data and training, or the surrogate's."""
    if scenario.scenario.compute == "surrogate":
        parameters = scenario.scenario.surrogate_parameters
        return SurrogateTrainer(config.fleet.nodes, parameters, seed)
    return real_world(scenario, config, seed)


def node_names(count: int) -> list[str]:
    """Return the nodes' names: as many digits as the last one needs, at least two."""
    width = max(2, len(str(count)))
    return [f"node-{number:0{width}d}" for number in range(1, count + 1)]


def build_fleet(
    scenario: Scenario,
    config: Config,
    strategy: Strategy,
    world: FleetWorld,
    traces: Traces,
    meter: Meter,
) -> Fleet:
    """Return the fleet of a scenario, not yet started."""
    table, seed = scenario.scenario, scenario.scenario.seed
    devices = make_devices(scenario, node_names(config.fleet.nodes), seed, traces)
    link = scenario.links.get(scenario.network.gateway_link)
    rngs = [random.Random(f"{seed}:uplink:{n}") for n in range(config.fleet.gateways)]
    costs = world.costs() if config.plan.budget_bytes else None
    blueprint = Blueprint(
        config=config,
        strategy=strategy,
        plans=_plans(scenario, config, world.manifest, costs),
        params=world.initial_params(),
        devices=devices,
        gateway_links=[make_link(link, rng, traces) for rng in rngs],
        brokers=scenario.network.brokers,
        evaluate_every_us=round(table.evaluate_every_s * SECOND_US),
        seed=seed,
        replay=table.check,
        costs=costs,
    )
    fleet = Fleet(blueprint, world, watch=Watch(), evaluated=meter.evaluated)
    meter.fleet = fleet
    schedule(fleet, scenario.faults, traces, seed)
    return fleet


def _plans(
    scenario: Scenario, config: Config, manifest: Manifest, costs: ModelCosts | None
) -> PlanSet:
    if scenario.scenario.compute == "surrogate" and costs is None:
        return PlanSet(choose_plan(manifest, preset="all"))
    return first_plans(config, manifest, costs)


def _run(fleet: Fleet, scenario: Scenario, meter: Meter, progress: Progress) -> None:
    end_us = round(scenario.scenario.duration_s * SECOND_US)
    for step in range(1, _STEPS + 1):
        fleet.run_until_us(end_us * step // _STEPS)
        progress(fleet.loop.now_us / SECOND_US, len(fleet.ledger.ledger))
        if scenario.scenario.stop_at_target and meter.reached is not None:
            return


def _finish(fleet: Fleet, world: FleetWorld, meter: Meter, metric: str) -> StrategyResult:
    if fleet.replay is not None:
        fleet.stopwatch.measure("replay", fleet.replay.verify)
    fleet.watch.balance(node.disk for node in fleet.nodes)
    return meter.finish(
        node_values(fleet, world, metric),
        max(fleet.pool.peak_bytes.values(), default=0),
        personal_values(fleet, world, metric),
    )
