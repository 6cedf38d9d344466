"""A whole fleet on one virtual clock: nodes on their devices, gateways, brokers and an aggregator."""

import hashlib
import random
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from aggregator.lineage import Lineage
from aggregator.protocol import AggregatorProtocol
from edge_node.epochs import last_will
from edge_node.protocol import NodeProtocol
from gateway.protocol import GatewayProtocol
from hedgerow.core import names
from hedgerow.core.config import Config
from hedgerow.core.costs import ModelCosts
from hedgerow.core.messages import GatewayState, Message
from hedgerow.core.planbook import PlanSet
from hedgerow.core.strategy import Strategy
from hedgerow.core.units import Vector
from hedgerow.runtime.mqtt_link import Topics
from sims.broker import Broker, Session
from sims.checks import Replay, Watch, WatchedLedger, WatchedNodeDisk
from sims.clock import virtual_loop
from sims.compute import AggregatorCompute, NodeCompute, Stopwatch, TrainingPool
from sims.devices import Device
from sims.disks import DiskStore, LedgerDisk, NodeDisk
from sims.gatewaydisk import GatewayDisk
from sims.gateways import gateway_protocol
from sims.host import GatewayHost, NodeHost
from sims.links import LinkModel
from sims.memorylink import AggregatorLink, GatewayLink, NodeLink
from sims.process import Ports, Process
from sims.uplink import Line, Uplinks
from sims.world import FleetWorld

Metrics = Mapping[str, float]


@dataclass(frozen=True)
class Parts:
    """The classes a fleet is made of; tests put broken ones in their place to see them caught."""

    node: type[NodeProtocol] = NodeProtocol
    gateway: type[GatewayProtocol] = GatewayProtocol
    aggregator: type[AggregatorProtocol] = AggregatorProtocol
    node_disk: type[NodeDisk] = NodeDisk
    ledger: type[LedgerDisk] = LedgerDisk


@dataclass(frozen=True)
class Blueprint:
    """What a fleet is built from.

    `plans` and `params`, shape (P,), are version 0's; with `costs` a searched plan is searched anew.
    `gateway_links` are the gateways' links to the aggregator; `brokers` how many sites share nodes and
    gateways, in turn.
    """

    config: Config
    strategy: Strategy
    plans: PlanSet
    params: Vector
    devices: Sequence[Device]
    gateway_links: Sequence[LinkModel]
    brokers: int
    evaluate_every_us: int
    seed: int
    replay: bool = True
    keep_bodies: bool = False
    costs: ModelCosts | None = None
    parts: Parts = field(default_factory=Parts)


class Fleet:
    """Everything that lives in one simulation.

    `evaluated(now_us, version, metrics)` is told of every evaluation; `watch` collects or raises violations.
    """

    def __init__(
        self,
        blueprint: Blueprint,
        compute: FleetWorld,
        *,
        watch: Watch,
        evaluated: Callable[[int, int, Metrics], None] = lambda *_: None,
    ) -> None:
        self.blueprint = blueprint
        self.config = blueprint.config
        self.loop = virtual_loop()
        self.watch = watch
        self.stopwatch = Stopwatch()
        self.save_failure_rate = 0.0
        self.compute = compute
        self.pool = TrainingPool(self.loop, compute, self.stopwatch)
        self._evaluated = evaluated
        self._hash = hashlib.blake2b(digest_size=16)
        first = self._lineage().first(blueprint.params, term=0)
        self.ledger = blueprint.parts.ledger(first, blueprint.params, compute.manifest)
        self.replay = (
            Replay(blueprint.strategy, self._lineage, first, blueprint.params, watch)
            if blueprint.replay
            else None
        )
        self.uplinks = Uplinks(self.loop, self.ledger.blob, self._hear)
        self.brokers = [
            Broker(f"broker-{n + 1}", self.loop, self._hear) for n in range(blueprint.brokers)
        ]
        self.aggregator = Process(
            names.AGGREGATOR,
            self.loop,
            self._make_aggregator,
            up=self._aggregator_up,
            down=lambda _: self.uplinks.aggregator_died(),
        )
        self.gateways = [self._add_gateway(n) for n in range(self.config.fleet.gateways)]
        self.nodes = [self._add_node(device) for device in blueprint.devices]

    # The course of a run.

    def start(self) -> None:
        """Start every process as soon as time runs; devices that are off at first come later."""
        self.loop.at_us(self.loop.now_us, self._start_all)

    def _start_all(self) -> None:
        self.aggregator.start()
        for gateway in self.gateways:
            gateway.process.start()
        for node in self.nodes:
            node.begin()

    def run_until_us(self, end_us: int) -> None:
        """Let everything happen up to a virtual time."""
        self.loop.run_until_us(end_us)

    @property
    def processes(self) -> list[Process]:
        """All processes."""
        gateways = [host.process for host in self.gateways]
        return [self.aggregator, *gateways, *(host.process for host in self.nodes)]

    @property
    def trace_hash(self) -> str:
        """The digest of every message that arrived, with its time, so far."""
        return self._hash.hexdigest()

    def _hear(self, receiver: str, sender: str, crc32: int) -> None:
        text = f"{self.loop.now_us} {receiver} {sender} {crc32} "
        self._hash.update(text.encode())

    def _alive(self, process: Process) -> Callable[[], bool]:
        life = process.life
        return lambda: process.alive and process.life == life

    def _rng(self, what: str) -> random.Random:
        return random.Random(f"{self.blueprint.seed}:{what}")

    # The aggregator.

    def _lineage(self) -> Lineage:
        blueprint = self.blueprint
        return Lineage(blueprint.config, blueprint.plans, individual=blueprint.strategy.individual)

    def _make_aggregator(self, process: Process) -> Ports:
        blueprint = self.blueprint
        protocol = blueprint.parts.aggregator(
            self.ledger.load(),
            blueprint.plans,
            self.config,
            meter=dict,
            strategy=blueprint.strategy,
            costs=blueprint.costs,
        )
        disk = WatchedLedger(self.ledger, self.watch, self.replay)
        store = self._store(process, disk)
        compute = AggregatorCompute(
            self.loop,
            self.compute,
            self.stopwatch,
            every_us=blueprint.evaluate_every_us,
            seen=self._evaluated,
        )
        return protocol, AggregatorLink(self.uplinks, self.watch), store, compute

    def _store(self, process: Process, disk: Any) -> DiskStore:
        return DiskStore(
            self.loop,
            disk,
            self._rng(f"disk:{process.name}:{process.life}"),
            self._alive(process),
            failure_rate=lambda: self.save_failure_rate,
        )

    def _aggregator_up(self, process: Process) -> None:
        self.uplinks.aggregator = process.deliver

    # Gateways.

    def _add_gateway(self, number: int) -> GatewayHost:
        name = f"gw-{number + 1}"
        line = Line(
            names.gateway_peer(name),
            self.blueprint.gateway_links[number],
            self._rng(f"line:{name}"),
        )
        self.uplinks.lines[line.name] = line
        boots: list[int] = [0]
        disk = GatewayDisk()

        def will() -> tuple[str, Message]:
            state = GatewayState(gateway=name, boot=boots[0], state="lost")
            return topics.channel(names.gateway_state_channel(name)), state

        def meter() -> dict[str, int]:
            return {**session.meter(), **line.meter()}

        def make(process: Process) -> Ports:
            boots[0] = self._rng(f"boot:{name}:{process.life}").getrandbits(48)
            line.life = process.life
            kind = self.blueprint.parts.gateway
            protocol = gateway_protocol(kind, name, boots[0], self.config, disk, meter)
            link = GatewayLink(session, self.uplinks, line, self.watch)
            return protocol, link, self._store(process, disk), None

        topics = Topics(self.config.fleet.site, "gateway", name)
        session = Session(line.name, topics, LAN, self._rng(f"session:{name}"), will)
        session.broker = self.brokers[number % len(self.brokers)]
        return GatewayHost(line.name, self.loop, make, session, line, self.uplinks, disk)

    # Nodes.

    def _add_node(self, device: Device) -> NodeHost:
        disk = self.blueprint.parts.node_disk(device.name, keep_bodies=self.blueprint.keep_bodies)
        seed, config = self.blueprint.seed, self.config

        def will() -> tuple[str, Message]:
            return topics.channel(names.node_state_channel(device.name)), wills[-1]

        def make(process: Process) -> Ports:
            books = disk.load()
            wills.append(last_will(books))
            protocol = self.blueprint.parts.node(
                books,
                self.compute.manifest,
                host.node_config,
                model=config.fleet.model,
                seed=seed,
                chunk_bytes=config.broker.chunk_bytes,
                meter=session.meter,
                tests=config.data.local_test_fraction > 0,
            )
            compute = NodeCompute(
                device,
                self.pool,
                self.compute,
                self.loop,
                seed=seed,
                began=host.began_training,
                dies=host.dies_at,
            )
            return protocol, NodeLink(session), self._store(process, watched), compute

        wills: deque[Message] = deque(maxlen=1)
        watched = WatchedNodeDisk(disk, self.watch)
        topics = Topics(config.fleet.site, "node", device.name)
        name = names.node_peer(device.name)
        rng = self._rng(f"session:{device.name}")
        session = Session(name, topics, device.link, rng, will)
        session.broker = self.brokers[device.index % len(self.brokers)]
        host = NodeHost(name, self.loop, make, session, device, disk, self.brokers, config.node)
        return host


LAN = LinkModel(latency_us=1_000, up_bps=0, down_bps=0, loss=0, repeat=0, reorder_us=0, trace=None)
