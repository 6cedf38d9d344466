"""The node as a process."""

from functools import partial
from pathlib import Path

from edge_node.epochs import last_will
from edge_node.outbox import Outbox
from edge_node.protocol import NodeProtocol
from hedgerow.core.config import Config
from hedgerow.core.effects import Evaluate, Evaluated
from hedgerow.core.errors import ConfigError
from hedgerow.core.units import Manifest
from hedgerow.runtime.cache import cache_folder
from hedgerow.runtime.compiler import prepare_tinygrad
from hedgerow.runtime.data import load_dataset, local_test, node_shard
from hedgerow.runtime.driver import Driver
from hedgerow.runtime.logs import configure_logs
from hedgerow.runtime.metrics import Metrics
from hedgerow.runtime.mqtt_link import MqttLink
from hedgerow.runtime.service import run_daemon, run_driver
from hedgerow.runtime.worker import Worker


def main(config: Config, *, identity: str, folder: Path, index: int = 0) -> int:
    """Run one node until SIGTERM or SIGINT; `index` is its share of a data set split over the fleet."""
    configure_logs("node", identity, json=config.logs.json, level=config.logs.level)
    return run_daemon(_run(config, identity, folder, index))


async def _run(config: Config, identity: str, folder: Path, index: int) -> None:
    metrics = Metrics()
    metrics.record("started", 1, {"compiler": prepare_tinygrad(cache_folder()), "level": "info"})
    worker = Worker()
    manifest = await worker.run(partial(_prepare, config, worker, folder, index))
    outbox = Outbox(
        folder,
        identity,
        max_bytes=config.storage.node_bytes,
        ballast_bytes=config.storage.ballast_bytes,
    )
    if outbox.quarantined is not None:
        metrics.record("store_quarantined", 1, {"path": str(outbox.quarantined), "level": "error"})
    books = await outbox.load()
    if books.node != identity:
        raise ConfigError(f"--dir: {folder} belongs to node {books.node!r}, not {identity!r}")
    link = MqttLink(
        config.broker,
        config.fleet.site,
        "node",
        identity,
        last_will(books),
        deliver=lambda peer, message: driver.deliver(peer, message),
        fault=lambda peer, error: driver.fault(peer, error),
        record=lambda event, amount: metrics.record(event, amount, {}),
    )
    protocol = NodeProtocol(
        books,
        manifest,
        config.node,
        model=config.fleet.model,
        seed=config.fleet.seed,
        chunk_bytes=config.broker.chunk_bytes,
        meter=link.meter,
        tests=config.data.local_test_fraction > 0,
    )
    driver = Driver(protocol, link=link, store=outbox, compute=worker, recorder=metrics)
    try:
        await run_driver(driver, link.run(), goodbye=link.close)
    finally:
        await outbox.close()
        worker.close()


def _prepare(config: Config, worker: Worker, folder: Path, index: int) -> Manifest:
    """Load data and model on the thread that owns tinygrad, and say how to train."""
    from edge_node.trainer import Trainer  # tinygrad reads its environment when it is imported
    from hedgerow.runtime.model import load_model

    dataset = load_dataset(config.data, config.fleet.seed)
    own = node_shard(dataset, config.data, index, config.fleet.nodes, config.fleet.seed)
    shard, test = local_test(own, config.data, index, config.fleet.seed)
    model = load_model(config.task, dataset.input_shape, config.plan.unit_groups)
    trainer = Trainer(model, *shard, cache_folder() / "jit", folder / "features")

    def evaluate(job: Evaluate) -> Evaluated:
        return Evaluated(job.job, job.version, model.evaluate(job.params, *test))

    worker.use(train=trainer.train, probe=trainer.probe, evaluate=evaluate)
    return model.manifest


if __name__ == "__main__":
    raise SystemExit("run `hedgerow node CONFIG --id ID --dir FOLDER`")
