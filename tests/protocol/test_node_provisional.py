"""Versions of an island at a node: taken, trained from, and left for the aggregator's."""

from typing import Any

import pytest
from msgspec.structs import replace

from edge_node.rows import PutUpdate
from hedgerow.core.effects import Effect
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Descriptor, IslandStamp, NodeState
from hedgerow.core.versions import LIFE_VERSIONS, first_of_term
from tests.protocol.node_bench import Bench, descriptor, issued_one, parts, trains
from tests.protocol.scenarios import announced, make_books, recorded, saved_rows

TERM = 3
FIRST = first_of_term(TERM)


def provisional(
    version: int = FIRST, *, base: int = 1, content: int = 2, **keys: Any
) -> Descriptor:
    """Return an island's version that began at `base`, with the parameters of version `content`."""
    stamp = IslandStamp("gw-1", TERM, base)
    return replace(descriptor(content, **keys), version=version, island=stamp)


def take(bench: Bench, version: Descriptor, content: int) -> list[Effect]:
    """Give the node a version and its units; return all effects."""
    effects = bench.hear("gw/gw-1", version)
    for part in parts(content):
        effects += bench.hear("blob", part)
    return effects


def issued_of(version: int) -> Bench:
    """Return an online node that has issued one update of a version of the aggregator."""
    bench = Bench().online()
    (job,) = trains(bench.fetch(version))
    bench.issue(job)
    return bench


def test_an_island_s_version_is_adopted_and_trained_from() -> None:
    bench = issued_of(1)
    effects = take(bench, provisional(), 2)
    assert recorded(effects, "version_adopted")[0].fields == {"version": FIRST}
    (job,) = trains(effects)
    assert announced(effects, NodeState)[-1].version == FIRST
    (row,) = saved_rows(bench.trained(job), PutUpdate)
    assert row.base_version == FIRST


def test_the_aggregator_s_next_version_is_adopted_and_trained_from_again() -> None:
    bench = issued_of(1)
    (job,) = trains(take(bench, provisional(), 2))
    bench.issue(job)
    effects = take(bench, descriptor(2), 2)
    assert recorded(effects, "version_adopted")[0].fields == {"version": 2}
    assert len(trains(effects)) == 1


def test_an_island_that_began_before_the_node_s_version_is_ignored() -> None:
    bench = issued_of(2)
    assert take(bench, provisional(base=1, content=3), 3) == []


def test_the_version_an_island_began_at_ends_it_but_is_not_trained_from_twice() -> None:
    bench = issued_of(1)
    (job,) = trains(take(bench, provisional(), 2))
    bench.issue(job)
    effects = take(bench, descriptor(1), 1)
    assert recorded(effects, "version_adopted")[0].fields == {"version": 1}
    assert trains(effects) == []


@pytest.mark.parametrize(("last", "trained"), [(FIRST, 0), (-1, 1)])
def test_a_restart_remembers_the_island_s_versions_apart(last: int, trained: int) -> None:
    books = make_books(issued=1, applied=1, last_base_version=1, last_provisional=last)
    bench = Bench(books).online()
    assert len(trains(take(bench, provisional(), 2))) == trained
    assert len(trains(take(Bench(books).online(), descriptor(2), 2))) == 1


def test_a_restored_aggregator_s_numbers_may_jump() -> None:
    bench, _ = issued_one()
    effects = take(bench, replace(descriptor(1), version=LIFE_VERSIONS + 1), 1)
    assert recorded(effects, "version_adopted")[0].fields == {"version": LIFE_VERSIONS + 1}
    assert len(trains(effects)) == 1


@pytest.mark.parametrize(
    "wrong",
    [replace(descriptor(1), version=FIRST), descriptor(1, island=IslandStamp("gw-1", TERM, 0))],
    ids=["of no island", "of an island, numbered as the aggregator's"],
)
def test_a_version_of_neither_lane_is_refused(wrong: Descriptor) -> None:
    bench = Bench().online()
    with pytest.raises(PeerError, match="malformed"):
        bench.hear("gw/gw-1", wrong)
