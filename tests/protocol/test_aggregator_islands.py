"""The rules of the aggregator for what a site learned without it."""

from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregator.islands import island_factor, merge_island
from aggregator.refusal import Refusal
from aggregator.rows import AcceptPartial, CommitVersion, LedgerRow
from hedgerow.core.messages import IslandResult, Partial, PartialReply, Receipts, Subscribe
from hedgerow.core.quantize import norm
from hedgerow.core.units import Vector
from hedgerow.core.versions import FIRST_PROVISIONAL, LIFE_VERSIONS, first_of_term
from tests.protocol.aggregator_bench import Bench, answers, commits, updates
from tests.protocol.scenarios import (
    MODEL,
    PLAN,
    make_config,
    make_lineage,
    make_snapshot,
    make_update,
    params_of,
    recorded,
    saved_rows,
    sent,
)

GENTLE = {"staleness": {"law": "polynomial", "exponent": 1.0, "tau_max": 3}}


def contribution(
    *seqs: int,
    base: int = 0,
    number: int = 1,
    value: float = 0.125,
    delta: Vector | None = None,
    **changes: Any,
) -> Partial:
    """Return an island's result over updates of its own first version, named gw-1-9-NUMBER."""
    own = np.full(PLAN.size, value, np.float32) if delta is None else delta
    provisional = first_of_term(1)
    headers = [make_update(seq, provisional if seq > 1 else base).header for seq in seqs]
    result = {"merges": len(seqs), "units": list(PLAN.names), **changes}
    island = IslandResult("gw-1", 1, base, result["units"], result["merges"], own.tobytes())
    return Partial(
        id=f"gw-1-9-{number}",
        gateway="gw-1",
        model=MODEL,
        at_version=provisional,
        headers=headers,
        island=island,
    )


def grown(versions: int, per_version: int = 2, **sections: Any) -> Bench:
    """Return a bench whose ledger has so many versions after 0, each of so many updates of another node."""
    lineage = make_lineage(versions + 1, make_config(**sections))
    rows = [
        LedgerRow(make_update(version * 100 + n, version - 1, "node-9").header, version)
        for version in range(1, versions + 1)
        for n in range(per_version)
    ]
    return Bench(make_snapshot(lineage, ledger=rows), lineage=lineage, **sections)


def test_it_is_durable_then_merged_at_once_and_alone_and_settled_like_updates() -> None:
    bench = Bench()
    bench.hear(Subscribe(gateway="gw-1", after=0))
    bench.accept(make_update(50, node="node-2"))
    partial = contribution(1, 2, 3)
    effects = bench.hear(partial)
    assert saved_rows(effects, AcceptPartial) == [AcceptPartial(partial)]
    effects = bench.finish(effects[-1])  # type: ignore[arg-type]
    assert answers(effects) == [("accepted", [])]
    (save,) = commits(effects)
    (row,) = saved_rows(effects, CommitVersion)
    assert row.partial_ids == (partial.id,)
    assert row.headers == tuple(partial.headers)
    done = bench.finish(save)
    settled = [r.id.seq for message in sent(done, Receipts) for r in message.receipts]
    assert settled == [1, 2, 3]
    assert answers(bench.hear(contribution(1, 2, 3, number=2)))[0][0] == "known"
    (row,) = saved_rows(bench.timer("deadline"), CommitVersion)
    assert [header.id.node for header in row.headers] == ["node-2"]


def test_overlap_is_named_with_its_forks() -> None:
    bench = Bench()
    bench.accept(make_update(1))
    other = contribution(1, 2)
    fork = msgspec.structs.replace(other.headers[0], hash=77)
    forked = msgspec.structs.replace(other, headers=[fork, other.headers[1]])
    effects = bench.hear(forked)
    assert answers(effects) == [("overlap", [(1, "rejected", "fork")])]
    assert recorded(effects, "fork_alarm")
    assert answers(bench.hear(other)) == [("overlap", [(1, "admitted", "")])]


@pytest.mark.parametrize(
    ("reason", "partial"),
    [
        ("unknown-plan", contribution(1, units=["nowhere.weight"])),
        ("shape", contribution(1, delta=np.zeros(PLAN.size + 1, np.float32))),
        ("not-finite", contribution(1, value=float("nan"))),
        ("inconsistent", contribution(1, merges=0)),
        ("inconsistent", contribution(1, merges=1 << 40)),
        ("inconsistent", contribution(1, 1)),
        ("future-version", contribution(1, base=FIRST_PROVISIONAL)),
        ("future-version", contribution(1, base=1 << 39)),
    ],
)
def test_what_cannot_be_merged_is_rejected_with_a_reason(reason: str, partial: Partial) -> None:
    effects = Bench().hear(partial)
    assert [(r.status, r.reason) for r in sent(effects, PartialReply)] == [("rejected", reason)]


def test_it_carries_neither_sums_nor_updates() -> None:
    bench = Bench()
    sums = bench.partial(make_update(1)).sums
    for changes in ({"sums": sums}, {"updates": updates(1)}):
        (reply,) = sent(
            bench.hear(msgspec.structs.replace(contribution(1), **changes)), PartialReply
        )
        assert (reply.status, reply.reason) == ("rejected", "inconsistent")


def test_its_weight_is_that_of_its_age_but_never_less_than_the_oldest_updates() -> None:
    for versions, weight in ((0, 1.0), (2, 1 / 3), (3, 1 / 4), (20, 1 / 4)):
        lineage = grown(versions, per_version=0, **GENTLE).lineage
        partial = contribution(1, 2)
        assert partial.island is not None
        assert island_factor(partial, partial.island, lineage) == pytest.approx(weight)
    floor = {**GENTLE, "island": {"least_weight": 0.5}}
    lineage = grown(20, per_version=0, **floor).lineage
    partial = contribution(1, 2)
    assert partial.island is not None
    assert island_factor(partial, partial.island, lineage) == pytest.approx(0.5)


def test_it_counts_by_its_share_of_all_updates_since_its_base() -> None:
    bench = grown(3, per_version=2, staleness={"law": "constant"})
    for base, cloud in ((0, 6), (1, 4), (3, 0)):
        partial = contribution(1, 2, base=base)
        assert partial.island is not None
        factor = island_factor(partial, partial.island, bench.aggregator.lineage)
        assert factor == pytest.approx(2 / (2 + cloud))


def test_it_is_cut_to_what_its_merges_could_have_moved() -> None:
    lineage = make_lineage(1, make_config(training={"clip_norm": 0.5}))
    partial = contribution(1, 2, delta=np.full(PLAN.size, 10, np.float32), merges=2)
    assert partial.island is not None
    after = merge_island(params_of(0), partial, partial.island, lineage)
    assert norm(after - params_of(0)) == pytest.approx(2 * 0.5, rel=1e-4)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(0, 12))
def test_a_step_stays_finite_and_within_its_bound(seed: int, merges: int, versions: int) -> None:
    lineage = make_lineage(versions + 1)
    rng = np.random.default_rng(seed)
    delta = (rng.normal(size=PLAN.size) * 10.0 ** rng.integers(-30, 18)).astype(np.float32)
    partial = contribution(1, 2, merges=merges, delta=delta)
    assert partial.island is not None
    before = params_of(versions)
    after = merge_island(before, partial, partial.island, lineage)
    assert np.isfinite(after).all()
    assert norm(after - before) <= lineage.current.rules.clip_norm * merges * 1.001
    others = [unit for unit in lineage.manifest.slices if unit not in PLAN.slices]
    for unit in others:
        where = lineage.manifest.slices[unit]
        assert np.array_equal(after[where], before[where])


def test_an_update_of_our_own_versions_is_no_fresher_in_it_than_by_itself() -> None:
    bench = grown(8, staleness={"tau_max": 2})
    effects = bench.hear(contribution(1, 2, 3, base=1))
    assert answers(effects) == [("overlap", [(1, "rejected", "stale")])]


def test_its_headers_may_be_old_and_teach_the_rules_nothing() -> None:
    bench = grown(8, staleness={"tau_max": 2})
    gamma = bench.aggregator.lineage.current.rules.staleness.gamma
    effects = bench.hear(contribution(2, 3, 4, base=1))
    (row,) = saved_rows(bench.finish(effects[-1]), CommitVersion)  # type: ignore[arg-type]
    assert row.descriptor.rules.staleness.gamma == pytest.approx(gamma, abs=1e-6)
    assert row.descriptor.version == 9


def test_a_former_lives_island_is_merged_with_the_least_weight() -> None:
    bench = Bench(staleness=GENTLE["staleness"])
    effects = bench.come_and_go(after=5)
    (save,) = commits(effects)
    bench.finish(save)
    assert bench.aggregator.lineage.version == LIFE_VERSIONS + 1
    effects = bench.hear(contribution(2, 3))
    effects = bench.finish(effects[-1])  # type: ignore[arg-type]
    (row,) = saved_rows(effects, CommitVersion)
    moved = (row.params - params_of(0))[bench.lineage.manifest.slices["head.bias"]]
    assert moved == pytest.approx(np.full(moved.shape, 0.125 / 4), rel=1e-3)


def test_an_island_of_a_lost_version_waits_for_the_new_life_and_is_merged() -> None:
    bench = Bench(versions=3)
    late = contribution(2, 3, base=7)
    effects = bench.hear(late)
    assert sent(effects, Refusal) == [Refusal(late.id, "new-life", 1)]
    bench.finish(commits(effects)[0])
    effects = bench.hear(late)
    (row,) = saved_rows(bench.finish(effects[-1]), CommitVersion)  # type: ignore[arg-type]
    assert row.partial_ids == (late.id,)


def test_a_plain_partial_of_a_provisional_base_is_refused_for_good() -> None:
    bench = Bench()
    header = make_update(1, first_of_term(1)).header
    partial = msgspec.structs.replace(bench.partial(make_update(1)), headers=[header])
    assert answers(bench.hear(partial)) == [("known", [(1, "rejected", "unknown-version")])]


def test_it_waits_over_a_restart() -> None:
    first = Bench()
    bench = Bench(make_snapshot(first.lineage, term=2, waiting=[contribution(1, 2)]), heard=False)
    assert commits(bench.start_effects) == []
    (row,) = saved_rows(bench.come_and_go(), CommitVersion)
    assert row.partial_ids == ("gw-1-9-1",)
