"""The edge node: fetch a version, train once from it, keep the update until it is settled, sleep, repeat.

At most one update per version while a gateway is reachable; offline, up to
`offline_updates` more from the same version, each going on where the last one ended.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from edge_node.closing import CLOSE_TIMER, Closing
from edge_node.courier import RESEND_TIMER, SILENCE_TIMER, Courier
from edge_node.feedback import Residuals
from edge_node.fetcher import FETCH_TIMER, Fetcher
from edge_node.jobs import Jobs
from edge_node.localtest import LocalTest
from edge_node.outbox_state import OutboxState
from edge_node.personal import PersonalUnits
from edge_node.presence import PRESENCE_TIMER, Presence
from edge_node.prober import Prober
from edge_node.replica import Replica
from edge_node.rows import Books, PutUpdate, Row
from edge_node.turns import Turns
from edge_node.work import Packer, Work
from hedgerow.core import names
from hedgerow.core.codec import encode
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
    SetTimer,
    Trained,
)
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BlobPart,
    BodiesWanted,
    ChunksWanted,
    Descriptor,
    GatewayState,
    Receipts,
)
from hedgerow.core.outlet import SAVE_TIMER, Outlet, Saves
from hedgerow.core.units import Manifest

_SECOND_US = 1_000_000
_REST_TIMER = "rest"


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
        self._seed = seed
        self._outlet = Outlet()
        self._saves: Saves[Row] = Saves(self._outlet)
        self._replica = Replica(manifest, model, books.units)
        self._fetcher = Fetcher(books.node, self._replica, self._outlet, self._saves, books.units)
        self._turns = Turns(books.last_base_version, config)
        self._personal = PersonalUnits(manifest, books.personal, self._outlet)
        self._jobs = Jobs(self._replica, config, self._turns, self._personal)
        self._tests = LocalTest(config.test_versions * tests, self._personal, self._outlet)
        self._residuals = Residuals(manifest, books.residuals, self._outlet)
        self._packer = Packer(self._residuals, config.max_update_bytes, self._outlet)
        self._courier = Courier(
            OutboxState(books, config.outbox_updates, self._residuals.give_back),
            self._outlet,
            model=model,
            home=config.home,
            chunk_bytes=chunk_bytes,
            resend_us=round(config.resend_s * _SECOND_US),
            rng=random.Random(f"{seed}:{books.node}:{books.epoch}"),
        )
        self._work: Work | None = None
        self._prober = Prober(books.node, config, self._outlet)
        self._closing = Closing(self._outlet, self._saves, self._residuals)
        self._presence = Presence(self._courier, self._outlet, config.memory_class, meter)
        self._next_seq = books.issued + 1

    def start(self, now_us: int) -> None:
        """Listen to the gateways and begin the offers' timer."""
        self._courier.start()
        self._go_on(now_us)

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        """Take a message or a change of the link; raises PeerError for what a node must not get."""
        match message:
            case LinkUp():
                self._presence.forget()
                self._courier.link_up()
            case LinkDown():
                self._courier.online = False
            case GatewayState():
                if peer != names.gateway_peer(message.gateway):
                    raise PeerError("wrong-source", f"{peer} announced {message.gateway}")
                self._courier.take_gateway(message)
            case Descriptor() | BlobPart():
                if not self._take_version(peer, message):
                    return
            case Receipts():
                self._closing.later(self._courier.take_receipts(message))
            case BodiesWanted() | ChunksWanted():
                self._courier.send_wanted(message)
            case _:
                self._outlet.record("ignored_message", kind=type(message).__name__)
        self._go_on(now_us)

    def timer_fired(self, name: str, now_us: int) -> None:
        """Rest over, offers due, units still lacking, or the disk worth another try."""
        if name == RESEND_TIMER:
            self._courier.offer()
            self._courier.set_timer()
        elif name == SILENCE_TIMER:
            self._courier.forget_silent()
        elif name == FETCH_TIMER:
            self._fetcher.ask(self._courier.peer)
        elif name == _REST_TIMER:
            self._turns.rested()
        elif name == PRESENCE_TIMER:
            self._presence.timer_fired(self._replica.version)
        elif name == CLOSE_TIMER:
            self._closing.save()
        elif name == SAVE_TIMER:
            self._saves.retry()
        self._go_on(now_us)

    def job_done(self, result: JobResult, now_us: int) -> None:
        """Take the result of a training, a test, a probe or a save."""
        match result:
            case Trained():
                self._finish_training(result, now_us)
            case Evaluated():
                self._tests.finished(result)
                self._presence.metrics = self._tests.metrics
            case Probed():
                self._prober.finished(result, self._courier.peer, self._replica.model)
            case Saved(job):
                for row in self._saves.done(job):
                    if isinstance(row, PutUpdate):
                        self._courier.deliver(row)
                        self._presence.state = "ready"
                self._closing.saved()
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

    def _go_on(self, now_us: int) -> None:
        """Do what is next, and say so."""
        self._consider(now_us)
        self._presence.refresh(self._replica.version)

    def _consider(self, now_us: int) -> None:
        """Rest, fetch or train, whichever is next and has nothing in its way."""
        busy = self._work is not None or self._prober.busy or self._tests.busy
        if busy or self._closing.saving or self._courier.outbox.stuck:
            return
        rest_us = self._turns.rest_us(now_us)
        if rest_us > 0:
            if self._presence.state != "sleeping":
                self._presence.state = "sleeping"
                self._outlet.do(SetTimer(_REST_TIMER, rest_us))
            return
        self._courier.listen(wanted=True)
        self._fetcher.fetch()
        base = self._replica.descriptor
        if base is not None and self._turns.wanted(base, self.node, online=self._courier.online):
            self._train(base, now_us)
        elif self._presence.state == "sleeping":
            self._presence.state = "ready"

    def _make_room(self) -> None:
        row = self._courier.outbox.expire_for_room()
        if row is not None:
            self._outlet.record("update_expired", reason=row.reason, seq=row.seq)
            self._closing.save(row)

    def _train(self, base: Descriptor, now_us: int) -> None:
        """Train from `base`, but answer its probe first."""
        # The seq makes trainings from one version differ, over restarts and reconnections too.
        seed_text = f"{self._seed}:{self.node}:{base.version}:{self._next_seq}"
        work = self._jobs.next(self._outlet.next_job(), base, seed_text, now_us)
        if self._courier.peer and self._prober.begin(base, work.job):
            return
        self._make_room()
        self._work = work
        self._outlet.do(work.job)
        self._presence.began()
        self._courier.listen(wanted=False)

    def _finish_training(self, result: Trained, now_us: int) -> None:
        work = self._work
        assert work is not None
        self._work = None
        took_us = now_us - work.since_us
        self._presence.trained(took_us, result.peak_bytes)
        self._jobs.budget.learn(took_us, result.steps)
        own = self._personal.trained(work, result.delta)
        self._turns.finished(work, work.shared_part(result.delta), self._replica.version, now_us)
        update = self._packer.update(work, result, self._courier.outbox.id_of(self._next_seq))
        self._courier.made(update)
        loss = round(result.loss_last, 4)
        self._outlet.record("trained", base=work.base.version, loss=loss, took_us=took_us)
        self._closing.save(*own, PutUpdate(self._next_seq, work.base.version, encode(update)))
        self._next_seq += 1
        self._tests.begin(self._replica)

    def _job_failed(self, failed: JobFailed, now_us: int) -> None:
        if failed.job in self._saves:
            self._saves.failed(failed)
        elif failed.job in self._tests:
            self._tests.failed(failed)
        elif failed.job in self._prober:
            self._prober.failed(failed)
        else:
            self._fail_training(failed, now_us)

    def _fail_training(self, failed: JobFailed, now_us: int) -> None:
        self._jobs.failed(self._work)
        self._work = None
        self._turns.failed(now_us)
        self._outlet.record("training_failed", reason="compute", detail=failed.detail)
        self._presence.state = "ready"
