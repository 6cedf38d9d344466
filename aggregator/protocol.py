"""The aggregator: buffer partial aggregates, merge them into versions, settle, publish.

Repeats are found by update ids alone, in the ledger or on their way into it. An update is settled only
after the transaction that holds its version, its ledger row and the merge's inputs is on disk.
"""

from collections.abc import Callable, Mapping
from typing import Any

from aggregator.acceptance import Acceptance
from aggregator.describe import describe
from aggregator.lineage import Lineage
from aggregator.mergebuffer import MergeBuffer
from aggregator.observer import Observer
from aggregator.publisher import Publisher
from aggregator.rows import (
    AcceptPartial,
    CommitVersion,
    DropPartials,
    Row,
    SaveMetrics,
    Snapshot,
)
from aggregator.status import Status
from aggregator.stopping import StopRule
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
    SetTimer,
)
from hedgerow.core.errors import PeerError
from hedgerow.core.merge import merge
from hedgerow.core.messages import FleetReport, Partial, Subscribe
from hedgerow.core.outlet import SAVE_TIMER, Outlet, Saves
from hedgerow.core.partial import add
from hedgerow.core.plan import Plan
from hedgerow.core.seqset import KnownUpdates

_SECOND_US = 1_000_000
_LEDGER_TAIL = 256
_EVALUATE_TIMER = "evaluate"
_EVALUATE_RETRY_US = 10 * _SECOND_US


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
        self.params = snapshot.params
        self.lineage = Lineage(config, plan)
        for descriptor in snapshot.descriptors:
            self.lineage.add(descriptor, needed_from=snapshot.descriptors[0].version)
        for row in snapshot.ledger[-_LEDGER_TAIL:]:
            self.lineage.observe([row.header], row.version - 1)
        self.observer = Observer(snapshot)
        self.stop = StopRule(config.stop)
        self._config = config
        self._term = snapshot.term
        self._restored = snapshot.waiting
        self._meter = meter
        self._outlet = Outlet()
        self._saves: Saves[Row] = Saves(self._outlet)
        self._publisher = Publisher(self._outlet)
        self._buffer = MergeBuffer(KnownUpdates(row.header.id for row in snapshot.ledger))
        self._acceptance = Acceptance(self.lineage, self._buffer, self._saves, self._outlet)
        self._committing: CommitVersion | None = None
        self._deadline_armed = False
        self._evaluating = False
        self._evaluated_version = max(snapshot.metrics, default=-1)
        self._started_us = 0

    def start(self, now_us: int) -> None:
        """Publish the newest version under this term and take up the partials found on disk."""
        self._started_us = now_us
        for partial in self._restored:
            self._acceptance.restore(partial)
        self._restored = ()
        if self.observer.curve:
            last = self.observer.curve[-1]
            self.stop.evaluated(last.version, last.metrics, self.lineage.version)
        self.lineage.reopen(self._term, training_open=not self.stop.done)
        self._outlet.do(SetTimer("limit", round(self._config.stop.max_s * _SECOND_US)))
        self._go_on()

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        """Take a gateway's message; raises PeerError for anything a gateway must not send."""
        match message:
            case Partial():
                if peer != names.gateway_peer(message.gateway):
                    raise PeerError("wrong-source", f"{peer} posted for {message.gateway}")
                self._acceptance.take(message)
            case Subscribe(after=after):
                self.observer.link(names.peer_id(peer), connected=True)
                self._publisher.opened(peer, after, self.lineage.since(after))
            case LinkDown():
                self.observer.link(names.peer_id(peer), connected=False)
                self._publisher.closed(peer)
            case FleetReport():
                self.observer.report(message, now_us)
            case _:
                raise PeerError("malformed", f"{type(message).__name__} from {peer}")

    def timer_fired(self, name: str, now_us: int) -> None:
        """The merge deadline, the time limit, or another try at the disk."""
        if name == "deadline":
            self._deadline_armed = False
            if not self._merge_if(due=len(self._buffer) > 0):
                self._arm_deadline()
        elif name == _EVALUATE_TIMER:
            self._evaluating = False
            self._go_on()
        elif name == "limit":
            self._close(closing=self.stop.close("max-time"))
        elif name == SAVE_TIMER:
            self._saves.retry()

    def job_done(self, result: JobResult, now_us: int) -> None:
        """Take what has become durable, or an evaluation."""
        match result:
            case Saved(job):
                for row in self._saves.done(job):
                    self._durable(row)
            case Evaluated(_, version, metrics):
                self._take_metrics(version, metrics, now_us)
            case JobFailed(job) if job in self._saves:
                self._saves.failed(result)
            case JobFailed(_, detail):
                self._outlet.record("evaluation_failed", reason="compute", detail=detail)
                self._outlet.do(SetTimer(_EVALUATE_TIMER, _EVALUATE_RETRY_US))
                self.stop.evaluation_failed()
                self._go_on()

    def effects(self) -> list[Effect]:
        """Return what must be done now, in order, and forget it."""
        return self._outlet.drain()

    def status(self, now_us: int) -> Status:
        """Return the whole picture for people."""
        return describe(
            self._config,
            self.lineage,
            self.observer,
            term=self._term,
            done=self.stop.done,
            buffered=len(self._buffer),
            counters=self._meter(),
            uptime_us=now_us - self._started_us,
            now_us=now_us,
        )

    def _go_on(self) -> None:
        """Evaluate and merge whatever is due now."""
        newest = self.lineage.version
        if not self._evaluating and newest > self._evaluated_version:
            # Only the newest: evaluation may be slower than merging, and versions may be skipped.
            self._evaluating = True
            self._outlet.do(Evaluate(self._outlet.next_job(), newest, self.params))
        if not self._merge_if(due=len(self._buffer) >= self._config.aggregation.buffer_size):
            self._arm_deadline()

    def _arm_deadline(self) -> None:
        if len(self._buffer) and not self._deadline_armed and not self.stop.done:
            self._deadline_armed = True
            after_us = round(self._config.aggregation.deadline_s * _SECOND_US)
            self._outlet.do(SetTimer("deadline", after_us))

    def _merge_if(self, *, due: bool) -> bool:
        """Merge everything buffered, if it is due and nothing stands in the way."""
        wanted = due and self.stop.may_merge(self.lineage.version)
        if not wanted or self._committing is not None:
            return False
        entries = self._buffer.drain()
        headers = tuple(header for entry in entries for header in entry.partial.headers)
        total = add(*(entry.sums for entry in entries))
        params, statistics = merge(self.params, total, self.lineage.context())
        self.lineage.observe(headers, self.lineage.version)
        descriptor = self.lineage.next(params, self._term)
        ids = tuple(entry.partial.id for entry in entries)
        self._committing = CommitVersion(descriptor, params, ids, headers)
        damping = min((unit.damping for unit in statistics.values()), default=0.0)
        self._outlet.record(
            "merged", version=descriptor.version, updates=len(headers), damping=round(damping, 4)
        )
        self._deadline_armed = False
        self._outlet.do(CancelTimer("deadline"))
        self._saves.save(self._committing)
        return True

    def _durable(self, row: Row) -> None:
        match row:
            case AcceptPartial(partial):
                self._acceptance.durable(partial)
                self._go_on()
            case CommitVersion():
                self._publish(row)
                self._go_on()

    def _publish(self, commit: CommitVersion) -> None:
        """A version is on disk: settle its updates and tell the gateways."""
        self._committing = None
        self.params = commit.params
        self.observer.settled(commit.headers, self.lineage.version)
        version = commit.descriptor.version
        self._outlet.record("update_settled", len(commit.headers), version=version)
        self._publisher.settle(version, self._buffer.settle(commit))
        self.lineage.add(commit.descriptor, needed_from=self._buffer.oldest_base(version))
        self._publisher.push(self.lineage.reopen(self._term, training_open=not self.stop.done))
        if version % self._config.aggregation.checkpoint_versions == 0:
            self._saves.save(DropPartials(version, self.lineage.oldest))

    def _take_metrics(self, version: int, metrics: Mapping[str, float], now_us: int) -> None:
        self._evaluating = False
        self._evaluated_version = version
        self.observer.evaluated(version, metrics, (now_us - self._started_us) / _SECOND_US)
        self._outlet.record("evaluated", version=version, metrics=dict(metrics))
        self._saves.save(SaveMetrics(version, metrics))
        newest = self.lineage.version + (self._committing is not None)
        self._close(closing=self.stop.evaluated(version, metrics, newest))
        self._go_on()

    def _close(self, *, closing: bool) -> None:
        """Stop merging; what is buffered or still comes stays durable for a later start."""
        if closing:
            self._outlet.record(
                "training_closed", reason=self.stop.done, version=self.lineage.version
            )
            self._publisher.push(self.lineage.reopen(self._term, training_open=False))
