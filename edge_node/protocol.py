"""The edge node: fetch a version, train once from it, keep the update until it is settled, sleep, repeat.

PROTOCOL, section Node. At most one update per version while a gateway is reachable; offline, up to
`offline_updates` more from the same version, each going on where the last one ended.
"""

import random
import zlib
from collections.abc import Callable, Mapping
from typing import Any

from edge_node.courier import RESEND_TIMER, Courier
from edge_node.outbox_state import OutboxState
from edge_node.replica import Replica
from edge_node.rows import Books, KeepUnit, PutUpdate, Row
from edge_node.work import Work, make_update
from hedgerow.core import names
from hedgerow.core.codec import encode
from hedgerow.core.config import NodeConfig
from hedgerow.core.effects import (
    Announce,
    Effect,
    Follow,
    JobFailed,
    JobResult,
    LinkDown,
    LinkUp,
    Saved,
    Send,
    SetTimer,
    Train,
    Trained,
    Unfollow,
)
from hedgerow.core.messages import (
    BlobPart,
    BlobsWanted,
    BodiesWanted,
    ChunksWanted,
    Descriptor,
    GatewayState,
    NodeState,
    NodeStateName,
    Receipts,
)
from hedgerow.core.outlet import SAVE_TIMER, Outlet, Saves
from hedgerow.core.units import Manifest, Vector

_SECOND_US = 1_000_000
_RETRY_US = 10 * _SECOND_US
_FETCH_US = 5 * _SECOND_US


class NodeProtocol:
    """One node; `meter` reads the link's byte counters."""

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
    ) -> None:
        self.node = books.node
        self.state: NodeStateName = "ready"
        self._config = config
        self._model = model
        self._seed = seed
        self._meter = meter
        self._outlet = Outlet()
        self._saves: Saves[Row] = Saves(self._outlet)
        self._replica = Replica(manifest, model, books.units)
        self._courier = Courier(
            OutboxState(books, config.outbox_updates),
            self._outlet,
            model=model,
            home=config.home,
            chunk_bytes=chunk_bytes,
            resend_us=round(config.resend_s * _SECOND_US),
            rng=random.Random(f"{seed}:{books.node}:{books.epoch}"),
        )
        self._kept = dict(books.units)
        self._followed: set[str] = set()
        self._work: Work | None = None
        self._trained_version = books.last_base_version
        self._next_seq = books.issued + 1
        self._offline_count = 0
        self._drift: Vector | None = None
        self._usual_us = 0
        self._peak_bytes = 0
        self._rest_until_us = 0

    def start(self, now_us: int) -> None:
        """Listen to the gateways and begin the offers' timer."""
        self._courier.start()
        self._consider(now_us)

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        """Take a message or a change of the link; raises PeerError for what a node must not get."""
        match message:
            case LinkUp():
                self._courier.link_up()
                self._announce()
            case LinkDown():
                self._courier.online = False
            case GatewayState():
                if self._courier.take_gateway(message):
                    self._announce()
            case Descriptor():
                if peer == names.gateway_peer(self._courier.gateway):
                    self._take_version(adopted=self._replica.offer(message))
            case BlobPart():
                self._take_version(adopted=self._replica.put(message))
            case Receipts():
                rows = self._courier.take_receipts(message)
                if rows:
                    self._saves.save(*rows)
                    self._announce()
            case BodiesWanted():
                for update_id in message.ids:
                    self._courier.send_body(update_id)
            case ChunksWanted():
                self._courier.send_body(message.id, set(message.missing))
            case _:
                self._outlet.record("ignored_message", kind=type(message).__name__)
        self._consider(now_us)

    def timer_fired(self, name: str, now_us: int) -> None:
        """Rest over, offers due, units still lacking, or the disk worth another try."""
        if name == RESEND_TIMER:
            self._courier.offer()
            self._courier.set_timer()
        elif name == "fetch":
            self._ask_for_units()
        elif name == SAVE_TIMER:
            self._saves.retry()
        self._consider(now_us)

    def job_done(self, result: JobResult, now_us: int) -> None:
        """Take the result of a training or of a save."""
        match result:
            case Trained():
                self._finish_training(result, now_us)
            case Saved(job):
                for row in self._saves.done(job):
                    if isinstance(row, PutUpdate):
                        self._courier.deliver(row)
                        self._announce()
            case JobFailed(job) if job in self._saves:
                self._saves.failed(result)
            case JobFailed():
                self._fail_training(result, now_us)
        self._consider(now_us)

    def effects(self) -> list[Effect]:
        """Return what must be done now, in order, and forget it."""
        return self._outlet.drain()

    def _take_version(self, *, adopted: bool) -> None:
        if adopted:
            self._offline_count = 0
            self._drift = None
            self._keep_units()
            self._outlet.record("version_adopted", version=self._replica.version)
        self._follow_missing()

    def _keep_units(self) -> None:
        units = self._replica.kept_units()
        changed = {name: body for name, body in units.items() if self._kept.get(name) != body}
        if changed:
            self._kept.update(changed)
            self._saves.save(*(KeepUnit(name, body) for name, body in changed.items()))

    def _follow_missing(self) -> None:
        wanted = {names.blob_channel(self._model, d, "+") for d in self._replica.missing}
        for channel in sorted(self._followed - wanted):
            self._outlet.do(Unfollow(channel))
        for channel in sorted(wanted - self._followed):
            self._outlet.do(Follow(channel))
        if wanted - self._followed:
            self._outlet.do(SetTimer("fetch", _FETCH_US))
        self._followed = wanted

    def _ask_for_units(self) -> None:
        missing = self._replica.missing
        if missing:
            if self._courier.peer:
                wanted = BlobsWanted(model=self._model, digests=missing)
                self._outlet.do(Send(self._courier.peer, wanted))
            self._outlet.do(SetTimer("fetch", _FETCH_US))

    def _consider(self, now_us: int) -> None:
        """Start a training when there is a reason to and nothing in the way."""
        base = self._replica.descriptor
        saving = any(isinstance(row, PutUpdate) for row in self._saves.waiting)
        if base is None or not base.training_open or self._work is not None or saving:
            return
        fresh = base.version > self._trained_version
        alone = not self._courier.online and self._offline_count < self._config.offline_updates
        if not (fresh or alone) or not self._make_room():
            return
        if now_us >= self._rest_until_us:
            self._train(base, now_us)
        elif self.state != "sleeping":
            self._set_state("sleeping")
            self._outlet.do(SetTimer("rest", self._rest_until_us - now_us))

    def _make_room(self) -> bool:
        outbox = self._courier.outbox
        if not outbox.full:
            return True
        row = outbox.expire_oldest()
        if row is not None:
            self._outlet.record("update_expired", reason=row.reason, seq=row.seq)
            self._saves.save(row)
        return row is not None

    def _train(self, base: Descriptor, now_us: int) -> None:
        plan, params = self._replica.plan, self._replica.params
        assert plan is not None
        assert params is not None
        local = base.training.get(self._config.memory_class) or base.training["default"]
        if base.version <= self._trained_version:
            self._offline_count += 1
        seed_text = f"{self._seed}:{self.node}:{base.version}:{self._offline_count}"
        job = Train(
            job=self._outlet.next_job(),
            plan=plan,
            params=params,
            passes=local.passes,
            batch_size=local.batch_size,
            learning_rate=local.learning_rate,
            seed=zlib.crc32(seed_text.encode()),
            offset=self._drift,
        )
        self._trained_version = max(self._trained_version, base.version)
        self._work = Work(job, base, now_us)
        self._outlet.do(job)
        self._set_state("training")

    def _finish_training(self, result: Trained, now_us: int) -> None:
        work = self._work
        assert work is not None
        self._work = None
        took_us = now_us - work.since_us
        self._usual_us = took_us if self._usual_us == 0 else (self._usual_us + took_us) // 2
        self._peak_bytes = max(self._peak_bytes, result.peak_bytes)
        self._rest_until_us = now_us + round(self._config.sleep_s * _SECOND_US)
        if self._replica.version == work.base.version:
            offset = work.job.offset
            self._drift = result.delta if offset is None else offset + result.delta
        update, clipped = make_update(work, result, self._courier.outbox.id_of(self._next_seq))
        if clipped:
            self._outlet.record("clipped", clip_norm=work.base.rules.clip_norm)
        loss = round(result.loss_last, 4)
        self._outlet.record("trained", base=work.base.version, loss=loss, took_us=took_us)
        self._saves.save(PutUpdate(self._next_seq, work.base.version, encode(update)))
        self._next_seq += 1
        self._set_state("ready")

    def _fail_training(self, failed: JobFailed, now_us: int) -> None:
        assert self._work is not None
        self._trained_version = self._work.base.version - 1
        self._work = None
        self._rest_until_us = now_us + _RETRY_US
        self._outlet.record("training_failed", reason="compute", detail=failed.detail)
        self._set_state("ready")

    def _set_state(self, state: NodeStateName) -> None:
        self.state = state
        self._announce()

    def _announce(self) -> None:
        if not self._courier.online:
            return
        state = NodeState(
            node=self.node,
            epoch=self._courier.outbox.epoch,
            state=self.state,
            gateway=self._courier.gateway,
            version=max(self._replica.version, 0),
            memory_class=self._config.memory_class,
            usual_us=self._usual_us,
            peak_bytes=self._peak_bytes,
            counters={**self._courier.outbox.counters(), **self._meter()},
        )
        self._outlet.do(Announce(names.node_state_channel(self.node), state))
