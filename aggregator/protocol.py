"""The aggregator: buffer partial aggregates, merge them into versions, settle, publish. PROTOCOL, Aggregator.

Repeats are found by update ids alone, in the ledger or on their way into it. An update is settled only
after the transaction that holds its version, its ledger row and the merge's inputs is on disk.
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aggregator.intake import read_partial
from aggregator.lineage import Lineage
from aggregator.observer import Observer
from aggregator.rows import AcceptPartial, CommitVersion, DropPartials, SaveMetrics, Snapshot
from aggregator.status import Status
from hedgerow.core import names
from hedgerow.core.config import Config
from hedgerow.core.effects import (
    CancelTimer,
    Effect,
    Evaluate,
    Evaluated,
    JobFailed,
    JobResult,
    LinkDown,
    Saved,
    Send,
    SetTimer,
)
from hedgerow.core.errors import PeerError
from hedgerow.core.merge import merge
from hedgerow.core.messages import (
    Descriptor,
    FleetReport,
    Header,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    Subscribe,
)
from hedgerow.core.outlet import SAVE_TIMER, Outlet, Saves
from hedgerow.core.partial import PartialAggregate, add
from hedgerow.core.plan import Plan
from hedgerow.core.seqset import KnownUpdates

_SECOND_US = 1_000_000
Row = AcceptPartial | CommitVersion | SaveMetrics | DropPartials


@dataclass(frozen=True, slots=True)
class _Buffered:
    """A durable partial with the sums already read from it, so that they are checked only once."""

    partial: Partial
    sums: PartialAggregate


class AggregatorProtocol:
    """One model's aggregator. `meter` reads the process's counters for the status."""

    def __init__(
        self,
        snapshot: Snapshot,
        plan: Plan,
        config: Config,
        *,
        meter: Callable[[], Mapping[str, int]],
    ) -> None:
        self.lineage = Lineage(config, plan)
        for descriptor in snapshot.descriptors:
            self.lineage.add(descriptor)
        self.params = snapshot.params
        self.observer = Observer(snapshot)
        self.done = ""
        self._verifying = False
        self._config = config
        self._term = snapshot.term
        self._meter = meter
        self._outlet = Outlet()
        self._saves: Saves[Row] = Saves(self._outlet)
        self._settled = KnownUpdates(row.header.id for row in snapshot.ledger)
        self._coming: dict[Any, str] = {}
        self._buffer: list[_Buffered] = []
        self._accepting: dict[str, _Buffered] = {}
        self._restored = snapshot.waiting
        self._committing: CommitVersion | None = None
        self._evaluation: Evaluate | None = None
        self._evaluated_version = max(snapshot.metrics, default=-1)
        self._receipts: deque[tuple[int, str, list[Receipt]]] = deque(maxlen=4096)
        self._streams: set[str] = set()
        self._started_us = 0
        for row in snapshot.ledger[-256:]:
            self.lineage.observe([row.header], row.version - 1)

    def start(self, now_us: int) -> None:
        """Publish the newest version under this term and take up the partials found on disk."""
        self._started_us = now_us
        for partial in self._restored:
            self._buffer.append(_Buffered(partial, read_partial(partial, self.lineage)))
            self._coming.update((header.id, partial.gateway) for header in partial.headers)
        self._restored = ()
        self._check_done()
        self.lineage.reopen(self._term, training_open=not self.done)
        self._outlet.do(SetTimer("limit", round(self._config.stop.max_s * _SECOND_US)))
        self._evaluate()
        self._arm_deadline()
        self._merge_if_due()

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        """Take a gateway's message; raises PeerError for anything a gateway must not send."""
        gateway = names.peer_id(peer)
        match message:
            case Partial():
                if message.gateway != gateway:
                    raise PeerError("wrong-source", f"{peer} posted for {message.gateway}")
                self._take_partial(peer, message)
            case Subscribe(after=after):
                self._streams.add(peer)
                self.observer.link(gateway, connected=True)
                self._catch_up(peer, gateway, after)
            case LinkDown():
                self._streams.discard(peer)
                self.observer.link(gateway, connected=False)
            case FleetReport():
                self.observer.report(message, now_us)
            case _:
                raise PeerError("malformed", f"{type(message).__name__} from {peer}")

    def timer_fired(self, name: str, now_us: int) -> None:
        """The merge deadline, the time limit, or another try at the disk."""
        if name == "deadline":
            self._merge_if_due(deadline=True)
        elif name == "limit":
            self._close("max-time")
        elif name == SAVE_TIMER:
            self._saves.retry()

    def job_done(self, result: JobResult, now_us: int) -> None:
        """Take what has become durable, or an evaluation."""
        match result:
            case Saved(job):
                for row in self._saves.done(job):
                    self._durable(row)
            case Evaluated(_, version, metrics):
                self._evaluation = None
                self._take_metrics(version, metrics, now_us)
            case JobFailed(job) if job in self._saves:
                self._saves.failed(result)
            case JobFailed(_, detail):
                self._evaluation = None
                self._outlet.record("evaluation_failed", reason="compute", detail=detail)

    def effects(self) -> list[Effect]:
        """Return what must be done now, in order, and forget it."""
        return self._outlet.drain()

    # Partials.

    def _take_partial(self, peer: str, partial: Partial) -> None:
        known = [self._fate(header) for header in partial.headers]
        receipts = [receipt for receipt in known if receipt is not None]
        if receipts:
            status = "known" if len(receipts) == len(known) else "overlap"
            self._reply(peer, partial, status, receipts)
            return
        try:
            sums = read_partial(partial, self.lineage)
        except PeerError as error:
            self._outlet.record(
                "partial_rejected", reason=error.reason, gateway=peer, detail=error.detail
            )
            self._reply(peer, partial, "rejected", reason=error.reason)
            return
        self._accepting[partial.id] = _Buffered(partial, sums)
        self._coming.update((header.id, partial.gateway) for header in partial.headers)
        self._saves.save(AcceptPartial(partial))

    def _fate(self, header: Header) -> Receipt | None:
        """Return the receipt of an update that must not be summed (again), None for a welcome one."""
        if header.id in self._settled:
            return Receipt(header.id, "settled")
        if header.id in self._coming:
            return Receipt(header.id, "admitted")
        tau_max = self.lineage.current.rules.staleness.tau_max
        if self.lineage.version - header.base_version > tau_max:
            self._outlet.record("update_rejected", reason="stale", node=header.id.node)
            return Receipt(header.id, "rejected", "stale")
        return None

    def _reply(
        self,
        peer: str,
        partial: Partial,
        status: Any,
        receipts: list[Receipt] | None = None,
        reason: str = "",
    ) -> None:
        self._outlet.record("partial_answered", reason=status)
        reply = PartialReply(
            partial_id=partial.id, status=status, receipts=receipts or [], reason=reason
        )
        self._outlet.do(Send(peer, reply))

    # Merging.

    @property
    def buffered(self) -> int:
        """Original updates that wait for a merge."""
        return sum(len(entry.partial.headers) for entry in self._buffer)

    def _merge_if_due(self, *, deadline: bool = False) -> None:
        """Merge the whole buffer when it holds K original updates, or anything at the deadline."""
        due = self.buffered >= (1 if deadline else self._config.aggregation.buffer_size)
        if self._committing is not None or self.done or self._verifying or not due:
            return
        entries, self._buffer = self._buffer, []
        headers = tuple(header for entry in entries for header in entry.partial.headers)
        total = add(*(entry.sums for entry in entries))
        params, statistics = merge(self.params, total, self.lineage.context())
        self.lineage.observe(headers, self.lineage.version)
        descriptor = self.lineage.next(params, self._term)
        self._committing = CommitVersion(
            descriptor, params, tuple(entry.partial.id for entry in entries), headers
        )
        damping = min((s.damping for s in statistics.values()), default=0.0)
        self._outlet.record(
            "merged", version=descriptor.version, updates=len(headers), damping=round(damping, 4)
        )
        self._outlet.do(CancelTimer("deadline"))
        self._saves.save(self._committing)

    def _arm_deadline(self) -> None:
        if self._buffer and self._committing is None and not self.done:
            after_us = round(self._config.aggregation.deadline_s * _SECOND_US)
            self._outlet.do(SetTimer("deadline", after_us))

    def _durable(self, row: Row) -> None:
        match row:
            case AcceptPartial(partial):
                first = not self._buffer
                self._buffer.append(self._accepting.pop(partial.id))
                self._reply(names.gateway_peer(partial.gateway), partial, "accepted")
                if first:
                    self._arm_deadline()
                self._merge_if_due()
            case CommitVersion():
                self._publish(row)
                self._arm_deadline()
                self._merge_if_due()

    def _publish(self, commit: CommitVersion) -> None:
        """A version is on disk: settle its updates, tell the gateways, evaluate it."""
        self._committing = None
        before = self.lineage.version
        self.params = commit.params
        self.lineage.add(commit.descriptor)
        self.observer.settled(commit.headers, before)
        by_gateway: dict[str, list[Receipt]] = {}
        for header in commit.headers:
            self._settled.add(header.id)
            gateway = self._coming.pop(header.id)
            by_gateway.setdefault(gateway, []).append(Receipt(header.id, "settled"))
        self._outlet.record("update_settled", len(commit.headers))
        version = commit.descriptor.version
        for gateway, receipts in by_gateway.items():
            self._receipts.append((version, gateway, receipts))
            peer = names.gateway_peer(gateway)
            if peer in self._streams:
                self._outlet.do(Send(peer, Receipts(receipts=receipts, version=version)))
        self._push(self.lineage.reopen(self._term, training_open=not self.done))
        every = self._config.aggregation.checkpoint_versions
        if version % every == 0:
            self._saves.save(DropPartials(version))
        self._evaluate()

    def _push(self, descriptor: Descriptor) -> None:
        for peer in sorted(self._streams):
            self._outlet.do(Send(peer, descriptor))

    def _catch_up(self, peer: str, gateway: str, after: int) -> None:
        """Send what a gateway missed, receipts before the versions that settled them."""
        for version, owner, receipts in self._receipts:
            if owner == gateway and version > after:
                self._outlet.do(Send(peer, Receipts(receipts=receipts, version=version)))
        for descriptor in self.lineage.since(after):
            self._outlet.do(Send(peer, descriptor))

    # Evaluation and the end.

    def _evaluate(self) -> None:
        """Evaluate the newest version unless an evaluation is under way; versions may be skipped."""
        version = self.lineage.version
        if self._evaluation is None and version > self._evaluated_version:
            self._evaluation = Evaluate(self._outlet.next_job(), version, self.params)
            self._outlet.do(self._evaluation)

    def _take_metrics(self, version: int, metrics: Mapping[str, float], now_us: int) -> None:
        self._evaluated_version = version
        at_s = (now_us - self._started_us) / _SECOND_US
        self.observer.evaluated(version, metrics, at_s)
        self._outlet.record("evaluated", version=version, **metrics)
        self._saves.save(SaveMetrics(version, metrics))
        self._check_done()
        self._evaluate()
        self._arm_deadline()
        self._merge_if_due()

    def _check_done(self) -> None:
        """Close when the newest version reaches the target.

        An evaluation ends after its version may have been followed by others; then merging pauses until
        the newest one is evaluated too, so that what is served in the end is what was measured.
        """
        stop = self._config.stop
        last = self.observer.curve[-1].metrics if self.observer.curve else {}
        reached = stop.target is not None and last.get(stop.metric, float("-inf")) >= stop.target
        newest = self._evaluated_version == self.lineage.version and self._committing is None
        self._verifying = reached and not newest
        if reached and newest:
            self._close("target")
        elif self._evaluated_version >= stop.max_versions:
            self._close("max-versions")

    def _close(self, why: str) -> None:
        """Stop merging; what is buffered or still comes stays durable for a later start."""
        if self.done:
            return
        self.done = why
        self._outlet.record("training_closed", reason=why, version=self.lineage.version)
        self._push(self.lineage.reopen(self._term, training_open=False))

    def status(self, now_us: int) -> Status:
        """Return the whole picture for people."""
        config, plan = self._config, self.lineage.plan
        return Status(
            site=config.fleet.site,
            model=config.fleet.model,
            version=self.lineage.version,
            term=self._term,
            uptime_s=(now_us - self._started_us) / _SECOND_US,
            done=self.done,
            metric=config.stop.metric,
            target=config.stop.target,
            plan_units=list(plan.names),
            plan_parameters=plan.size,
            model_parameters=plan.manifest.size,
            buffered_updates=self.buffered,
            merge_at=config.aggregation.buffer_size,
            updates_applied=self.observer.updates_applied,
            staleness_histogram=dict(sorted(self.observer.histogram.items())),
            counters=dict(self._meter()),
            curve=self.observer.curve,
            gateways=self.observer.gateways(now_us),
            nodes=self.observer.nodes(now_us),
        )
