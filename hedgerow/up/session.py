"""One session of a run: start the fleet, watch it, let it drain, stop it in order."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec

from aggregator.status import Status
from hedgerow.core.config import Config
from hedgerow.core.errors import HedgerowError
from hedgerow.runtime.broker import RunningBroker, start_broker
from hedgerow.up import children
from hedgerow.up.picture import Picture
from hedgerow.up.poll import History, Poller, Traffic
from hedgerow.up.ports import Ports
from hedgerow.up.runfolder import RunFolder, settle_ports
from hedgerow.up.supervisor import Supervisor
from hedgerow.up.usage import Usage
from hedgerow.up.view import Screen

POLL_S = 0.5
DRAIN_S = 15.0
QUIET_S = 3.0
"""Nothing has moved for this long after training ended: what is still held waits for a later start."""

STOP_GRACE_S = 10.0
FAREWELL_S = 4.0
KEEP_S = 5.0
"""How often the sums so far are written down, should `hedgerow up` itself be killed."""


class RunError(HedgerowError):
    """The run could not go on; the text says why."""


@dataclass
class Session:
    """A fleet that runs. `interrupted` is set by the first SIGINT or SIGTERM; the second kills."""

    folder: RunFolder
    config: Config
    broker: RunningBroker
    supervisor: Supervisor
    picture: Picture
    screen: Screen
    poller: Poller
    usage: Usage
    interrupted: asyncio.Event
    began: float
    kept: float = 0.0

    def elapsed_s(self) -> float:
        """Return how long this session has lasted."""
        return time.monotonic() - self.began

    async def train(self) -> None:
        """Watch until training is done or interrupted; raises RunError when a process cannot be kept."""
        await self._watch(lambda status: bool(status.done), float("inf"))

    async def drain(self) -> None:
        """Give nodes a bounded time to see their last updates settled."""
        last: tuple[object, ...] = ()
        moved = time.monotonic()

        def still(status: Status) -> bool:
            nonlocal last, moved
            held = tuple(node.state.counters.get("outbox", 0) for node in status.nodes)
            training = any(node.state.state == "training" for node in status.nodes)
            now = (held, status.buffered_updates, status.updates_applied)
            if now != last or training:
                last, moved = now, time.monotonic()
            return not any(held) or time.monotonic() - moved >= QUIET_S

        await self._watch(still, DRAIN_S)

    async def stop(self) -> None:
        """Stop nodes, then gateways, the aggregator and the broker; each tier may still send upwards."""
        tiers = [
            children.node_names(self.config),
            children.gateway_names(self.config),
            [children.AGGREGATOR],
            [children.BROKER],
        ]
        for names in tiers:
            await self.supervisor.stop(names, STOP_GRACE_S)
            if names is tiers[0]:
                await self._hear_farewells()
            # The figures that came in meanwhile; below the aggregator nobody answers any more.
            await self._look()

    async def _hear_farewells(self) -> None:
        """Wait a little for the nodes' last counters: gateways report them every two seconds."""
        deadline = time.monotonic() + FAREWELL_S
        while time.monotonic() < deadline:
            status = await self._look()
            states = {node.state.state for node in status.nodes} if status is not None else set()
            if status is None or states <= {"disconnected", "lost"}:
                return
            await asyncio.sleep(POLL_S)

    async def _watch(self, over: Callable[[Status], bool], bound_s: float) -> None:
        """Poll and show until `over` says so, the bound is reached or the run is interrupted."""
        deadline = time.monotonic() + bound_s
        while not self.interrupted.is_set() and time.monotonic() < deadline:
            if self.supervisor.failed.done():
                raise RunError(self.supervisor.failed.result())
            status = await self._look()
            if status is not None and over(status):
                return
            await self._pause()

    async def _look(self) -> Status | None:
        """Poll once and show what is new."""
        status = await self.poller.status()
        self.usage.sample({pid: name for name, pid in self.supervisor.pids.items()})
        self.picture.elapsed_s = self.folder.state.wall_s + self.elapsed_s()
        fresh = self.picture.take(status) if status is not None else []
        self.screen.show(self.picture, fresh)
        if time.monotonic() - self.kept >= KEEP_S:
            self.keep_figures()
        return status

    def keep_figures(self) -> None:
        """Write traffic and curve down."""
        self.kept = time.monotonic()
        self.folder.state.traffic = self.picture.traffic.by_source()
        self.folder.state.curve = self.picture.history.points
        self.folder.save()

    async def _pause(self) -> None:
        """Wait for the next poll; an interruption or a failure ends it early."""
        interruption = asyncio.create_task(self.interrupted.wait())
        waiting: list[asyncio.Future[Any]] = [interruption, self.supervisor.failed]
        await asyncio.wait(waiting, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED)
        interruption.cancel()


@asynccontextmanager
async def running_fleet(
    folder: RunFolder, config: Config, ports: Ports, screen: Screen
) -> AsyncIterator[Session]:
    """Start broker, aggregator, gateways and nodes; at the end nothing of them is left."""
    interrupted = asyncio.Event()
    usage, began = Usage(), time.monotonic()
    config, notices = settle_ports(folder, config, ports)
    broker = await start_broker(config.broker, folder.process(children.BROKER))
    config = msgspec.structs.replace(config, broker=broker.config)
    folder.state.broker_port = broker.port
    folder.write_config(config)
    folder.save()
    picture = Picture(
        f"{broker.kind} on {broker.url}",
        "",
        Traffic(folder.state.traffic),
        History(folder.state.curve),
    )

    def tell(text: str) -> None:
        picture.events.append(f"{time.monotonic() - began:6.1f} s  {text}")
        screen.say(text)

    supervisor = Supervisor(tell)
    poller = Poller(config.http)
    picture.page = poller.page
    session = Session(
        folder, config, broker, supervisor, picture, screen, poller, usage, interrupted, began
    )
    _on_signals(session)
    try:
        for text in (*notices, f"broker: {picture.broker}", f"status page: {picture.page}"):
            screen.say(text)
        if broker.process is not None:
            supervisor.add(children.broker_child(broker), broker.process)
        supervisor.add(children.aggregator_child(folder))
        for child in children.gateway_children(folder, config):
            supervisor.add(child)
        for child in children.node_children(folder, config):
            supervisor.add(child)
        yield session
    finally:
        await supervisor.close()


def _on_signals(session: Session) -> None:
    def interrupt() -> None:
        if session.interrupted.is_set():
            session.supervisor.kill()
        session.interrupted.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt)
