"""Child process: one plan on one model's fleet, simulated for so many updates; prints its figures as JSON.

With `--plan basis` it measures what a usual training step of the whole model needs, which budgets are shares
of.
"""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.plan_choices import CHOICES, Question
from edge_node.design import StageMap, StepDesign
from edge_node.jitcache import jit_cache
from edge_node.trainer import Trainer
from edge_node.ways import Ways
from hedgerow.core.config import SEARCHED_GROUPS
from hedgerow.core.effects import Probe, Probed, Train, Trained
from hedgerow.core.execution import Execution
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.runtime.cache import cache_folder
from hedgerow.runtime.ports import ComputeError
from sims.clock import SECOND_US
from sims.fleet import Fleet
from sims.measure import Meter
from sims.run import build_fleet
from sims.scenariofile import load_scenario, strategy_setup, with_overrides
from sims.traces import Traces
from sims.world import real_world

PROBING_NODES = 8
PROBE_BATCHES = 4


class Subject:
    """A model with its fleet and one seed's data; units are as fine for every plan."""

    def __init__(self, name: str, seed: int) -> None:
        scenario = load_scenario(Path(__file__).parent / "configs" / f"plans_{name}.toml")
        self._loaded = with_overrides(scenario, {"scenario.seed": seed})
        changes = {"plan.preset": "all", "plan.groups": SEARCHED_GROUPS}
        self.scenario = with_overrides(self._loaded, changes)
        _, config = strategy_setup(self.scenario, "ftte")
        self.world = real_world(self.scenario, config, seed)
        self.seed = seed
        self.training = config.training
        self.manifest = self.world.manifest
        self.params = self.world.initial_params()
        self._ways = Ways(self.world.model, jit_cache(cache_folder() / "jit"))

    def step(
        self, names: Sequence[str], bound_bytes: int, execution: Execution | None = None
    ) -> Trained:
        """Train one step on one node's examples; raises ComputeError where the bound is too small."""
        inputs, targets = (part[: self.training.batch_size] for part in self.world.largest_shard())
        job = Train(
            job=1,
            plan=Plan.of(self.manifest, names),
            params=self.params,
            passes=1,
            batch_size=self.training.batch_size,
            learning_rate=1e-3,
            seed=1,
            memory_bytes=bound_bytes,
        )
        return Trainer(self.world.model, inputs, targets, cache_folder() / "jit").train(
            job, execution
        )

    def fits(self, names: Sequence[str], bound_bytes: int) -> bool:
        """Whether tinygrad's planner knows a way to compute a step within so many bytes."""
        model, batch = self.world.model, self.training.batch_size
        stages, plan = StageMap(model), Plan.of(self.manifest, names)
        _, targets = self.world.largest_shard()
        dtype = str(model.task.target_dtype)
        design = StepDesign(
            stages, plan, batch, Execution(batch), stages.first(plan), targets.shape[1:], dtype
        )
        try:
            self._ways.of(design, bound_bytes)
        except ComputeError:
            return False
        return True

    def values(self) -> Mapping[str, float]:
        """Return each unit's mean squared gradient norm over some nodes."""
        plan = choose_plan(self.manifest, preset="all")
        found = []
        for node in range(PROBING_NODES):
            batch = self.training.batch_size
            probe = Probe(node, plan, self.params, batch, PROBE_BATCHES, seed=self.seed)
            answer = self.world.probe(node, probe)
            if isinstance(answer, Probed):
                found.append(answer.squares)
        return {name: float(np.mean([one[name] for one in found])) for name in plan.names}

    def question(self, values: Mapping[str, float], budget_bytes: int) -> Question:
        """Return what a plan is chosen for."""
        return Question(
            self.world.model,
            self.world.costs(),
            self.training.batch_size,
            values,
            budget_bytes,
            self.fits,
            self.seed,
        )

    def fleet(self, names: Sequence[str], bound_bytes: int) -> Fleet:
        """Return a fleet that trains these units, not yet started."""
        scenario = with_overrides(
            self._loaded,
            {
                "plan.units": list(names),
                "plan.groups": SEARCHED_GROUPS,
                "node.memory_bytes": bound_bytes,
            },
        )
        strategy, config = strategy_setup(scenario, "ftte")
        meter = Meter(config.stop.metric, scenario.scenario.target)
        return build_fleet(scenario, config, strategy, self.world, Traces(None), meter)


def basis(subject: Subject) -> dict[str, Any]:
    """Measure a usual step of the whole model, and one that takes its examples one by one."""
    names = tuple(subject.manifest.by_name)
    batch = subject.training.batch_size
    usual = subject.step(names, 0, Execution(batch, autograd=True))
    single = subject.step(names, 0, Execution(1, autograd=True))
    return {
        "parameters": subject.manifest.size,
        "batch": batch,
        "plain_bytes": usual.peak_bytes,
        "plain_single_bytes": single.peak_bytes,
    }


def cell(subject: Subject, kind: str, plain_bytes: int, updates: int) -> dict[str, Any]:
    """Choose the plan, measure its step, and run its fleet."""
    choice = CHOICES[kind]
    bound_bytes = round(choice.share * plain_bytes)
    began = time.process_time()
    names = choice.units(subject.question(subject.values(), bound_bytes))
    chosen_s = time.process_time() - began
    step = subject.step(names, bound_bytes)
    first = subject.world.evaluate(subject.params)
    began = time.process_time()
    fleet = subject.fleet(names, bound_bytes)
    _run(fleet, updates)
    sessions = [node.attachment.session for node in fleet.nodes]
    metrics = subject.world.evaluate(fleet.ledger.params[fleet.ledger.version])
    return {
        "units": list(names),
        "parameters": Plan.of(subject.manifest, names).size,
        "bound_bytes": bound_bytes,
        "peak_bytes": step.peak_bytes,
        "planned_bytes": step.planned_bytes,
        "execution": step.execution.in_words if step.execution else "",
        "first": dict(first),
        "metrics": dict(metrics),
        "updates": len(fleet.ledger.ledger),
        "versions": fleet.ledger.version,
        "uplink_bytes": sum(session.bytes_up for session in sessions) / len(sessions),
        "downlink_bytes": sum(session.bytes_down for session in sessions) / len(sessions),
        "choice_cpu_s": chosen_s,
        "training_cpu_s": fleet.stopwatch.cpu_s["training"],
        "cpu_s": time.process_time() - began,
        "violations": [str(found) for found in fleet.watch.violations],
    }


def _run(fleet: Fleet, updates: int) -> None:
    """Run until so many updates are in versions; raises SystemExit when they stop coming."""
    fleet.start()
    second = 0
    while len(fleet.ledger.ledger) < updates:
        second += 1
        fleet.run_until_us(second * SECOND_US)
        if second > fleet.blueprint.evaluate_every_us * 360 // SECOND_US:
            raise SystemExit(f"only {len(fleet.ledger.ledger)} of {updates} updates came")
    if fleet.replay is not None:
        fleet.replay.verify()


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--plan", choices=["basis", *CHOICES], required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--plain-bytes", type=int, default=0)
    parser.add_argument("--updates", type=int, default=100)
    options = parser.parse_args()
    subject = Subject(options.model, options.seed)
    if options.plan == "basis":
        figures = basis(subject)
    else:
        figures = cell(subject, options.plan, options.plain_bytes, options.updates)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
