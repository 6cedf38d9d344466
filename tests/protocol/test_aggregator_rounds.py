"""The rules of the aggregator: rounds, and strategies that want every update by itself."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from aggregator.lineage import Lineage
from aggregator.protocol import AggregatorProtocol
from aggregator.rows import AcceptPartial, CommitVersion, Snapshot
from hedgerow.core.effects import Effect, Saved
from hedgerow.core.messages import (
    Descriptor,
    FleetReport,
    Partial,
    PartialReply,
    Subscribe,
    Update,
)
from hedgerow.core.quantize import decode_delta, norm
from hedgerow.core.strategy import Merging, Rounds, Strategy, merge_sums
from hedgerow.core.units import Vector
from tests.protocol.aggregator_bench import Bench, answers, commits
from tests.protocol.scenarios import (
    PLAN,
    SECOND_US,
    make_partial,
    make_snapshot,
    make_update,
    node_state,
    params_of,
    recorded,
    saved_rows,
    saves,
    sent,
    timers,
)

GATEWAY = "gw/gw-1"
ROUNDS = Strategy(name="rounds", apply=merge_sums, rounds=Rounds(0.6, 0.5))
"""Of a fleet of five three are asked, and two answers are enough."""


def bench_of(strategy: Strategy, snapshot: Snapshot | None = None, **sections: Any) -> Bench:
    """Return a bench whose aggregator has this strategy; the gateway on it knows its newest version."""
    sections = {"fleet": {"nodes": 5}, "staleness": {"law": "constant", "tau_max": 0}, **sections}
    bench = Bench(**sections)
    if snapshot is None:
        first = Lineage(bench.config, PLAN, individual=strategy.individual)
        first.add(first.first(params_of(0), 0))
        snapshot = make_snapshot(first)
    bench.aggregator = AggregatorProtocol(
        snapshot, PLAN, bench.config, meter=dict, strategy=strategy
    )
    bench.lineage = bench.aggregator.lineage
    started = bench.do(lambda: bench.aggregator.start(bench.now_us))
    bench.start_effects = started + bench.hear(Subscribe(gateway="gw-1", after=0))
    return bench


def report(bench: Bench, *nodes: str, state: str = "ready") -> list[Effect]:
    states = [node_state(state, node=node) for node in nodes]
    return bench.hear(FleetReport(gateway="gw-1", boot=1, nodes=states))


def samples(effects: list[Effect]) -> list[list[str] | None]:
    return [descriptor.sample for descriptor in sent(effects, Descriptor, GATEWAY)]


def opened(strategy: Strategy = ROUNDS, nodes: int = 5, **sections: Any) -> tuple[Bench, list[str]]:
    """Return a bench with a round under way, and its sample."""
    bench = bench_of(strategy, **sections)
    (sample,) = samples(report(bench, *(f"node-{n}" for n in range(1, nodes + 1))))
    assert sample
    return bench, sample


def answer(bench: Bench, node: str, *, base: int | None = None, seq: int = 1) -> list[Effect]:
    """Let a gateway post a node's update of the newest version, or of `base`."""
    base = bench.lineage.version if base is None else base
    return bench.accept(make_update(seq, base, node))


def closed(bench: Bench, *nodes: str) -> list[Effect]:
    """Let these nodes answer, which must close the round; return the effects of the commit's end."""
    for node in nodes[:-1]:
        assert commits(answer(bench, node, seq=bench.lineage.version + 1)) == []
    (save,) = commits(answer(bench, nodes[-1], seq=bench.lineage.version + 1))
    return bench.finish(save)


# Opening a round.


def test_nobody_trains_before_enough_nodes_have_reported() -> None:
    bench = bench_of(ROUNDS)
    assert bench.lineage.current.sample == []
    assert samples(report(bench, "node-1") + report(bench, "node-2")) == []
    assert samples(report(bench, "node-2")) == [], "one node counts once"
    effects = report(bench, "node-3")
    assert samples(effects) == [["node-1", "node-2", "node-3"]]
    (descriptor,) = sent(effects, Descriptor)
    assert (descriptor.version, descriptor.training_open) == (0, True)


def test_without_rounds_everybody_is_asked() -> None:
    bench = bench_of(Strategy(name="sums", apply=merge_sums))
    assert bench.lineage.current.sample is None
    assert samples(report(bench, "node-1", "node-2")) == []


def test_the_sample_is_drawn_by_the_seed() -> None:
    nodes = [f"node-{n}" for n in range(1, 6)]
    drawn = []
    for seed in range(8):
        both = []
        for order in (nodes, nodes[::-1]):
            bench = bench_of(ROUNDS, fleet={"nodes": 5, "seed": seed})
            both += samples(report(bench, *order))
        assert both[0] == both[1]
        drawn.append(tuple(both[0] or ()))
    assert len(set(drawn)) > 1
    assert all(len(sample) == 3 for sample in drawn)


def test_idle_nodes_come_first() -> None:
    bench = bench_of(ROUNDS)
    busy, idle = ["node-1", "node-2"], ["node-3", "node-4", "node-5"]
    report(bench, *busy, state="training")
    assert samples(report(bench, *idle)) == [idle]


@pytest.mark.parametrize("state", ["lost", "disconnected"])
def test_nodes_that_are_gone_are_not_sampled(state: str) -> None:
    bench = bench_of(ROUNDS)
    report(bench, "node-1", "node-2", state=state)
    assert samples(report(bench, "node-3", "node-4")) == []
    assert samples(report(bench, "node-5")) == [["node-3", "node-4", "node-5"]]


def test_one_that_is_lost_is_left_out_of_the_next_round() -> None:
    bench, sample = opened()
    lost, *others = sample
    assert samples(report(bench, lost, state="lost")) == [], "the round goes on without it"
    for _ in range(6):
        (following,) = samples(closed(bench, *others))
        assert following is not None
        assert lost not in following
        others = following[:2]


def test_a_gateway_that_subscribes_later_learns_the_sample() -> None:
    bench, sample = opened()
    effects = bench.hear(Subscribe(gateway="gw-2", after=0), "gw/gw-2")
    assert [d.sample for d in sent(effects, Descriptor, "gw/gw-2")] == [sample]


# Closing it.


def test_it_merges_when_enough_of_the_sample_have_answered() -> None:
    bench, sample = opened()
    assert commits(answer(bench, sample[0])) == []
    effects = answer(bench, sample[1])
    (row,) = saved_rows(effects, CommitVersion)
    assert [header.id.node for header in row.headers] == sample[:2]
    (save,) = commits(effects)
    (descriptor,) = sent(bench.finish(save), Descriptor, GATEWAY)
    assert descriptor.version == 1
    assert descriptor.sample is not None
    assert len(descriptor.sample) == 3


def test_a_version_without_enough_nodes_waits_for_them() -> None:
    bench, sample = opened(nodes=3)
    report(bench, sample[2], state="lost")
    assert samples(closed(bench, *sample[:2])) == [[]]
    assert samples(report(bench, "node-9")) == [sorted([*sample[:2], "node-9"])]


def test_late_updates_of_the_former_round_are_stale() -> None:
    bench, sample = opened()
    closed(bench, *sample[:2])
    late = make_partial(
        [make_update(1, 0, sample[2])], bench.lineage, partial_id="gw-1-1-99", raw=True
    )
    effects = bench.hear(late)
    assert answers(effects) == [("known", [(1, "rejected", "stale")])]
    assert recorded(effects, "update_rejected")[0].fields["node"] == sample[2]
    assert saves(effects) == []


def test_updates_accepted_during_the_commit_do_not_count_in_the_next_round() -> None:
    bench, sample = opened()
    answer(bench, sample[0])
    (save,) = commits(answer(bench, sample[1]))
    assert commits(answer(bench, sample[2])) == []
    (following,) = samples(bench.finish(save))
    assert following
    assert commits(answer(bench, following[0], seq=2)) == [], "one of the round's own is too few"
    (row,) = saved_rows(answer(bench, following[1], seq=2), CommitVersion)
    assert [header.base_version for header in row.headers] == [0, 1, 1]


@pytest.mark.parametrize("event", ["report", "deadline"])
def test_no_sample_is_drawn_for_a_version_whose_successor_is_being_saved(event: str) -> None:
    bench, sample = opened()
    answer(bench, sample[0])
    (save,) = commits(answer(bench, sample[1]))
    answer(bench, sample[2])
    effects = bench.timer("deadline") if event == "deadline" else report(bench, "node-1")
    assert sent(effects, Descriptor) == []
    (descriptor,) = sent(bench.finish(save), Descriptor)
    assert descriptor.version == 1
    assert descriptor.sample


# The deadline.


def test_at_the_deadline_those_who_answered_are_merged() -> None:
    bench, sample = opened()
    answer(bench, sample[0])
    (row,) = saved_rows(bench.timer("deadline"), CommitVersion)
    assert [header.id.node for header in row.headers] == sample[:1]


def test_at_the_deadline_a_round_without_an_answer_is_drawn_anew() -> None:
    bench, _ = opened()
    drawn = []
    for _ in range(8):
        effects = bench.timer("deadline")
        assert commits(effects) == []
        assert timers(effects)["deadline"] == 20 * SECOND_US
        (descriptor,) = sent(effects, Descriptor, GATEWAY)
        assert descriptor.version == 0
        drawn.append(tuple(descriptor.sample or ()))
    assert len(set(drawn)) > 1
    assert all(len(sample) == 3 for sample in drawn)


def test_silent_nodes_do_not_hold_up_training() -> None:
    bench, sample = opened()
    report(bench, *sample, state="lost")
    (following,) = samples(bench.timer("deadline"))
    assert following is not None
    assert set(following).isdisjoint(sample)
    assert len(following) == 2, "fewer than wanted, but all there are"
    assert commits(answer(bench, following[0])), "and half of them are enough"


def test_at_the_deadline_a_round_that_waits_takes_whom_there_is() -> None:
    bench = bench_of(ROUNDS)
    assert timers(bench.start_effects)["deadline"] == 20 * SECOND_US
    effects = bench.timer("deadline")
    assert sent(effects, Descriptor) == [], "nobody is there"
    assert timers(effects)["deadline"] == 20 * SECOND_US
    report(bench, "node-4")
    assert samples(bench.timer("deadline")) == [["node-4"]]


def test_the_end_of_training_ends_the_rounds() -> None:
    bench, sample = opened()
    (descriptor,) = sent(bench.timer("limit"), Descriptor)
    assert not descriptor.training_open
    assert commits(answer(bench, sample[0]) + answer(bench, sample[1])) == []
    assert "deadline" not in timers(bench.timer("deadline"))


# A restart.


def test_a_restart_draws_the_round_anew_and_counts_its_answers() -> None:
    first, sample = opened()
    answer(first, sample[0])
    waiting = [make_partial([make_update(1, 0, sample[0])], first.lineage)]
    bench = bench_of(ROUNDS, make_snapshot(first.lineage, term=2, waiting=waiting))
    assert bench.lineage.current.sample == []
    bench.count = 100
    (again,) = samples(report(bench, *(f"node-{n}" for n in range(1, 6))))
    assert again
    node = next(name for name in again if name != sample[0])
    (row,) = saved_rows(answer(bench, node, seq=7), CommitVersion)
    assert [header.id.node for header in row.headers] == [sample[0], node]


# Individual strategies.


def individual(
    seen: list[Merging],
    apply: Callable[[Any, Merging], tuple[Vector, Any]] = lambda state, m: (m.params, state),
) -> Strategy:
    """Return a strategy that shows what it was given."""

    def show(state: Any, merging: Merging) -> tuple[Vector, Any]:
        seen.append(merging)
        return apply(state, merging)

    return Strategy(name="shown", apply=show, individual=True)


def post(bench: Bench, *updates: Update, raw: bool = True) -> list[Effect]:
    return bench.hear(bench.partial(*updates, raw=raw))


def one_of(node: str, seq: int, value: float = 0.25) -> Update:
    return make_update(seq, 0, node, value=value)


def test_an_individual_strategy_gets_updates_in_the_order_in_which_they_became_durable() -> None:
    seen: list[Merging] = []
    bench = bench_of(individual(seen))
    assert bench.lineage.current.individual
    (early,) = saves(post(bench, one_of("node-2", 1), one_of("node-1", 1)))
    (late,) = saves(post(bench, one_of("node-3", 2, 0.5), one_of("node-1", 2)))
    assert commits(bench.finish(late)) == []
    (row,) = saved_rows(bench.finish(early), CommitVersion)
    (merging,) = seen
    expected = [("node-3", 2), ("node-1", 2), ("node-2", 1), ("node-1", 1)]
    assert [(c.header.id.node, c.header.id.seq) for c in merging.contributions] == expected
    assert [(h.id.node, h.id.seq) for h in row.headers] == expected
    first = merging.contributions[0]
    assert first.plan == PLAN
    assert first.delta.tobytes() == decode_delta(one_of("node-3", 2, 0.5), PLAN).tobytes()
    assert merging.params.tobytes() == params_of(0).tobytes()


def test_it_gets_nothing_longer_than_the_clip_norm() -> None:
    seen: list[Merging] = []
    training, aggregation = {"clip_norm": 0.5}, {"buffer_size": 2}
    bench = bench_of(individual(seen), training=training, aggregation=aggregation)
    (save,) = saves(post(bench, one_of("node-1", 1, 2.0), one_of("node-2", 1, 0.01)))
    bench.finish(save)
    long, short = seen[0].contributions
    assert norm(long.delta) == pytest.approx(0.5)
    assert short.delta.tobytes() == decode_delta(one_of("node-2", 1, 0.01), PLAN).tobytes()


def test_it_takes_no_sums() -> None:
    bench = bench_of(individual([]))
    effects = post(bench, one_of("node-1", 1), raw=False)
    assert [(r.status, r.reason) for r in sent(effects, PartialReply)] == [
        ("rejected", "inconsistent")
    ]
    assert recorded(effects, "partial_rejected")
    assert saves(effects) == []
    assert saved_rows(post(bench, one_of("node-1", 1)), AcceptPartial), "by itself it is welcome"


def test_what_it_returns_is_the_next_version_and_its_next_state() -> None:
    def count(state: int, merging: Merging) -> tuple[Vector, int]:
        return merging.params + np.float32(state), state + 1

    strategy = Strategy(name="count", apply=count, init=len, individual=True)
    bench = bench_of(strategy, aggregation={"buffer_size": 1}, staleness={"tau_max": 9})
    expected = params_of(0)
    for seq in (1, 2):
        (save,) = saves(post(bench, one_of("node-1", seq)))
        effects = bench.finish(save)
        expected = expected + np.float32(len(expected) + seq - 1)
        assert saved_rows(effects, CommitVersion)[0].params.tobytes() == expected.tobytes()
        bench.done(Saved(commits(effects)[0].job))


def test_after_a_restart_it_gets_what_was_waiting() -> None:
    seen: list[Merging] = []
    first = bench_of(individual([]))
    waiting: list[Partial] = [
        first.partial(one_of("node-1", 1), one_of("node-2", 1), raw=True),
        first.partial(one_of("node-3", 1), one_of("node-4", 1), raw=True),
    ]
    bench = bench_of(individual(seen), make_snapshot(first.lineage, term=2, waiting=waiting))
    (row,) = saved_rows(bench.start_effects, CommitVersion)
    nodes = [contribution.header.id.node for contribution in seen[0].contributions]
    assert nodes == [header.id.node for header in row.headers]
    assert nodes == ["node-1", "node-2", "node-3", "node-4"]
