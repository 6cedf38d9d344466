"""The aggregator: buffer partial aggregates, merge them into versions, settle, publish.

Repeats are found by update ids alone, in the ledger or on their way into it. An update is settled only
after the transaction that holds its version, its ledger row and the merge's inputs is on disk. Nothing is
merged before a gateway has said which versions it knows: the ledger may have been put back to an older state.
"""

from collections.abc import Callable, Mapping
from typing import Any

from aggregator.acceptance import Acceptance
from aggregator.deadline import DEADLINE_TIMER, Deadline
from aggregator.describe import describe
from aggregator.evaluations import EVALUATE_TIMER, Evaluations
from aggregator.herald import Herald
from aggregator.lineage import Lineage
from aggregator.lives import Lives
from aggregator.mergebuffer import MergeBuffer
from aggregator.merger import Merger
from aggregator.mill import Mill
from aggregator.observer import Observer
from aggregator.publisher import Publisher
from aggregator.reception import Reception
from aggregator.replanning import Replanning
from aggregator.rounds import Turntable
from aggregator.rows import (
    AcceptPartial,
    CommitVersion,
    DropPartials,
    Row,
    Snapshot,
)
from aggregator.status import Status
from aggregator.stopping import StopRule
from hedgerow.core.config import Config
from hedgerow.core.costs import ModelCosts
from hedgerow.core.effects import (
    Effect,
    Evaluated,
    JobFailed,
    JobResult,
    LinkDown,
    Saved,
    SetTimer,
)
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Bundle, FleetReport, Partial, Subscribe
from hedgerow.core.outlet import SAVE_TIMER, Outlet, Saves
from hedgerow.core.plan import Plan
from hedgerow.core.planbook import PlanSet
from hedgerow.core.strategy import FTTE, Strategy

_SECOND_US = 1_000_000
_LEAST_HELD = 4096
_MOST_MERGES_HELD = 64
"""How many merges' worth of updates are held at most; of small merges, at least `_LEAST_HELD` updates."""


class AggregatorProtocol:
    """One model's aggregator. `meter` reads the process's counters for the status.

    `plans` are version 0's and those of a fixed plan, `costs` what a plan needs to be searched anew.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        plans: Plan | PlanSet,
        config: Config,
        *,
        meter: Callable[[], Mapping[str, int]],
        strategy: Strategy = FTTE,
        costs: ModelCosts | None = None,
    ) -> None:
        self.lineage = Lineage(config, plans, individual=strategy.individual)
        self.lineage.restore(snapshot)
        self.observer = Observer(snapshot)
        self.stop = StopRule(config.stop)
        self._config = config
        self._term = snapshot.term
        self._meter = meter
        self._outlet = Outlet()
        self._saves: Saves[Row] = Saves(self._outlet)
        self._plans = Replanning(config, costs, self.lineage, self._outlet, snapshot.term)
        self._publisher = Publisher(self._outlet, self.observer)
        self._buffer = MergeBuffer(snapshot.ledger)
        most_held = max(_MOST_MERGES_HELD * config.aggregation.buffer_size, _LEAST_HELD)
        self._acceptance = Acceptance(
            self.lineage, self._buffer, self._saves, self._outlet, most_held=most_held
        )
        self._acceptance.restore(snapshot.waiting)
        self._lives = Lives(snapshot.restored, snapshot.newest_seen)
        self._reception = Reception(
            self.lineage, self._acceptance, self._lives, self._outlet, snapshot.damage
        )
        self._merger = Merger(strategy, snapshot.params, self.lineage)
        self._turns = Turntable.of(strategy.rounds, config)
        self._herald = Herald(
            self.lineage, self._publisher, self.stop, self._turns, self._plans, self._term
        )
        self._deadline = Deadline(self._outlet, round(config.aggregation.deadline_s * _SECOND_US))
        self._mill = Mill(
            self.lineage,
            self._buffer,
            self._merger,
            saves=self._saves,
            outlet=self._outlet,
            turns=self._turns,
            deadline=self._deadline,
            lives=self._lives,
            stop=self.stop,
            term=snapshot.term,
        )
        self._evaluations = Evaluations(
            self._outlet, self._saves, self.observer, max(snapshot.metrics, default=-1)
        )
        self._started_us = 0

    def start(self, now_us: int) -> None:
        """Publish the newest version under this term and take up the partials found on disk."""
        self._started_us = now_us
        self._reception.started()
        self._plans.publishing()
        for last in self.observer.curve[-1:]:
            self.stop.evaluated(last.version, last.metrics, self.lineage.version)
        self._herald.renew()
        self._outlet.do(SetTimer("limit", round(self._config.stop.max_s * _SECOND_US)))
        self._go_on()

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        """Take a gateway's message; raises PeerError for anything a gateway must not send."""
        match message:
            case Partial() | Bundle():
                self._reception.take(peer, message)
                self._mill.begin_life()
            case Subscribe(after=after):
                changed = self._reception.subscribed(after)
                self._publisher.opened(peer, after, self.lineage.since(after))
                if changed:
                    self._go_on()
            case LinkDown():
                self._publisher.closed(peer)
            case FleetReport():
                self.observer.report(message, now_us)
                self._plans.take(message.values)
                self._open_round()
            case _:
                raise PeerError("malformed", f"{type(message).__name__} from {peer}")

    def timer_fired(self, name: str, now_us: int) -> None:
        """The merge deadline, the time limit, or another try at the disk."""
        if name == DEADLINE_TIMER:
            self._deadline.fired()
            if not self._mill.merge_anything():
                self._open_round(at_least=1)
                self._mill.arm_deadline()
        elif name == EVALUATE_TIMER:
            self._evaluations.retry()
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
                self._acceptance.failed(self._saves.failed(result))
            case JobFailed(_, detail):
                self._evaluations.failed(detail)
                self.stop.evaluation_failed()
                self._go_on()

    def effects(self) -> list[Effect]:
        """Return what must be done now, in order, and forget it."""
        return self._outlet.drain()

    @property
    def trouble(self) -> str:
        """What cannot be done now although it should be, "" for nothing."""
        return "the disk refuses to write" if self._acceptance.disk_refuses else ""

    def status(self, now_us: int) -> Status:
        """Return the whole picture for people."""
        return describe(
            self._config,
            self.lineage,
            self.observer,
            self._plans,
            term=self._term,
            done=self.stop.done,
            buffered=len(self._buffer),
            counters=self._meter(),
            restored=self._lives.reason,
            disk_refuses=self._acceptance.disk_refuses,
            uptime_us=now_us - self._started_us,
            now_us=now_us,
        )

    def _go_on(self) -> None:
        """Evaluate and merge whatever is due now."""
        self._evaluations.consider(self.lineage.version, self._merger.params)
        self._mill.turn()

    def _open_round(self, at_least: int | None = None) -> None:
        """Draw a round's sample if one is due; at the deadline a round without an answer is drawn anew."""
        if self._mill.committing or (not self._turns.waiting and at_least is None):
            return
        states = self.observer.states()
        if self._turns.draw(self.lineage.version, states, at_least=at_least):
            self._herald.push()
            self._mill.arm_deadline()

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
        self._mill.durable(commit)
        self.observer.settled(commit.headers, self.lineage.version)
        version = commit.descriptor.version
        self._outlet.record("update_settled", len(commit.headers), version=version)
        self._publisher.settle(version, self._buffer.settle(commit))
        self.lineage.add(commit.descriptor, needed_from=self._buffer.oldest_base(version))
        self.lineage.tally.add(version, len(commit.headers))
        self._turns.draw(version, self.observer.states())
        self._plans.publishing()
        self._herald.push()
        if version % self._config.aggregation.checkpoint_versions == 0:
            self._saves.save(DropPartials(version, self.lineage.oldest))

    def _take_metrics(self, version: int, metrics: Mapping[str, float], now_us: int) -> None:
        self._evaluations.done(version, metrics, (now_us - self._started_us) / _SECOND_US)
        self._plans.evaluated(version, metrics)
        newest = self.lineage.version + self._mill.committing
        self._close(closing=self.stop.evaluated(version, metrics, newest))
        self._go_on()

    def _close(self, *, closing: bool) -> None:
        """Stop merging; what is buffered or still comes stays durable for a later start."""
        if closing:
            self._outlet.record(
                "training_closed", reason=self.stop.done, version=self.lineage.version
            )
            self._herald.push()
