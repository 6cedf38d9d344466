"""The ceiling of a configuration: its plan trained on all nodes' examples in one place.

    python -m bench.central configs/watch.toml --passes 20

Prints the held-out metric after every few passes; nothing of the fleet runs.
"""

import argparse

from hedgerow.core.effects import Train
from hedgerow.core.search import first_plan
from hedgerow.runtime.cache import cache_folder
from hedgerow.runtime.compiler import prepare_tinygrad
from hedgerow.runtime.configfile import load_config
from hedgerow.runtime.data import load_dataset


def main() -> None:
    """Train centrally and print the curve and its best and last point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config")
    parser.add_argument("--passes", type=int, default=20)
    parser.add_argument("--every", type=int, default=2)
    parsed = parser.parse_args()
    prepare_tinygrad(cache_folder())
    from edge_node.trainer import Trainer  # noqa: PLC0415 - tinygrad reads its environment on import
    from hedgerow.runtime.layers import model_costs  # noqa: PLC0415 - as above
    from hedgerow.runtime.model import load_model  # noqa: PLC0415 - as above

    config = load_config(parsed.config)
    data = load_dataset(config.data, config.fleet.seed)
    model = load_model(config.task, data.input_shape, config.plan.unit_groups)
    batch_size = config.training.batch_size
    plan = first_plan(model.manifest, config.plan, model_costs(model), batch_size)
    trainer = Trainer(model, data.inputs, data.targets, cache_folder() / "jit")
    params = model.initial_params(config.fleet.seed)
    values = []
    for done in range(0, parsed.passes, parsed.every):
        training = config.training
        rate, batch = training.learning_rate, training.batch_size
        job = Train(done, plan, params, parsed.every, batch, rate, seed=done)
        trained = trainer.train(job)
        for name, where in plan.slices.items():
            params[model.manifest.slices[name]] += trained.delta[where]
        metrics = model.evaluate(params, data.evaluation_inputs, data.evaluation_targets)
        values.append(metrics[config.stop.metric])
        print(f"pass {done + parsed.every:3d}  {config.stop.metric} {values[-1]:.4f}", flush=True)
    half = sorted(values[len(values) // 2 :])
    print(f"best {max(values):.4f}, median of the second half {half[len(half) // 2]:.4f}")


if __name__ == "__main__":
    main()
