"""Child process: train the demo's model once and then for a while; prints the figures as JSON.

A process of its own, so that imports, kernels and the compiled step are as cold as `--cache` is.
"""

import argparse
import json
import resource
import time
from pathlib import Path

from hedgerow.runtime.compiler import prepare_tinygrad

_BATCH = 16
_BATCHES = 10


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--least-s", type=float, required=True, help="CPU-seconds of steady steps")
    options = parser.parse_args()
    began = time.perf_counter()
    prepare_tinygrad(options.cache)

    # tinygrad reads its environment when it is imported, and the import is part of what is measured.
    from edge_node.trainer import Trainer  # noqa: PLC0415
    from hedgerow.core.effects import Train  # noqa: PLC0415
    from hedgerow.core.plan import choose_plan  # noqa: PLC0415
    from hedgerow.runtime.configfile import load_config  # noqa: PLC0415
    from hedgerow.runtime.data import load_dataset  # noqa: PLC0415
    from hedgerow.runtime.model import load_model  # noqa: PLC0415

    config = load_config("demo")
    dataset = load_dataset(config.data, config.fleet.seed)
    model = load_model(config.task, dataset.input_shape)
    plan = choose_plan(model.manifest, preset="biases+last")
    params = model.initial_params(1)
    jit = options.cache / "jit"

    def train(rows: int, passes: int) -> int:
        trainer = Trainer(model, dataset.inputs[:rows], dataset.targets[:rows], jit)
        job = Train(1, plan, params, passes, _BATCH, config.training.learning_rate, seed=1)
        return trainer.train(job).steps

    prepared = time.perf_counter()
    cpu = _cpu_s()
    train(_BATCH, 1)
    figures = {
        "prepare_s": prepared - began,
        "first_step_s": time.perf_counter() - prepared,
        "first_step_cpu_s": _cpu_s() - cpu,
        "plan_share": plan.share,
    }
    passes = 1
    while True:
        before = time.process_time()
        steps = train(_BATCH * _BATCHES, passes)
        spent = time.process_time() - before
        if spent >= options.least_s:
            break
        passes = max(2 * passes, int(1.2 * passes * options.least_s / spent))
    print(json.dumps({**figures, "steps_per_cpu_s": steps / spent}))
    return 0


def _cpu_s() -> float:
    """Return the CPU-seconds of this process and of the compilers it has run."""
    whom = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(use.ru_utime + use.ru_stime for use in map(resource.getrusage, whom))


if __name__ == "__main__":
    raise SystemExit(main())
