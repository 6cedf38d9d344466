"""A plan that changes while updates of the former one are under way, at every tier."""

from typing import Any

import msgspec
import numpy as np
import pytest

from aggregator.rows import CommitVersion
from gateway.answers import MAX_ANSWERS, Answers
from hedgerow.core.chunks import chunk_blob
from hedgerow.core.effects import Effect, JobFailed, LinkDown, Probe, Probed, Saved
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    Chunk,
    Descriptor,
    FleetReport,
    Partial,
    ProbeAnswer,
    Subscribe,
    UnitValues,
)
from hedgerow.core.outlet import Outlet
from hedgerow.core.plan import Plan
from hedgerow.core.planbook import PlanSet
from hedgerow.core.rules import ProbeRequest
from tests.protocol import aggregator_bench, gateway_bench, node_bench
from tests.protocol.planning import (
    BODY,
    COSTS,
    SMALL,
    least_bytes,
    plan_sections,
    replanned,
    report_of,
    update_of,
)
from tests.protocol.scenarios import (
    CHUNK_BYTES,
    MANIFEST,
    PLAN,
    WHOLE,
    delta_of,
    make_books,
    make_partial,
    make_snapshot,
    params_of,
    recorded,
    saved_rows,
    saves,
    sent,
)

BUDGET = least_bytes("body.weight", "body.bias", "head.bias")

# The aggregator.


def planning(**plan: Any) -> aggregator_bench.Bench:
    return aggregator_bench.Bench(costs=COSTS, **plan_sections(BUDGET, **plan))


def subscribed(bench: aggregator_bench.Bench) -> Descriptor:
    (descriptor,) = sent(bench.hear(Subscribe(gateway="gw-1", after=0)), Descriptor)
    return descriptor


def answered(bench: aggregator_bench.Bench, values: dict[str, float]) -> list[Effect]:
    probe = bench.aggregator.lineage.current.probe
    assert probe is not None
    return bench.hear(report_of(probe.round, values))


def test_version_0_asks_for_the_units_values() -> None:
    probe = subscribed(planning(probe_share=0.5, probe_batches=2)).probe
    assert probe is not None
    assert (probe.share, probe.batches) == (1.0, 2)


def test_enough_answers_change_the_plan_of_the_next_version_and_not_of_this_one() -> None:
    bench = planning()
    effects = answered(bench, BODY)
    (record,) = recorded(effects, "replanned")
    assert record.fields["reason"] == "first-values"
    assert record.fields["value_after"] > record.fields["value_before"]
    assert bench.aggregator.lineage.current.plan == list(PLAN.names)
    commit = bench.accept(*aggregator_bench.updates(1, 2, 3, 4))
    (row,) = saved_rows(commit, CommitVersion)
    assert "body.weight" in row.descriptor.plan
    pushed = bench.finish(aggregator_bench.commits(commit)[0])
    assert recorded(pushed, "update_settled")
    assert bench.aggregator.lineage.current.probe is None


def test_too_few_answers_change_nothing_and_repeats_do_not_help() -> None:
    bench = planning()
    probe = bench.aggregator.lineage.current.probe
    assert probe is not None
    bench.hear(report_of(probe.round, BODY, nodes=2))
    effects = bench.hear(report_of(probe.round, BODY, nodes=2))
    assert [r.fields["reason"] for r in recorded(effects, "probe_refused")] == ["repeated"]
    assert not recorded(effects, "replanned")


def test_a_fixed_plan_counts_answers_as_refused() -> None:
    effects = aggregator_bench.Bench().hear(report_of(1, BODY))
    (record,) = recorded(effects, "probe_refused")
    assert (record.amount, record.fields["reason"]) == (3, "fixed-plan")


def test_updates_of_the_former_plan_are_merged_beside_those_of_the_new_one() -> None:
    lineage = replanned(2)
    bench = aggregator_bench.Bench(lineage=lineage)
    late = [update_of(PLAN, 1), update_of(SMALL, 2, node="node-2")]
    fresh = [update_of(WHOLE, 3, base=1, node="node-3"), update_of(WHOLE, 4, base=1)]
    commit = bench.accept(*late, *fresh)
    (row,) = saved_rows(commit, CommitVersion)
    moved = np.abs(row.params - params_of(1)) > 0
    assert moved.all()
    assert {header.id.seq for header in row.headers} == {1, 2, 3, 4}


def test_a_late_update_moves_only_the_units_of_its_own_plan() -> None:
    bench = aggregator_bench.Bench(lineage=replanned(2))
    commit = bench.accept(*(update_of(SMALL, seq) for seq in (1, 2, 3, 4)))
    (row,) = saved_rows(commit, CommitVersion)
    changed = np.flatnonzero(row.params != params_of(1))
    where = MANIFEST.slices["head.bias"]
    assert changed.tolist() == list(range(where.start, where.stop))


@pytest.mark.parametrize("raw", [False, True])
def test_an_update_of_a_plan_that_its_version_has_not_is_refused(*, raw: bool) -> None:
    lineage = replanned(2)
    bench = aggregator_bench.Bench(lineage=lineage)
    partial = make_partial([update_of(WHOLE, 1, base=0)], lineage, raw=raw)
    effects = bench.hear(partial)
    assert [r.fields["reason"] for r in recorded(effects, "partial_rejected")] == ["unknown-plan"]


@pytest.mark.parametrize("named", ["", SMALL.plan_id])
def test_a_header_that_names_another_plan_than_the_sums_is_refused(named: str) -> None:
    lineage = replanned(2)
    honest = make_partial([update_of(PLAN if named else SMALL, 1)], lineage)
    headers = [msgspec.structs.replace(header, plan_id=named) for header in honest.headers]
    effects = aggregator_bench.Bench(lineage=lineage).hear(
        msgspec.structs.replace(honest, headers=headers)
    )
    assert [r.fields["reason"] for r in recorded(effects, "partial_rejected")] == ["inconsistent"]


def test_a_restart_goes_on_with_the_searched_plan_and_with_a_fixed_one_as_configured() -> None:
    snapshot = make_snapshot(replanned(2))
    searched = aggregator_bench.Bench(snapshot, costs=COSTS, **plan_sections(1 << 20))
    assert searched.aggregator.lineage.planned == PlanSet(WHOLE)
    fixed = aggregator_bench.Bench(snapshot)
    assert fixed.aggregator.lineage.planned == PlanSet(PLAN)
    assert fixed.aggregator.lineage.current.plan == list(WHOLE.names)


def test_former_plans_are_forgotten_with_the_last_version_that_names_them() -> None:
    lineage = replanned(2)
    assert set(lineage.plans()) == {PLAN.plan_id, SMALL.plan_id, WHOLE.plan_id}
    for version in range(2, 60):
        lineage.add(lineage.next(params_of(version), 1))
    assert set(lineage.plans()) == {WHOLE.plan_id}
    assert lineage.plan_since == 1


# The gateway.


def relaying(versions: int = 2) -> gateway_bench.Bench:
    return gateway_bench.Bench().ready(versions, replanned(versions).descriptor)


@pytest.mark.parametrize(("plan", "base"), [(PLAN, 0), (SMALL, 0), (WHOLE, 1)])
def test_a_gateway_admits_updates_of_every_plan_that_their_version_has(
    plan: Plan, base: int
) -> None:
    assert recorded(relaying().update(update_of(plan, base=base)), "update_admitted")


@pytest.mark.parametrize(("plan", "base"), [(WHOLE, 0), (PLAN, 1), (SMALL, 1)])
def test_a_gateway_refuses_an_update_of_a_plan_that_its_version_has_not(
    plan: Plan, base: int
) -> None:
    effects = relaying().update(update_of(plan, base=base))
    assert [r.fields["reason"] for r in recorded(effects, "update_rejected")] == ["unknown-plan"]


def test_headers_name_the_plans_that_are_not_their_versions_own() -> None:
    bench = relaying()
    nodes = [f"node-{n}" for n in range(12)]
    bench.expect(*nodes)
    out = []
    for n, node in enumerate(nodes):
        out += bench.update(update_of(SMALL if n % 2 else PLAN, seq=n + 1, node=node))
    out += bench.timer("flush")
    partials = sent(out, Partial)
    named = {h.id.node: h.plan_id for partial in partials for h in partial.headers}
    assert named == {n: SMALL.plan_id if i % 2 else "" for i, n in enumerate(nodes)}
    assert all(partial.sums for partial in partials)
    aggregator = aggregator_bench.Bench(lineage=replanned(2))
    assert all(saves(aggregator.hear(partial)) for partial in partials)


@pytest.mark.parametrize(
    "changes",
    [
        {"nested": {SMALL.plan_id: ["head.weight"]}},
        {"nested": {WHOLE.plan_id: list(WHOLE.names)}},
        {"nested": {}},
    ],
)
def test_a_gateway_refuses_a_version_whose_nested_plans_are_wrong(changes: Any) -> None:
    descriptor = msgspec.structs.replace(replanned(1).descriptor(0), **changes)
    with pytest.raises(PeerError, match="unknown-plan"):
        gateway_bench.Bench().above(descriptor)


def answer(node: str, model: str = "model") -> ProbeAnswer:
    return ProbeAnswer(model=model, values=UnitValues(node, 7, BODY))


def test_answers_to_probes_go_up_once_with_the_next_report() -> None:
    bench = gateway_bench.Bench().ready()
    bench.hear("node/node-1", answer("node-1"))
    bench.hear("node/node-1", answer("node-1"))
    (report,) = sent(bench.timer("report"), FleetReport)
    assert report.values == [UnitValues("node-1", 7, BODY)]
    (report,) = sent(bench.timer("report"), FleetReport)
    assert report.values == []


def test_answers_are_their_senders_own_and_bounded() -> None:
    bench = gateway_bench.Bench().ready()
    with pytest.raises(PeerError, match="wrong-source"):
        bench.hear("node/node-2", answer("node-1"))
    with pytest.raises(PeerError, match="wrong-model"):
        bench.hear("node/node-1", answer("node-1", "other"))
    odd = ProbeAnswer(model="model", values=UnitValues("node-1", 7, {"x" * 128: 1.0}))
    with pytest.raises(PeerError, match="shape"):
        bench.hear("node/node-1", odd)
    for n in range(MAX_ANSWERS):
        bench.hear(f"node/node-{n}", answer(f"node-{n}"))
    effects = bench.hear("node/node-x", answer("node-x"))
    assert [r.fields["reason"] for r in recorded(effects, "probe_answer_dropped")] == ["full"]


def test_a_long_list_of_answers_is_spread_over_reports() -> None:
    held = Answers("model", Outlet())
    many = {f"unit-{n}": 1.0 for n in range(4096)}
    for n in range(10):
        values = UnitValues(f"node-{n}", 7, many)
        held.take(f"node/node-{n}", ProbeAnswer(model="model", values=values), many)
    assert [len(held.take_report()) for _ in range(3)] == [8, 2, 0]


# The node.

ASKED = ProbeRequest(round=5, share=1.0, batches=3)


def fetched(bench: node_bench.Bench, version: int = 0, **changes: Any) -> list[Effect]:
    """Give the node a version of the re-planned lineage, changed; return all effects."""
    descriptor = replanned(version + 1).descriptor(version)
    out = bench.hear("gw/gw-1", msgspec.structs.replace(descriptor, inline=b"", **changes))
    for piece in MANIFEST.split(params_of(version)).values():
        for part in chunk_blob(piece.tobytes(), CHUNK_BYTES):
            out = out + bench.hear("blob", part)
    return out


def probes(effects: list[Effect]) -> list[Probe]:
    return [effect for effect in effects if isinstance(effect, Probe)]


@pytest.mark.parametrize(("memory_class", "plan"), [("default", PLAN), ("small", SMALL)])
def test_a_node_trains_the_plan_of_its_class(memory_class: str, plan: Plan) -> None:
    bench = node_bench.Bench(memory_class=memory_class, memory_bytes=4096).online()
    (job,) = node_bench.trains(fetched(bench))
    assert (job.plan, job.memory_bytes) == (plan, 4096)
    chunks = sent(bench.issue(job, delta_of(plan=plan)), Chunk)
    assert chunks[0].plan_id == plan.plan_id


def test_a_node_keeps_to_the_plans_budget_as_long_as_it_can() -> None:
    training = replanned(1).descriptor(0).training
    held = {name: msgspec.structs.replace(t, memory_bytes=500) for name, t in training.items()}
    bench = node_bench.Bench().online()
    (job,) = node_bench.trains(fetched(bench, training=held))
    assert job.memory_bytes == 500
    bench.done(JobFailed(job.job, "needs 510 bytes, allowed are 500"))
    (again,) = node_bench.trains(bench.timer("rest"))
    assert again.memory_bytes == 0


def test_a_nodes_own_bound_is_kept_whatever_happens() -> None:
    bench = node_bench.Bench(memory_bytes=600).online()
    (job,) = node_bench.trains(fetched(bench))
    bench.done(JobFailed(job.job, "needs 610 bytes, allowed are 600"))
    (again,) = node_bench.trains(bench.timer("rest"))
    assert [job.memory_bytes, again.memory_bytes] == [600, 600]


def test_each_class_is_told_its_budget() -> None:
    bench = planning(class_budgets={"sensor": 400, "pi": 1 << 20})
    training = bench.aggregator.lineage.next(params_of(1), 1).training
    told = {name: local.memory_bytes for name, local in training.items()}
    assert told == {"default": BUDGET, "sensor": 400, "pi": 1 << 20}


def test_a_probe_comes_before_the_training_and_once_per_round() -> None:
    bench = node_bench.Bench().online()
    effects = fetched(bench, probe=ASKED)
    (probe,) = probes(effects)
    assert (probe.plan, probe.batches, probe.batch_size) == (WHOLE, 3, 16)
    assert node_bench.trains(effects) == []
    effects = bench.done(Probed(probe.job, BODY, 3))
    (told,) = sent(effects, ProbeAnswer, "gw/gw-1")
    assert told.values == UnitValues("node-1", 5, BODY)
    (job,) = node_bench.trains(effects)
    bench.issue(job)
    assert probes(fetched(bench, 1, probe=ASKED)) == []


def test_a_probe_that_fails_costs_nothing_but_itself() -> None:
    bench = node_bench.Bench().online()
    (probe,) = probes(fetched(bench, probe=ASKED))
    effects = bench.done(JobFailed(probe.job, "out of memory"))
    assert recorded(effects, "probe_failed")
    assert sent(effects, ProbeAnswer) == []
    assert len(node_bench.trains(effects)) == 1


def test_a_node_that_lost_its_gateway_during_the_probe_drops_the_answer() -> None:
    bench = node_bench.Bench().online()
    (probe,) = probes(fetched(bench, probe=ASKED))
    bench.hear("broker", LinkDown())
    effects = bench.done(Probed(probe.job, BODY, 3))
    assert [r.fields["reason"] for r in recorded(effects, "probe_answer_dropped")] == ["offline"]


def test_the_lot_decides_who_takes_part() -> None:
    asked = msgspec.structs.replace(ASKED, share=0.3)
    took = 0
    for n in range(60):
        bench = node_bench.Bench(books=make_books(f"node-{n}")).online()
        took += len(probes(fetched(bench, probe=asked)))
    assert 8 <= took <= 30


def test_personal_units_are_never_probed() -> None:
    bench = node_bench.Bench().online()
    changes: dict[str, Any] = {"personal": ["body.weight"], "probe": ASKED}
    (probe,) = probes(fetched(bench, **changes))
    assert probe.plan == PLAN


def test_a_small_device_probes_its_own_plan_and_another_layer_each_round() -> None:
    seen = set()
    for number in (5, 6):
        bench = node_bench.Bench(memory_class="small", memory_bytes=4096).online()
        asked = msgspec.structs.replace(ASKED, round=number)
        (probe,) = probes(fetched(bench, probe=asked))
        assert probe.memory_bytes == 4096
        seen.add(probe.plan.names)
    assert seen == {
        ("head.weight", "head.bias"),
        ("body.weight", "body.bias", "head.bias"),
    }


def test_a_thin_link_carries_no_answers() -> None:
    bench = node_bench.Bench(max_update_bytes=50).online()
    effects = fetched(bench, probe=ASKED)
    assert [r.fields["reason"] for r in recorded(effects, "probe_skipped")] == ["thin-link"]
    assert len(node_bench.trains(effects)) == 1


def test_what_a_node_added_alone_ends_with_the_plan_it_was_trained_under() -> None:
    bench = node_bench.Bench(sleep_s=0.0).online()
    (job,) = node_bench.trains(fetched(bench))
    bench.hear("broker", LinkDown())
    (alone,) = node_bench.trains(bench.issue(job))
    assert alone.offset is not None
    bench.online()
    fetched(bench, 1)
    (save,) = saves(bench.trained(alone))
    (next_job,) = node_bench.trains(bench.done(Saved(save.job)))
    assert (next_job.plan, next_job.offset) == (WHOLE, None)
