"""The rules of the aggregator: streams, restarts, evaluation and the end."""

from typing import Any

import pytest

from aggregator.lineage import Lineage
from aggregator.rows import (
    CommitVersion,
    LedgerRow,
    SaveMetrics,
)
from hedgerow.core.effects import (
    Evaluated,
    JobFailed,
    LinkDown,
    Send,
)
from hedgerow.core.messages import (
    Descriptor,
    FleetReport,
    Receipts,
    Subscribe,
)
from tests.protocol.aggregator_bench import Bench, answers, commits, config_of, evaluations, updates
from tests.protocol.scenarios import (
    MODEL,
    PLAN,
    SECOND_US,
    make_config,
    make_lineage,
    make_snapshot,
    make_update,
    node_state,
    params_of,
    recorded,
    saved_rows,
    sent,
    timers,
)

# Versions on their way down.


def test_a_gateway_that_knows_nothing_gets_every_version_that_counts() -> None:
    bench = Bench(versions=3)
    effects = bench.hear(Subscribe(gateway="gw-1", after=0))
    assert [d.version for d in sent(effects, Descriptor)] == [2, 1, 0], "the newest first"
    effects = bench.hear(Subscribe(gateway="gw-1", after=2))
    assert [d.version for d in sent(effects, Descriptor)] == [2]
    effects = bench.hear(Subscribe(gateway="gw-1", after=9))
    assert [d.version for d in sent(effects, Descriptor)] == [2]


def test_catching_up_brings_receipts_before_versions() -> None:
    bench = Bench()
    bench.hear(Subscribe(gateway="gw-1", after=0))
    bench.hear(LinkDown())
    effects = bench.merged(*updates(1, 2))
    assert not sent(effects, Receipts)
    assert not sent(effects, Descriptor)
    effects = bench.hear(Subscribe(gateway="gw-1", after=0))
    kinds = [type(e.message) for e in effects if isinstance(e, Send)]
    assert kinds[0] is Receipts
    assert Receipts not in kinds[1:]
    assert sent(bench.hear(Subscribe(gateway="gw-2", after=0), "gw/gw-2"), Receipts) == []
    assert sent(bench.hear(Subscribe(gateway="gw-1", after=1)), Receipts) == []


def test_every_gateway_that_was_told_admitted_hears_of_the_end() -> None:
    bench = Bench()
    for gateway in ("gw-1", "gw-2"):
        bench.hear(Subscribe(gateway=gateway, after=0), f"gw/{gateway}")
    bench.accept(*updates(1))
    bench.hear(bench.partial(*updates(1), gateway="gw-2"), "gw/gw-2")
    effects = bench.finish(commits(bench.timer("deadline"))[0])
    for gateway in ("gw-1", "gw-2"):
        (message,) = sent(effects, Receipts, f"gw/{gateway}")
        assert [r.id.seq for r in message.receipts] == [1]


# Restart.


def restarted(bench: Bench, **keys: Any) -> Bench:
    snapshot = make_snapshot(bench.lineage, term=2, **keys)
    again = Bench(snapshot, bench.lineage.version + 1)
    again.count = 100
    return again


def test_a_restart_publishes_the_newest_version_under_its_own_term() -> None:
    bench = restarted(Bench(versions=3))
    (descriptor,) = sent(bench.hear(Subscribe(gateway="gw-1", after=2)), Descriptor)
    assert (descriptor.version, descriptor.term, descriptor.training_open) == (2, 2, True)


def test_a_restart_takes_up_what_was_waiting() -> None:
    first = Bench()
    waiting = [first.partial(*updates(1, 2)), first.partial(*updates(3, 4), gateway="gw-2")]
    bench = restarted(first, waiting=waiting)
    (row,) = saved_rows(bench.start_effects, CommitVersion)
    assert row.partial_ids == tuple(partial.id for partial in waiting)
    known = bench.hear(first.partial(*updates(2)))
    assert answers(known) == [("known", [(2, "admitted", "")])]


def test_a_restart_waits_for_more_when_too_little_is_waiting() -> None:
    first = Bench()
    bench = restarted(first, waiting=[first.partial(*updates(1))])
    assert commits(bench.start_effects) == []
    assert timers(bench.start_effects)["deadline"] == 20 * SECOND_US
    assert len(commits(bench.accept(*updates(2, 3, 4)))) == 1


def test_a_restart_knows_the_ledger() -> None:
    first = Bench(versions=2)
    bench = restarted(first, ledger=[LedgerRow(make_update(1).header, 1)])
    assert answers(bench.hear(first.partial(*updates(1)))) == [("known", [(1, "settled", "")])]
    assert bench.aggregator.status(bench.now_us).updates_applied == 1


def test_version_numbers_go_on_after_a_restart() -> None:
    bench = restarted(Bench(versions=3))
    (row,) = saved_rows(bench.accept(*updates(1, 2, 3, 4, base=2)), CommitVersion)
    assert (row.descriptor.version, row.descriptor.term) == (3, 2)


# Evaluation and the end.


def stopping(**stop: Any) -> Bench:
    return Bench(stop=stop, aggregation={"buffer_size": 1})


def test_each_newest_version_is_evaluated_and_its_metrics_saved() -> None:
    bench = Bench()
    effects = bench.evaluated(bench.start_effects, 0.5)
    assert saved_rows(effects, SaveMetrics) == [SaveMetrics(0, {"accuracy": 0.5})]
    assert [e.version for e in evaluations(bench.merged(*updates(1)))] == [1]
    (point,) = bench.aggregator.status(bench.now_us).curve
    assert point.metrics == {"accuracy": 0.5}


def test_slow_evaluation_skips_versions() -> None:
    bench = Bench()
    assert evaluations(bench.merged(*updates(1))) == []
    assert evaluations(bench.merged(*updates(2))) == []
    assert [e.version for e in evaluations(bench.evaluated(bench.start_effects, 0.1))] == [2]


def test_the_target_must_be_met_by_the_newest_version() -> None:
    bench = stopping(target=0.9)
    bench.hear(Subscribe(gateway="gw-1", after=0))
    bench.merged(make_update(1))
    effects = bench.evaluated(bench.start_effects, 0.95)
    assert [e.version for e in evaluations(effects)] == [1]
    assert commits(bench.accept(make_update(2))) == []
    assert commits(bench.timer("deadline")) == []
    (missed,) = evaluations(effects)
    effects = bench.done(Evaluated(missed.job, 1, {"accuracy": 0.8}))
    assert len(commits(effects)) == 1
    effects = bench.finish(commits(effects)[0])
    effects = bench.evaluated(effects, 0.92)
    assert recorded(effects, "training_closed")[0].fields["reason"] == "target"
    assert not sent(effects, Descriptor)[-1].training_open


def test_a_failed_verification_does_not_stop_everything() -> None:
    bench = stopping(target=0.9)
    bench.merged(make_update(1))
    (job,) = evaluations(bench.evaluated(bench.start_effects, 0.95))
    effects = bench.done(JobFailed(job.job, "out of memory"))
    assert recorded(effects, "evaluation_failed")
    (name,) = timers(effects)
    assert [e.version for e in evaluations(bench.timer(name))] == [1]


def test_a_commit_under_way_is_verified_too() -> None:
    bench = stopping(target=0.9)
    (save,) = commits(bench.accept(make_update(1)))
    effects = bench.evaluated(bench.start_effects, 0.95)
    assert recorded(effects, "training_closed") == []
    assert [e.version for e in evaluations(bench.finish(save))] == [1]


@pytest.mark.parametrize("stop", [{"max_versions": 1}, {"max_s": 5.0}])
def test_limits_close_training(stop: dict[str, Any]) -> None:
    bench = stopping(**stop)
    bench.hear(Subscribe(gateway="gw-1", after=0))
    bench.evaluated(bench.start_effects, 0.1)
    effects = bench.evaluated(bench.merged(make_update(1)), 0.1)
    if "max_s" in stop:
        assert timers(bench.start_effects)["limit"] == 5 * SECOND_US
        effects = bench.timer("limit")
    assert recorded(effects, "training_closed")
    assert not sent(effects, Descriptor, "gw/gw-1")[-1].training_open
    assert recorded(bench.timer("limit"), "training_closed") == []


def test_after_the_end_partials_are_kept_and_not_merged() -> None:
    bench = stopping()
    bench.timer("limit")
    effects = bench.accept(make_update(1))
    assert answers(effects) == [("accepted", [])]
    assert commits(effects + bench.timer("deadline")) == []
    assert "deadline" not in timers(effects)


def test_a_commit_under_way_at_the_end_is_still_published() -> None:
    bench = stopping()
    bench.hear(Subscribe(gateway="gw-1", after=0))
    (save,) = commits(bench.accept(make_update(1)))
    bench.timer("limit")
    effects = bench.finish(save)
    assert sent(effects, Receipts)
    assert [(d.version, d.training_open) for d in sent(effects, Descriptor)] == [(1, False)]


def test_a_finished_model_stays_closed_after_a_restart() -> None:
    lineage = make_lineage(2, config_of())
    snapshot = make_snapshot(lineage, term=2, metrics={1: {"accuracy": 0.95}})
    bench = Bench(snapshot, 2, stop={"target": 0.9})
    (descriptor,) = sent(bench.hear(Subscribe(gateway="gw-1", after=1)), Descriptor)
    assert not descriptor.training_open
    assert bench.aggregator.status(bench.now_us).done == "target"


# Rules of a version, and the picture for people.


def test_the_half_life_follows_the_fleet_s_own_staleness() -> None:
    law = Lineage(make_config(), PLAN).first(params_of(0), 0).rules.staleness
    assert law.gamma == pytest.approx(0.5 ** (1 / 3))
    bench = Bench(versions=40, aggregation={"buffer_size": 64})
    rows = saved_rows(bench.accept(*updates(*range(1, 65))), CommitVersion)
    assert rows[0].descriptor.rules.staleness.gamma > law.gamma


def test_kappa_ref_is_the_median_of_what_was_seen() -> None:
    bench = Bench()
    kappas = [1.0, 2.0, 30.0, float("nan")]
    batch = [make_update(seq, kappa=kappa) for seq, kappa in enumerate(kappas, 1)]
    (row,) = saved_rows(bench.accept(*batch), CommitVersion)
    assert row.descriptor.rules.kappa_ref == 2.0


def test_the_status_shows_gateways_and_nodes() -> None:
    bench = Bench()
    bench.hear(Subscribe(gateway="gw-1", after=0))
    for count in (10, 4):
        state = node_state(counters={"mqtt_bytes_up": count, "issued": 1})
        report = FleetReport(gateway="gw-1", boot=1, nodes=[state], counters={"held": count})
        bench.hear(report)
    bench.merged(make_update(1))
    bench.now_us += 3 * SECOND_US
    status = bench.aggregator.status(bench.now_us)
    assert (status.version, status.model, status.updates_applied) == (1, MODEL, 1)
    (gateway,) = status.gateways
    assert (gateway.connected, gateway.nodes, gateway.seen_s) == (True, 1, 3.0)
    assert gateway.counters == {"held": 14}
    (node,) = status.nodes
    assert (node.applied, node.staleness, node.traffic) == (1, 0, {"mqtt_bytes_up": 14})
    bench.hear(LinkDown())
    assert not bench.aggregator.status(bench.now_us).gateways[0].connected


def test_a_long_curve_keeps_its_shape_and_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.observer._CURVE_POINTS", 8)
    lineage = make_lineage(30, config_of())
    metrics = {version: {"accuracy": float(version)} for version in range(30)}
    bench = Bench(make_snapshot(lineage, metrics=metrics), 30)
    versions = [point.version for point in bench.aggregator.status(bench.now_us).curve]
    assert len(versions) <= 8
    assert versions == sorted(versions)
    assert versions[0] == 0
    assert versions[-4:] == [26, 27, 28, 29]


def test_the_picture_of_nodes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aggregator.observer._MAX_NODES", 1)
    bench = Bench()
    nodes = [node_state(node="node-1"), node_state(node="node-2")]
    bench.hear(FleetReport(gateway="gw-1", boot=1, nodes=nodes))
    assert [view.state.node for view in bench.aggregator.status(bench.now_us).nodes] == ["node-1"]
