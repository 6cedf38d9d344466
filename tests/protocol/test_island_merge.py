"""What an island learns: its steps, its versions, and what is left when some updates count elsewhere."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.election import acting, elect, is_cut_off
from gateway.islandmerge import MOST_MERGED, IslandBase, Merged, change, segments, step
from gateway.islandwork import IslandWork, restored
from hedgerow.core.downlink import unit_values
from hedgerow.core.inline import inline_units
from hedgerow.core.merge import merge
from hedgerow.core.messages import Descriptor, GatewayState, IslandStamp, Update, UpdateId
from hedgerow.core.units import Vector, digest
from hedgerow.core.versions import FIRST_PROVISIONAL, first_of_term, term_of
from tests.protocol.scenarios import (
    MANIFEST,
    PLAN,
    make_config,
    make_lineage,
    make_update,
    params_of,
    sums_of,
)

LINEAGE = make_lineage(3)
START = LINEAGE.descriptor(2)
BASE = IslandBase.of(START)


def make_work(*terms: int) -> IslandWork:
    return IslandWork("gw-1", START, params_of(2), list(terms) or [1])


def by_id(updates: list[Update]) -> dict[UpdateId, Update]:
    return {update.id: update for update in updates}


def params_in(descriptor: Descriptor, bodies: dict[str, bytes]) -> Vector:
    """Return the parameters that a node which has the start makes of a version."""
    old = {
        unit.digest: MANIFEST.split(params_of(2))[n].tobytes() for n, unit in START.units.items()
    }
    known = {**old, **bodies, **inline_units(descriptor)}
    units = {n: known[unit.digest] for n, unit in descriptor.units.items()}
    assert all(digest(body) == descriptor.units[n].digest for n, body in units.items())
    return MANIFEST.join({n: unit_values(b, descriptor.downlink) for n, b in units.items()})


# Steps.


@pytest.mark.parametrize("law", ["exponential", "polynomial"])
def test_a_step_is_that_of_an_aggregator_with_the_same_updates(law: str) -> None:
    lineage = make_lineage(3, make_config(staleness={"law": law}))
    base = IslandBase.of(lineage.descriptor(2))
    updates = [make_update(seq, value=0.1 * seq) for seq in (1, 2, 3)]
    updates = [
        msgspec.structs.replace(u, base_version=b) for u, b in zip(updates, (0, 2, 1), strict=True)
    ]
    context = lineage.context()
    flat, _ = merge(np.zeros(MANIFEST.size, np.float32), sums_of(updates, lineage), context)
    ours = step(updates, [2, 0, 1], base)
    np.testing.assert_allclose(ours, MANIFEST.take(flat, PLAN.names), atol=1e-6)
    assert np.abs(ours).max() > 0.01


def test_an_update_beyond_tau_max_weighs_as_one_at_tau_max() -> None:
    tau_max = BASE.rules.staleness.tau_max
    updates = [make_update(1), make_update(2, value=-0.25)]
    at_limit = step(updates, [0, tau_max], BASE)
    assert np.array_equal(step(updates, [0, tau_max + 1000], BASE), at_limit)
    assert not np.array_equal(step(updates, [0, 0], BASE), at_limit)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sets(st.integers(0, 11), min_size=1), min_size=1, max_size=5), st.data())
def test_leaving_updates_out_is_as_if_they_had_not_come(
    groups: list[set[int]], data: st.DataObject
) -> None:
    seen: set[int] = set()
    merges = []
    for group in groups:
        fresh, seen = sorted(group - seen), seen | group
        merges.append([make_update(seq + 1, value=0.01 * (seq + 1)) for seq in fresh])
    every = by_id([update for merged in merges for update in merged])
    out = set(data.draw(st.lists(st.sampled_from(sorted(every)), unique=True)))
    whole, without = make_work(), make_work()
    for merged in merges:
        whole.merge(merged)
        without.merge([update for update in merged if update.id not in out])
    whole.without(out, {i: u for i, u in every.items() if i not in out})
    assert np.array_equal(whole.total, without.total)
    assert whole.ids == [i for i in every if i not in out]


def test_contributions_name_every_update_once_and_not_too_many() -> None:
    sizes = [3000, 1000, 97, 4000, 0, 96, 1]
    ids = iter(make_update(seq).id for seq in range(1, sum(sizes) + 1))
    merges = [Merged([next(ids) for _ in range(size)], [0] * size) for size in sizes]
    groups = segments(merges)
    assert MOST_MERGED == 4096
    assert [sum(len(one.ids) for one in group) for group in groups] == [4000, 97, 4096, 1]
    assert [one for group in groups for one in group] == merges


# Versions.


def test_versions_have_numbers_of_their_own_and_carry_what_changed() -> None:
    work = make_work(3)
    first, bodies = work.next_version()
    assert first.version == first_of_term(3) > FIRST_PROVISIONAL
    assert first.island == IslandStamp("gw-1", 3, 2)
    assert np.array_equal(params_in(first, bodies), params_of(2))
    assert first.units == START.units
    work.merge([make_update(1), make_update(2)])
    second, bodies = work.next_version()
    assert second.version == first.version + 1
    assert second.individual
    assert second.plan_id == START.plan_id
    expected = params_of(2)
    where = [MANIFEST.slices[name] for name in PLAN.names]
    for part, own in zip(where, PLAN.slices.values(), strict=True):
        expected[part] += work.total[own]
    assert np.array_equal(params_in(second, bodies), expected)
    changed = {name for name, unit in second.units.items() if unit.changed == second.version}
    assert changed == set(PLAN.names)


def test_age_counts_the_islands_own_versions() -> None:
    work = make_work(3)
    for seq in range(1, 4):
        work.merge([make_update(seq)])
    assert work.age(first_of_term(3) + 3) == 0
    assert work.age(first_of_term(3) + 1) == 2
    assert work.age(2) == work.age(0) == 3, "the aggregator's versions count as the island's first"
    assert work.age(first_of_term(2) + 2) == 3, "another island's are taken as its first"
    assert term_of(first_of_term(7) + 12) == 7


def test_an_island_from_the_disk_goes_on_under_another_term_with_its_numbers() -> None:
    work = make_work(3)
    updates = [make_update(seq, value=0.1 * seq) for seq in (1, 2, 3)]
    work.merge(updates[:2])
    work.merge(updates[2:])
    again = restored("gw-1", work.kept(), work.merges)
    again.without(set(), by_id(updates))
    assert np.array_equal(again.total, work.total)
    again.terms.append(9)
    made, bodies = again.next_version()
    assert made.version == first_of_term(9) + 2
    assert again.age(first_of_term(3) + 1) == again.age(first_of_term(9) + 1) == 1
    assert np.array_equal(params_in(made, bodies), params_in(*work.next_version()))


def test_the_change_of_nothing_is_nothing() -> None:
    assert not change([Merged([], [])], {}, BASE).any()


# Elections.


def state(gateway: str, **keys: object) -> GatewayState:
    return msgspec.convert(
        {
            "t": "gateway-state",
            "gateway": gateway,
            "boot": 1,
            "state": "ready",
            "served": 4,
            **keys,
        },
        GatewayState,
    )


@pytest.mark.parametrize(
    ("states", "who"),
    [
        ([state("gw-b"), state("gw-a")], "gw-a"),
        ([state("gw-a", served=3), state("gw-b")], "gw-b"),
        ([state("gw-a", served=-1), state("gw-b", served=-1)], ""),
        ([state("gw-a", state="lost"), state("gw-b")], "gw-b"),
        ([state("gw-a"), state("gw-b", acting=1)], "gw-b"),
        ([state("gw-a", acting=1), state("gw-b", acting=2)], "gw-b"),
        ([state("gw-c", acting=2), state("gw-b", acting=2)], "gw-b"),
        ([state("gw-a", acting=5, state="lost"), state("gw-b", acting=2)], "gw-b"),
        ([], ""),
    ],
)
def test_every_gateway_elects_the_same(states: list[GatewayState], who: str) -> None:
    assert elect(states) == elect(list(reversed(states))) == who
    now = acting(states)
    assert now is None or now.gateway == who


def test_a_site_is_cut_off_when_no_living_gateway_has_a_way() -> None:
    assert is_cut_off([state("gw-a"), state("gw-b")])
    assert not is_cut_off([state("gw-a"), state("gw-b", hops=0)])
    assert not is_cut_off([state("gw-a", hops=1)])
    assert is_cut_off([state("gw-a"), state("gw-b", hops=0, state="lost")])
