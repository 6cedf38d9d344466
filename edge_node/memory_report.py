"""Measures how much memory one training step of a configuration needs, against training everything.

`python -m edge_node.memory_report CONFIG.json` prints {"plan": bytes, "full": bytes}.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import msgspec
import numpy as np

from hedgerow.core.config import Config
from hedgerow.core.effects import Train
from hedgerow.core.errors import ConfigError
from hedgerow.core.plan import choose_plan
from hedgerow.runtime.compiler import prepare_tinygrad
from hedgerow.runtime.data import load_dataset, node_shard


def measure(config: Config) -> dict[str, int]:
    """Train one batch of the first node's data under the plan, then whole; return both peaks in bytes.

    The figures are `Trained.peak_bytes`: parameters, one batch and the step's intermediates. Call
    `prepare_tinygrad` first. Raises ConfigError for a configuration that cannot be trained.
    """
    # tinygrad reads its environment when it is imported, after `prepare_tinygrad`.
    from edge_node.trainer import Trainer  # noqa: PLC0415
    from hedgerow.runtime.model import load_model  # noqa: PLC0415

    seed, batch = config.fleet.seed, config.training.batch_size
    dataset = load_dataset(config.data, seed)
    inputs, targets = node_shard(dataset, config.data, 0, config.fleet.nodes, seed)
    model = load_model(config.task, dataset.input_shape)
    chosen = config.plan
    plans = {
        "plan": choose_plan(model.manifest, chosen.units, chosen.last_layers, chosen.preset),
        "full": choose_plan(model.manifest, preset="all"),
    }
    params = np.zeros(model.manifest.size, np.float32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(model, inputs[:batch], targets[:batch], Path(folder))
        return {
            name: trainer.train(
                Train(0, plan, params, 1, batch, config.training.learning_rate, seed)
            ).peak_bytes
            for name, plan in plans.items()
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
            figures = measure(config)
    except (OSError, msgspec.MsgspecError, ConfigError) as error:
        sys.stderr.write(f"{path}: {error}\n")
        return 2
    sys.stdout.write(f"{json.dumps(figures)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
