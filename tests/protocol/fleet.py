"""A whole fleet in memory: real protocols, real bytes, virtual time, and faults drawn from a seed."""

import random
import zlib
from typing import Any

import numpy as np

from aggregator.lineage import Lineage
from aggregator.protocol import AggregatorProtocol
from edge_node.protocol import NodeProtocol
from gateway.protocol import GatewayProtocol
from hedgerow.core import names
from hedgerow.core.codec import encode
from hedgerow.core.config import Config
from hedgerow.core.effects import Evaluate, Evaluated, JobFailed, Train, Trained
from hedgerow.core.messages import GatewayState, NodeState
from hedgerow.core.units import Vector
from hedgerow.runtime.mqtt_link import Topics
from tests.protocol.disks import LedgerDisk, NodeDisk
from tests.protocol.engine import Clock, Process
from tests.protocol.scenarios import (
    CHUNK_BYTES,
    MANIFEST,
    MODEL,
    PLAN,
    SECOND_US,
    first_params,
    make_config,
)
from tests.protocol.wires import SITE, Broker, Session, Uplinks, Weather


class Fleet:
    """Nodes, gateways, a broker and an aggregator on one clock.

    The classes of the three protocols can be replaced, so that a broken one can be shown to be caught.
    """

    node_class: type[NodeProtocol] = NodeProtocol
    gateway_class: type[GatewayProtocol] = GatewayProtocol
    aggregator_class: type[AggregatorProtocol] = AggregatorProtocol
    ledger_class: type[LedgerDisk] = LedgerDisk
    node_disk_class: type[NodeDisk] = NodeDisk

    def __init__(self, seed: int, law: str, *, nodes: int = 6, gateways: int = 2) -> None:
        self.clock = Clock(seed)
        self.config = fleet_config(law)
        self.paused = False
        self.released: Process | None = None
        self.held_trainings: list[tuple[Process, Train]] = []
        self.homes: dict[str, str] = {}
        first = Lineage(self.config, PLAN).first(first_params(), term=0)
        self.ledger = self.ledger_class(first, first_params())
        self.broker = Broker(self.clock, Weather())
        self.uplinks = Uplinks(self.clock, Weather(), self.ledger.blob)
        self.node_disks = {f"node-{i}": self.node_disk_class(f"node-{i}") for i in range(nodes)}
        self.gateways = [self._add_gateway(f"gw-{i}") for i in range(gateways)]
        self.nodes = [self._add_node(name) for name in self.node_disks]
        self.aggregator = Process(
            names.AGGREGATOR, self.clock, self, self._aggregator, disk=self.ledger, work=self._work
        )
        self.uplinks.aggregator = self.aggregator

    # Making processes.

    def _aggregator(self) -> AggregatorProtocol:
        return self.aggregator_class(self.ledger.load(), PLAN, self.config, meter=dict)

    def _add_gateway(self, name: str) -> Process:
        boots: list[int] = []

        def make() -> GatewayProtocol:
            boots.append(self.clock.random.getrandbits(48))
            return self.gateway_class(
                name,
                boots[-1],
                self.config.gateway,
                model=MODEL,
                chunk_bytes=CHUNK_BYTES,
                rng=random.Random(boots[-1]),
                meter=dict,
            )

        def will() -> tuple[str, bytes]:
            state = GatewayState(gateway=name, boot=boots[-1], state="lost")
            return topics.channel(names.gateway_state_channel(name)), encode(state)

        topics = Topics(SITE, "gateway", name)
        process = Process(names.gateway_peer(name), self.clock, self, make)
        self.broker.sessions[process.name] = Session(process, topics, will)
        self.uplinks.gateways[process.name] = process
        return process

    def _add_node(self, name: str) -> Process:
        disk = self.node_disks[name]

        def make() -> NodeProtocol:
            # A node that starts again may find itself elsewhere.
            self.homes[name] = self.clock.random.choice(["", "", "gw-0", "gw-1"])
            return self.node_class(
                disk.load(),
                MANIFEST,
                make_config(node={**_NODE, "home": self.homes[name]}).node,
                model=MODEL,
                seed=1,
                chunk_bytes=CHUNK_BYTES,
                meter=dict,
            )

        def will() -> tuple[str, bytes]:
            state = NodeState(node=name, epoch=disk.epoch, state="lost")
            return topics.channel(names.node_state_channel(name)), encode(state)

        topics = Topics(SITE, "node", name)
        process = Process(names.node_peer(name), self.clock, self, make, disk=disk, work=self._work)
        self.broker.sessions[process.name] = Session(process, topics, will)
        return process

    # The network of the processes.

    def send(self, process: Process, peer: str, message: Any) -> None:
        if peer == names.AGGREGATOR:
            self.uplinks.from_gateway(process, message)
        elif process is self.aggregator:
            self.uplinks.from_aggregator(peer, message)
        else:
            self.broker.send(self.broker.sessions[process.name], peer, message)

    def announce(self, process: Process, channel: str, message: Any | None) -> None:
        self.broker.announce(self.broker.sessions[process.name], channel, message)

    def follow(self, process: Process, channel: str) -> None:
        self.broker.follow(self.broker.sessions[process.name], channel)

    def unfollow(self, process: Process, channel: str) -> None:
        self.broker.unfollow(self.broker.sessions[process.name], channel)

    def started(self, process: Process) -> None:
        if process is not self.aggregator:
            session = self.broker.sessions[process.name]
            self.clock.after(
                self.clock.between(1_000, 500_000), lambda: self.broker.connect(session)
            )

    def died(self, process: Process) -> None:
        if process is self.aggregator:
            self.uplinks.aggregator_died()
            return
        session = self.broker.sessions[process.name]
        self.broker.disconnect(session)
        session.filters, session.memory = set(), {}
        if process in self.gateways:
            self.uplinks.gateway_died(process.name)

    # Work.

    def _work(self, process: Process, job: Train | Evaluate) -> None:
        if isinstance(job, Evaluate):
            result = Evaluated(job.job, job.version, {"accuracy": 0.0})
            process.finish(result, self.clock.between(1_000, 3 * SECOND_US))
        elif self.paused and process is not self.released:
            self.held_trainings.append((process, job))
        elif self.clock.random.random() < 0.02:
            process.finish(JobFailed(job.job, "out of memory"), SECOND_US)
        else:
            took_us = self.clock.between(SECOND_US // 10, 2 * SECOND_US)
            process.finish(_trained(process.name, job), took_us)

    # The course of a run.

    def start(self) -> None:
        for process in self.processes:
            process.start()

    @property
    def processes(self) -> list[Process]:
        return [self.aggregator, *self.gateways, *self.nodes]

    def run(self, seconds: float) -> None:
        self.clock.run_until(self.clock.now_us + round(seconds * SECOND_US))

    def release(self) -> None:
        """Let one node train although training is paused; what it held may be stale by now, so it fails."""
        self.released, job = self.held_trainings.pop()
        self.released.finish(JobFailed(job.job, "too late"), SECOND_US)

    def seen(self, event: str) -> int:
        """Return how often processes recorded an event, over all their lives."""
        return sum(process.events[event] for process in self.processes)


_NODE = {"resend_s": 4.0, "outbox_updates": 5, "offline_updates": 3, "sleep_s": 0.2}


def fleet_config(law: str) -> Config:
    return make_config(
        node=_NODE,
        staleness={"law": law, "tau_max": 8},
        aggregation={
            "buffer_size": 3,
            "deadline_s": 5.0,
            "checkpoint_versions": 10,
            "count_max": 4,
        },
        gateway={"flush_count": 3, "held_updates": 24},
        training={"clip_norm": 2.0},
        stop={"max_versions": 1_000_000},
    )


def _trained(node: str, job: Train) -> Trained:
    """Return a step towards the node's own target, with noise."""
    noise = np.random.default_rng([job.seed, zlib.crc32(node.encode())])
    target = np.full(PLAN.size, zlib.crc32(node.encode()) % 7 - 3, np.float32)
    start: Vector = MANIFEST.take(job.params, job.plan.names)
    start = start if job.offset is None else start + job.offset
    pull = 0.1 * (target - start) + 0.01 * noise.standard_normal(PLAN.size)
    return Trained(
        job=job.job,
        delta=pull.astype(np.float32),
        examples=int(noise.integers(1, 64)),
        steps=4,
        step_square_sum=1.0,
        loss_first=1.0,
        loss_last=0.5,
        peak_bytes=1000,
    )
