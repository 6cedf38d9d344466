"""The order of versions: the aggregator's, and the provisional ones of a site without an uplink.

The aggregator numbers its versions 0, 1, 2, ... An island's are numbered from `FIRST_PROVISIONAL` on, so
that the two can never be taken for each other, and each names the aggregator's version it began at.

An aggregator put back to an older state goes on in a new life: `LIFE_VERSIONS` numbers on, so that no number
it gave out before is given out again.
"""

from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Descriptor

FIRST_PROVISIONAL = 1 << 40
TERM_PROVISIONALS = 1 << 20
"""How many provisional versions one island term has."""

MOST_TERM = 1 << 32
"""No site has had so many island terms: a later one is wrong, and would use up the numbers."""

LIFE_VERSIONS = 1_000_000


def is_provisional(version: int) -> bool:
    """Whether a version is an island's."""
    return version >= FIRST_PROVISIONAL


def first_of_term(term: int) -> int:
    """Return the first provisional version of an island term."""
    return FIRST_PROVISIONAL + term * TERM_PROVISIONALS


def term_of(version: int) -> int:
    """Return the island term of a provisional version."""
    return (version - FIRST_PROVISIONAL) // TERM_PROVISIONALS


def check_term(term: int) -> None:
    """Raise PeerError for an island term that cannot be."""
    if term > MOST_TERM:
        raise PeerError("future-version", f"island term {term}, there are {MOST_TERM}")


def check_lane(descriptor: Descriptor) -> None:
    """Raise PeerError unless exactly the versions numbered as an island's say whose they are."""
    stamp = descriptor.island
    if is_provisional(descriptor.version) != (stamp is not None):
        raise PeerError("malformed", f"version {descriptor.version} is of {stamp}")
    if stamp is not None:
        check_term(max(stamp.term, term_of(descriptor.version)))


def next_life(newest_seen: int, restored: int) -> int:
    """Return the version with which a restored aggregator goes on after `restored`.

    `newest_seen` is the newest version that anybody knows of. The count within the life goes on.
    """
    life = max(newest_seen, restored) // LIFE_VERSIONS + 1
    return life * LIFE_VERSIONS + restored % LIFE_VERSIONS + 1


def begins_life(version: int, known: int) -> bool:
    """Whether `version` is of a later life of the aggregator than `known`; an island's never is."""
    if is_provisional(version):
        return False
    return version // LIFE_VERSIONS > max(known, 0) // LIFE_VERSIONS


def supersedes(new: Descriptor, old: Descriptor) -> bool:
    """Whether `new` replaces `old` for whoever holds it; the same version anew does.

    A version of the aggregator ends an island that began at it or before; an island's version is taken for
    one of the aggregator only if the island began there or later.
    """
    if is_provisional(new.version) == is_provisional(old.version):
        return new.version >= old.version
    if new.island is not None:
        return new.island.base_version >= old.version
    assert old.island is not None
    return new.version >= old.island.base_version
