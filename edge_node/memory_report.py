"""Measures how much memory one training step of a configuration needs, against training everything.

`python -m edge_node.memory_report CONFIG.json` prints JSON: "plan" and "full" are peak bytes of tensors, and
"steps" says more of each way to train. Training everything is measured as it is usually done, with one
gradient of the whole network: for the same batch, and for the micro-batches that need least.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from hedgerow.core.config import Config
from hedgerow.core.effects import Train
from hedgerow.core.errors import ConfigError
from hedgerow.core.execution import Execution, micro_batches
from hedgerow.core.plan import Plan, choose_plan, personal_units
from hedgerow.core.search import first_plan
from hedgerow.runtime.compiler import prepare_tinygrad
from hedgerow.runtime.data import load_dataset, node_shard
from hedgerow.runtime.ports import ComputeError

if TYPE_CHECKING:  # tinygrad reads its environment when it is imported, after `prepare_tinygrad`.
    from edge_node.trainer import Trainer
    from hedgerow.runtime.model import Model

TIMED_STEPS = 20


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one way to train needs.

    `planned_bytes` before anything ran; `held_bytes` the tensors' measured peak; `mapped_bytes` the most that
    the allocator held, in whole pages; `rss_bytes` how far the process grew above what it was before the
    training (-1 where the system does not say); `step_cpu_ms` processor time of a step.
    """

    name: str
    execution: str
    planned_bytes: int
    held_bytes: int
    mapped_bytes: int
    rss_bytes: int
    step_cpu_ms: float


def measure(config: Config) -> list[StepReport]:
    """Train batches of the first node's data under the plan and whole, and return what each way needed.

    Call `prepare_tinygrad` first. Raises ConfigError for a configuration that cannot be trained, ComputeError
    where the plan fits no `node.memory_bytes`.
    """
    from edge_node.trainer import Trainer  # noqa: PLC0415 - see above
    from hedgerow.runtime.layers import model_costs  # noqa: PLC0415 - see above
    from hedgerow.runtime.model import load_model  # noqa: PLC0415 - see above

    seed, batch = config.fleet.seed, config.training.batch_size
    dataset = load_dataset(config.data, seed)
    inputs, targets = node_shard(dataset, config.data, 0, config.fleet.nodes, seed)
    model = load_model(config.task, dataset.input_shape, config.plan.unit_groups)
    batch = min(batch, len(inputs))
    costs = model_costs(model) if config.plan.budget_bytes else None
    plan = first_plan(model.manifest, config.plan, costs, batch)
    personal = personal_units(model.manifest, config.plan.personal)
    full = choose_plan(model.manifest, preset="all")
    allowed = config.node.memory_bytes or config.plan.budget_bytes
    with tempfile.TemporaryDirectory() as folder:
        jits = Path(folder)
        trainer = Trainer(model, inputs[:batch], targets[:batch], jits / "jit", jits / "features")
        meter = _Meter(trainer, model, batch, seed)
        usual = [Execution(size, autograd=True) for size in micro_batches(batch)]
        leanest = min(usual, key=lambda way: _planned(model, full, batch, way, targets.shape[1:]))
        return [
            meter.report("plan", plan.joined(personal), allowed),
            meter.report("full", full, execution=usual[0]),
            meter.report("full, least memory", full, execution=leanest),
            meter.report("full, stage by stage", full, execution=Execution(batch)),
        ]


def _planned(
    model: "Model", plan: Plan, batch: int, way: Execution, target: tuple[int, ...]
) -> int:
    from edge_node.oracle import planned_bytes  # noqa: PLC0415 - see above

    return planned_bytes(model, plan, batch, way, target=target)


class _Meter:
    """Trains on one batch, in different ways."""

    def __init__(self, trainer: "Trainer", model: "Model", batch: int, seed: int) -> None:
        self._trainer = trainer
        self._batch = batch
        self._seed = seed
        self._params = model.initial_params(seed)

    def report(
        self, name: str, plan: Plan, allowed_bytes: int = 0, execution: Execution | None = None
    ) -> StepReport:
        """Return what a training of `plan` needs."""

        def job(steps: int) -> Train:
            rate = 1e-6  # Small, so that many steps on one batch stay finite.
            return Train(
                0,
                plan,
                self._params,
                steps,
                self._batch,
                rate,
                self._seed,
                memory_bytes=allowed_bytes,
            )

        # The first training is the one that computes features; compilation comes before its measurement.
        first = self._trainer.train(job(1), execution)
        mapped = self._trainer.mapped_bytes
        seconds = [self._seconds(job(steps), execution) for steps in (1, TIMED_STEPS + 1)]
        idle = _reset_peak_rss()
        self._trainer.train(job(1), execution)
        return StepReport(
            name,
            first.execution.in_words if first.execution else "unknown",
            first.planned_bytes,
            first.peak_bytes,
            mapped,
            _peak_rss() - idle if idle else -1,
            round(1e3 * (seconds[1] - seconds[0]) / TIMED_STEPS, 3),
        )

    def _seconds(self, job: Train, execution: Execution | None) -> float:
        before = time.process_time()
        self._trainer.train(job, execution)
        return time.process_time() - before


def _reset_peak_rss() -> int:
    """Let the system measure the peak from now on; return what the process has now, 0 where it cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return 0
    return _status_bytes("VmRSS")


def _peak_rss() -> int:
    return _status_bytes("VmHWM")


def _status_bytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def figures(steps: list[StepReport]) -> dict[str, Any]:
    """Return the reports as JSON has them, with the peaks of "plan" and "full" at hand."""
    peaks = {step.name: step.held_bytes for step in steps}
    return {
        "plan": peaks["plan"],
        "full": peaks["full"],
        "steps": [asdict(step) for step in steps],
    }


def main() -> int:
    """Read the configuration named on the command line and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=measure.__doc__)
    parser.add_argument("config", type=Path, help="the configuration as a JSON file")
    path: Path = parser.parse_args().config
    try:
        config = msgspec.json.decode(path.read_bytes(), type=Config)
        with tempfile.TemporaryDirectory() as folder:
            prepare_tinygrad(Path(folder))
            steps = measure(config)
    except (OSError, msgspec.MsgspecError, ConfigError, ComputeError) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return 2
    sys.stdout.write(f"{json.dumps(figures(steps))}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
