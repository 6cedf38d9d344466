"""Child process: many real nodes, each with its own protocol and MQTT connection, that only pretend to train.

Their outboxes are in memory and every training takes no time and gives a small random delta. Run by
memory until it is terminated.
"""

import argparse
import asyncio
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.subjects import SITE
from edge_node.protocol import NodeProtocol
from edge_node.rows import Books
from hedgerow.core.config import Config
from hedgerow.core.effects import Evaluate, Evaluated, Probe, Probed, Train, Trained
from hedgerow.core.messages import NodeState
from hedgerow.core.units import Manifest
from hedgerow.runtime.configfile import load_config
from hedgerow.runtime.driver import Driver
from hedgerow.runtime.mqtt_link import MqttLink
from hedgerow.runtime.ports import Compute, Link, Store
from hedgerow.runtime.service import run_daemon


class Surrogate:
    """A `Compute` port without a model."""

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    async def train(self, job: Train) -> Trained:
        """Return a small random delta."""
        delta = self._random.standard_normal(job.plan.size).astype(np.float32)
        return Trained(
            job=job.job,
            delta=delta * np.float32(1e-3),
            examples=32,
            steps=2,
            step_square_sum=1.0,
            loss_first=1.0,
            loss_last=1.0,
            peak_bytes=0,
        )

    async def probe(self, job: Probe) -> Probed:
        """Raise NotImplementedError: a fixed plan asks for no values."""
        raise NotImplementedError(f"a light node was asked for {job}")

    async def evaluate(self, job: Evaluate) -> Evaluated:
        """Raise NotImplementedError: nodes do not evaluate."""
        raise NotImplementedError(f"a light node was asked for {job}")


class Forgetful:
    """A `Store` and a `Recorder` that keep nothing."""

    async def save(self, rows: tuple[Any, ...]) -> None:
        """Take the rows."""

    def record(self, event: str, amount: int, fields: Mapping[str, Any]) -> None:
        """Take the event."""


def make_node(
    config: Config,
    manifest: Manifest,
    number: int,
    books: Books | None = None,
    store: Store | None = None,
    compute: Compute | None = None,
    wrapped: Callable[[MqttLink], Link] = lambda link: link,
) -> tuple[Driver, MqttLink]:
    """Return a node's driver and link, not yet running; the driver sends through the wrapped link."""
    identity = name_of(number)
    nothing = Forgetful()
    link = MqttLink(
        config.broker,
        SITE,
        "node",
        identity,
        NodeState(node=identity, epoch=books.epoch if books else 1, state="lost"),
        deliver=lambda peer, message: driver.deliver(peer, message),  # noqa: PLW0108 - made below
        fault=lambda peer, error: driver.fault(peer, error),  # noqa: PLW0108 - made below
        record=lambda _event, _amount: None,
    )
    protocol = NodeProtocol(
        books or Books(identity, 1, 0, 0, {}, 0, -1, {}, {}),
        manifest,
        config.node,
        model=config.fleet.model,
        seed=config.fleet.seed,
        chunk_bytes=config.broker.chunk_bytes,
        meter=link.meter,
    )
    driver = Driver(
        protocol,
        link=wrapped(link),
        store=store or nothing,
        compute=compute or Surrogate(number),
        recorder=nothing,
    )
    return driver, link


def name_of(number: int) -> str:
    """Return a light node's name."""
    return f"light-{number:04d}"


def manifest_of(shapes: str) -> Manifest:
    """Return the manifest that "NAME=AxB,NAME=C" describes."""
    pairs = [text.split("=") for text in shapes.split(",")]
    return Manifest.of({name: [int(n) for n in shape.split("x")] for name, shape in pairs})


def shapes_of(manifest: Manifest) -> str:
    """Return a manifest as `manifest_of` reads it."""
    return ",".join(f"{unit.name}={'x'.join(map(str, unit.shape))}" for unit in manifest.units)


async def _run(config: Config, manifest: Manifest, first: int, count: int) -> None:
    async with asyncio.TaskGroup() as tasks:
        for number in range(first, first + count):
            driver, link = make_node(config, manifest, number)
            driver.start()
            tasks.create_task(link.run())
            tasks.create_task(driver.run())


def main() -> int:
    """Read the arguments and run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument(
        "--shapes", required=True, help="NAME=AxB,NAME=C: the model's units in order"
    )
    options = parser.parse_args()
    # Every node has a connection of its own.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    config, manifest = load_config(options.config), manifest_of(options.shapes)
    return run_daemon(_run(config, manifest, options.first, options.count))


if __name__ == "__main__":
    raise SystemExit(main())
