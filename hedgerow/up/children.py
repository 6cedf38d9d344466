"""Which processes make up a local fleet, and how each is started."""

import os
import sys
from asyncio.subprocess import Process
from functools import partial
from pathlib import Path

import msgspec

from hedgerow.core.config import Config
from hedgerow.runtime.broker import RunningBroker
from hedgerow.runtime.configfile import write_config
from hedgerow.up.runfolder import RunFolder
from hedgerow.up.supervisor import Child, spawn

AGGREGATOR, BROKER = "aggregator", "broker"


def node_names(config: Config) -> list[str]:
    """Return node-01, node-02 and so on."""
    width = max(2, len(str(config.fleet.nodes)))
    return [f"node-{number:0{width}d}" for number in range(1, config.fleet.nodes + 1)]


def gateway_names(config: Config) -> list[str]:
    """Return gw-1, gw-2 and so on."""
    return [f"gw-{number}" for number in range(1, config.fleet.gateways + 1)]


def broker_child(broker: RunningBroker) -> Child:
    """Return the broker, which runs already, as a child to be kept running."""

    async def start() -> Process:
        await broker.restart()
        assert broker.process is not None
        return broker.process

    return Child(BROKER, start, broker.log_file)


def aggregator_child(folder: RunFolder) -> Child:
    """Return the aggregator."""
    return _role_child(folder, "aggregator", AGGREGATOR, folder.config_file, [])


def gateway_children(folder: RunFolder, config: Config) -> list[Child]:
    """Return the gateways; a fixed port for metrics counts up from the first one's."""
    children = []
    for index, name in enumerate(gateway_names(config)):
        file = folder.config_file
        port = config.gateway.metrics_port
        if port:
            own = msgspec.structs.replace(config.gateway, metrics_port=port + index)
            file = folder.process(name) / file.name
            file.parent.mkdir(parents=True, exist_ok=True)
            write_config(msgspec.structs.replace(config, gateway=own), file)
        children.append(_role_child(folder, "gateway", name, file, ["--id", name]))
    return children


def node_children(folder: RunFolder, config: Config) -> list[Child]:
    """Return the nodes, each with its share of the data."""
    return [
        _role_child(folder, "node", name, folder.config_file, ["--id", name, "--index", str(index)])
        for index, name in enumerate(node_names(config))
    ]


def _role_child(folder: RunFolder, role: str, name: str, config: Path, rest: list[str]) -> Child:
    command = [sys.executable, "-m", "hedgerow.cli", role, str(config)]
    command += ["--dir", str(folder.process(name)), *rest]
    log = folder.log(name)
    return Child(name, partial(spawn, command, log, environment(folder)), log)


def environment(folder: RunFolder) -> dict[str, str]:
    """Return the children's environment: they find the user's modules where `hedgerow up` found them."""
    inherited = os.environ.get("PYTHONPATH", "")
    paths = [*inherited.split(os.pathsep), *folder.state.module_folders]
    kept = os.pathsep.join(path for path in paths if path)
    return {**os.environ, "PYTHONPATH": kept, "PYTHONUNBUFFERED": "1"}
