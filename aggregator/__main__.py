"""The aggregator as a process."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from aggregator.ledger import Ledger
from aggregator.lineage import Lineage
from aggregator.planner import first_plans
from aggregator.protocol import AggregatorProtocol
from aggregator.rows import CommitVersion, Snapshot
from aggregator.web.api import AggregatorServer
from hedgerow.core.config import Config
from hedgerow.core.costs import ModelCosts
from hedgerow.core.effects import Evaluate, Evaluated
from hedgerow.core.errors import ConfigError
from hedgerow.core.planbook import PlanSet
from hedgerow.core.units import Vector
from hedgerow.runtime.cache import cache_folder
from hedgerow.runtime.compiler import prepare_tinygrad
from hedgerow.runtime.data import load_dataset
from hedgerow.runtime.driver import Driver
from hedgerow.runtime.logs import configure_logs
from hedgerow.runtime.metrics import Metrics
from hedgerow.runtime.ports import NoChannels
from hedgerow.runtime.service import run_daemon, run_driver
from hedgerow.runtime.worker import Worker


@dataclass(frozen=True)
class _Prepared:
    """What the model gives: version 0's plans and parameters, shape (P,), and the costs for later plans."""

    plans: PlanSet
    params: Vector
    costs: ModelCosts | None


class ServerLink(NoChannels):
    """The aggregator's link: replies and version streams of its HTTP server. It has no channels."""

    def __init__(self, server: AggregatorServer) -> None:
        self.send = server.send


def main(config: Config, *, identity: str, folder: Path, index: int = 0) -> int:
    """Run the aggregator until SIGTERM or SIGINT; everything durable is in `folder`."""
    configure_logs("aggregator", identity, json=config.logs.json, level=config.logs.level)
    return run_daemon(_run(config, folder))


async def _run(config: Config, folder: Path) -> None:
    metrics = Metrics()
    metrics.record("started", 1, {"compiler": prepare_tinygrad(cache_folder()), "level": "info"})
    worker = Worker()
    model = await worker.run(partial(_prepare, config, worker))
    checkpoint_versions = config.aggregation.checkpoint_versions
    ledger = await Ledger.open(
        folder,
        config.fleet.model,
        checkpoint_versions=checkpoint_versions,
        max_bytes=config.storage.aggregator_bytes,
        ballast_bytes=config.storage.ballast_bytes,
    )
    snapshot = await _load(ledger, folder, config, model)
    protocol = AggregatorProtocol(
        snapshot, model.plans, config, meter=metrics.counters, costs=model.costs
    )
    server = AggregatorServer(
        config.http,
        lambda peer, message: driver.deliver(peer, message),
        ledger.blob,
        lambda: protocol.status(driver.now_us()),
        metrics,
        ready=lambda: True,
        degraded=lambda: "disk full" if ledger.full else protocol.trouble,
    )
    link = ServerLink(server)
    driver = Driver(protocol, link=link, store=ledger, compute=worker, recorder=metrics)
    metrics.record("serving", 1, {"url": await server.start(), "level": "info"})
    try:
        await run_driver(driver)
    finally:
        await server.stop()
        await ledger.close()
        worker.close()


async def _load(ledger: Ledger, folder: Path, config: Config, model: _Prepared) -> Snapshot:
    """Return what is on disk, after putting version 0 there if nothing is.

    Raises ConfigError beside a damaged ledger: to begin anew would count updates twice and use version
    numbers again, so a person must decide.
    """
    snapshot = await ledger.load()
    if snapshot is None:
        damaged = ledger.damaged_files()
        if damaged:
            raise ConfigError(
                f"--dir: the ledger was damaged and is kept as {damaged[0]}; put a backup in its place,"
                f" or move it out of {folder} to begin a new model at version 0"
            )
        first = Lineage(config, model.plans).first(model.params, term=0)
        await ledger.save((CommitVersion(first, model.params, (), ()),))
        snapshot = await ledger.load()
        assert snapshot is not None
    stored = {name: tuple(unit.shape) for name, unit in snapshot.descriptors[-1].units.items()}
    built = {unit.name: unit.shape for unit in model.plans.widest.manifest.units}
    if stored != built:
        raise ConfigError(f"task: builds units {built}, but the ledger's model has {stored}")
    return snapshot


def _prepare(config: Config, worker: Worker) -> _Prepared:
    """Load model and evaluation data on the thread that owns tinygrad, and make the first plans."""
    # tinygrad reads its environment when it is imported.
    from hedgerow.runtime.layers import model_costs
    from hedgerow.runtime.model import load_model

    dataset = load_dataset(config.data, config.fleet.seed)
    model = load_model(config.task, dataset.input_shape, config.plan.unit_groups)

    def evaluate(job: Evaluate) -> Evaluated:
        data = (dataset.evaluation_inputs, dataset.evaluation_targets)
        return Evaluated(job.job, job.version, model.evaluate(job.params, *data))

    worker.use(evaluate=evaluate)
    costs = model_costs(model) if config.plan.budget_bytes else None
    plans = first_plans(config, model.manifest, costs)
    return _Prepared(plans, model.initial_params(config.fleet.seed), costs)


if __name__ == "__main__":
    raise SystemExit("run `hedgerow aggregator CONFIG --dir FOLDER`")
