"""An aggregator protocol on the bench: messages in, effects out."""

from collections.abc import Callable
from typing import Any

from aggregator.lineage import Lineage
from aggregator.protocol import AggregatorProtocol
from aggregator.rows import (
    CommitVersion,
    Snapshot,
)
from hedgerow.core.config import Config
from hedgerow.core.costs import ModelCosts
from hedgerow.core.effects import (
    Effect,
    Evaluate,
    Evaluated,
    LinkDown,
    Save,
    Saved,
)
from hedgerow.core.messages import (
    Partial,
    PartialReply,
    Subscribe,
    Update,
)
from tests.protocol.scenarios import (
    PLAN,
    make_config,
    make_lineage,
    make_partial,
    make_snapshot,
    make_update,
    saves,
    sent,
)

K = 4


def config_of(**sections: Any) -> Config:
    aggregation = {"buffer_size": K, "deadline_s": 20.0, **sections.pop("aggregation", {})}
    return make_config(aggregation=aggregation, **sections)


class Bench:
    """An aggregator protocol and what it asked for by the last input.

    Unless `heard` is False, a gateway has asked for versions and gone again: nothing is merged before.
    """

    def __init__(
        self,
        snapshot: Snapshot | None = None,
        versions: int = 1,
        lineage: Lineage | None = None,
        costs: ModelCosts | None = None,
        *,
        heard: bool = True,
        **sections: Any,
    ) -> None:
        self.config = config_of(**sections)
        self.lineage = lineage or make_lineage(versions, self.config)
        self.now_us = 1_000
        self.aggregator = AggregatorProtocol(
            snapshot or make_snapshot(self.lineage),
            PLAN,
            self.config,
            meter=lambda: {"seen": 1},
            costs=costs,
        )
        self.count = 0
        self.start_effects = self.effects = self.do(lambda: self.aggregator.start(self.now_us))
        if heard:
            self.start_effects = self.start_effects + self.come_and_go()

    def do(self, call: Callable[[], None]) -> list[Effect]:
        call()
        self.effects = self.aggregator.effects()
        return self.effects

    def hear(self, message: Any, peer: str = "gw/gw-1") -> list[Effect]:
        return self.do(lambda: self.aggregator.receive(peer, message, self.now_us))

    def come_and_go(self, gateway: str = "gw-1", after: int = 0) -> list[Effect]:
        """Let a gateway ask for the versions after one; its stream then ends."""
        effects = self.hear(Subscribe(gateway=gateway, after=after), f"gw/{gateway}")
        return effects + self.hear(LinkDown(), f"gw/{gateway}")

    def timer(self, name: str) -> list[Effect]:
        return self.do(lambda: self.aggregator.timer_fired(name, self.now_us))

    def done(self, result: Any) -> list[Effect]:
        return self.do(lambda: self.aggregator.job_done(result, self.now_us))

    def finish(self, save: Save) -> list[Effect]:
        return self.done(Saved(save.job))

    def partial(self, *updates: Update, gateway: str = "gw-1", raw: bool = False) -> Partial:
        self.count += 1
        return make_partial(
            updates,
            self.lineage,
            partial_id=f"{gateway}-1-{self.count}",
            gateway=gateway,
            raw=raw,
        )

    def accept(self, *updates: Update, gateway: str = "gw-1") -> list[Effect]:
        """Post updates as one partial and make it durable; return the effects of that."""
        (save,) = saves(self.hear(self.partial(*updates, gateway=gateway), f"gw/{gateway}"))
        return self.finish(save)

    def merged(self, *updates: Update) -> list[Effect]:
        """Post updates, let the deadline pass if K is not reached, and commit."""
        effects = self.accept(*updates)
        if not commits(effects):
            effects = self.timer("deadline")
        (save,) = commits(effects)
        return self.finish(save)

    def evaluated(self, effects: list[Effect], accuracy: float) -> list[Effect]:
        (job,) = evaluations(effects)
        return self.done(Evaluated(job.job, job.version, {"accuracy": accuracy}))


def commits(effects: list[Effect]) -> list[Save]:
    return [s for s in saves(effects) if any(isinstance(row, CommitVersion) for row in s.rows)]


def evaluations(effects: list[Effect]) -> list[Evaluate]:
    return [effect for effect in effects if isinstance(effect, Evaluate)]


def answers(effects: list[Effect]) -> list[tuple[str, list[tuple[int, str, str]]]]:
    return [
        (reply.status, [(r.id.seq, r.status, r.reason) for r in reply.receipts])
        for reply in sent(effects, PartialReply)
    ]


def updates(*seqs: int, **keys: Any) -> list[Update]:
    return [make_update(seq, **keys) for seq in seqs]
