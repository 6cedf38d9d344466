"""The edge node: fetch a version, train once from it, keep the update until it is settled, sleep, repeat.

At most one update per version while a gateway is reachable; offline, up to
`offline_updates` more from the same version, each going on where the last one ended.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from edge_node import closing, courier, epochs, fetcher, presence, rest
from edge_node.closing import Closing
from edge_node.courier import Courier
from edge_node.epochs import Epochs
from edge_node.feedback import Residuals
from edge_node.fetcher import Fetcher
from edge_node.jobs import Jobs
from edge_node.localtest import LocalTest
from edge_node.outbox_state import OutboxState
from edge_node.personal import PersonalUnits
from edge_node.presence import Presence
from edge_node.prober import Prober
from edge_node.replica import Replica
from edge_node.rest import Rest
from edge_node.room import Room
from edge_node.rows import Books, CloseUpdate, PutUpdate, Row
from edge_node.trainings import Trainings
from edge_node.turns import Turns
from edge_node.work import Packer
from hedgerow.core import names, outlet
from hedgerow.core.config import NodeConfig
from hedgerow.core.effects import (
    Effect,
    Evaluated,
    JobFailed,
    JobResult,
    LinkDown,
    LinkUp,
    Probed,
    Saved,
    Trained,
)
from hedgerow.core.messages import (
    BlobPart,
    BodiesWanted,
    ChunksWanted,
    Descriptor,
    GatewayState,
    NodeState,
    Receipts,
)
from hedgerow.core.outlet import Outlet, Saves
from hedgerow.core.units import Manifest

_SECOND_US = 1_000_000


class NodeProtocol:
    """One node; `meter` reads the link's byte counters, `tests` says whether it has examples for tests."""

    def __init__(
        self,
        books: Books,
        manifest: Manifest,
        config: NodeConfig,
        *,
        model: str,
        seed: int,
        chunk_bytes: int,
        meter: Callable[[], Mapping[str, int]],
        tests: bool = False,
    ) -> None:
        self.node = books.node
        self._outlet = Outlet()
        self._saves: Saves[Row] = Saves(self._outlet)
        self._replica = Replica(manifest, model, books.units)
        self._fetcher = Fetcher(books.node, self._replica, self._outlet, self._saves, books.units)
        self._turns = Turns(books.last_base_version, books.last_provisional, config)
        personal = PersonalUnits(manifest, books.personal, self._outlet)
        self._tests = LocalTest(config.test_versions * tests, personal, self._outlet)
        residuals = Residuals(manifest, books.residuals, self._outlet)
        outbox = OutboxState(books, config.outbox_updates, residuals.give_back)
        self._courier = Courier(
            outbox,
            self._outlet,
            model=model,
            home=config.home,
            chunk_bytes=chunk_bytes,
            resend_us=round(config.resend_s * _SECOND_US),
            rng=random.Random(f"{seed}:{books.node}:{books.epoch}"),
        )
        self._prober = Prober(books.node, config, self._outlet)
        self._closing = Closing(self._outlet, self._saves, residuals)
        self._epochs = Epochs(books, outbox, self._closing, self._outlet)
        self._presence = Presence(
            self._courier, self._outlet, self._closing, self._epochs, config.memory_class, meter
        )
        self._rest = Rest(self._turns, self._courier.backoff, self._presence, self._outlet)
        self._room = Room(outbox, self._replica, self._closing, self._outlet)
        self._trainings = Trainings(
            self._outlet,
            seed=seed,
            replica=self._replica,
            jobs=Jobs(self._replica, config, self._turns, personal),
            turns=self._turns,
            packer=Packer(residuals, config.max_update_bytes, self._outlet),
            personal=personal,
            room=self._room,
            closing=self._closing,
            courier=self._courier,
            presence=self._presence,
        )

    def start(self, now_us: int) -> None:
        """Listen to the gateways and begin the offers' timer."""
        self._courier.start()
        self._epochs.start()
        self._go_on(now_us)

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        """Take a message or a change of the link; raises PeerError for what a node must not get."""
        match message:
            case LinkUp():
                self._presence.forget()
                self._epochs.link_up()
                self._courier.link_up(now_us)
            case LinkDown():
                self._courier.online = False
            case GatewayState():
                self._courier.take_gateway(peer, message, now_us)
            case NodeState():
                self._epochs.take_state(peer, message)
            case Descriptor() | BlobPart():
                if not self._take_version(peer, message):
                    return
            case Receipts():
                self._epochs.take_receipts(message.receipts)
                self._end(self._courier.take_receipts(message, now_us))
            case BodiesWanted() | ChunksWanted():
                self._end(self._courier.send_wanted(message))
            case _:
                self._outlet.record("ignored_message", kind=type(message).__name__)
        self._go_on(now_us)

    def timer_fired(self, name: str, now_us: int) -> None:
        """Rest over, offers due, units still lacking, or the disk worth another try."""
        match name:
            case courier.RESEND_TIMER:
                self._courier.offer(now_us)
                self._courier.set_timer()
            case courier.SILENCE_TIMER:
                self._courier.forget_silent(now_us)
            case courier.HOMING_TIMER:
                self._courier.patience_ended(now_us)
            case fetcher.FETCH_TIMER:
                self._fetcher.ask(self._courier.peer)
            case epochs.CERTAINTY_TIMER:
                self._epochs.give_up(online=self._courier.online)
            case presence.PRESENCE_TIMER:
                self._presence.timer_fired(self._replica.version)
            case closing.CLOSE_TIMER:
                self._closing.save()
            case outlet.SAVE_TIMER:
                self._saves.retry()
            case rest.REST_TIMER:
                self._rest.timer_fired()
        self._go_on(now_us)

    def job_done(self, result: JobResult, now_us: int) -> None:
        """Take the result of a training, a test, a probe or a save."""
        match result:
            case Trained():
                self._trainings.take(result, now_us)
            case Evaluated():
                self._tests.finished(result)
                self._presence.metrics = self._tests.metrics
            case Probed():
                self._prober.finished(result, self._courier.peer, self._replica.model)
            case Saved(job):
                self._saved(self._saves.done(job), now_us)
            case JobFailed():
                self._job_failed(result, now_us)
        self._go_on(now_us)

    def effects(self) -> list[Effect]:
        """Return what must be done now, in order, and forget it."""
        return self._outlet.drain()

    def _take_version(self, peer: str, message: Descriptor | BlobPart) -> bool:
        """Take a version or a piece of a unit; False when nothing can follow from it."""
        named = isinstance(message, Descriptor)
        if named and peer != names.gateway_peer(self._courier.gateway):
            return False
        adopted = self._fetcher.take(message)
        if adopted:
            self._turns.adopted()
        return adopted or named

    def _end(self, rows: list[CloseUpdate]) -> None:
        """Have the ends of updates written, and what follows from them."""
        self._closing.later(rows)
        self._epochs.take_ends(rows)

    def _go_on(self, now_us: int) -> None:
        """Do what is next, and say so."""
        self._consider(now_us)
        self._presence.refresh(self._replica.version)

    def _consider(self, now_us: int) -> None:
        """Rest, fetch or train, whichever is next and has nothing in its way."""
        awaited = self._epochs.awaited(online=self._courier.online)
        # Numbers come to the disk in their order: a gap there means that something was lost.
        if self._trainings.ended and not awaited and not self._closing.saving:
            self._trainings.finish(now_us)
            self._tests.begin(self._replica)
        busy = self._trainings.busy or self._prober.busy or self._tests.busy
        if busy or self._closing.saving or self._courier.outbox.stuck:
            return
        if self._rest.lasts(now_us):
            return
        self._courier.listen(wanted=True)
        self._fetcher.fetch()
        base = self._replica.descriptor
        online = self._courier.online
        if base is not None and self._turns.wanted(base, self.node, online=online) and not awaited:
            self._train(base, now_us)
        elif self._presence.state == "sleeping":
            self._presence.state = "ready"

    def _train(self, base: Descriptor, now_us: int) -> None:
        """Train from `base`, but answer its probe first."""
        if self._courier.peer and self._prober.begin(base, self._trainings.next(now_us).job):
            return
        self._trainings.begin(now_us)

    def _saved(self, rows: Iterable[Row], now_us: int) -> None:
        for row in rows:
            if isinstance(row, PutUpdate):
                self._courier.deliver(row, now_us)
                if not self._trainings.busy:
                    self._presence.state = "ready"
        self._closing.saved()

    def _job_failed(self, failed: JobFailed, now_us: int) -> None:
        if failed.job in self._saves:
            self._saves.failed(failed)
            self._closing.failed()
            self._room.make()
        elif failed.job in self._tests:
            self._tests.failed(failed)
        elif failed.job in self._prober:
            self._prober.failed(failed)
        else:
            self._trainings.failed(failed, now_us)
