"""Whether this ledger holds the newest version there is; if it was put back, version numbers go on elsewhere.

A number that was ever given out may be in use on any node, so an aggregator that finds itself behind opens
a new life of numbers before it merges anything.
"""

from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Descriptor, Partial
from hedgerow.core.versions import FIRST_PROVISIONAL, LIFE_VERSIONS, is_provisional, next_life

_MOST_LIVES = 1000
"""How many lives ahead a peer may claim to be: each claim costs a life, and numbers must last."""


def claimed_version(partial: Partial) -> int:
    """Return the newest of the aggregator's versions that a partial speaks of."""
    if partial.island is not None:
        return partial.island.base_version
    claimed = (partial.at_version, *(header.base_version for header in partial.headers))
    return max((version for version in claimed if not is_provisional(version)), default=0)


class Lives:
    """Hears from gateways what they know. `reason` is why a new life began or is due, "" for none.

    `heard` says whether any gateway has asked for versions since the start: before, nobody could have said
    that there are newer ones, so nothing may be merged. `newest_seen` is the newest that anybody knew of.
    """

    def __init__(self, reason: str, newest_seen: int) -> None:
        self.reason = reason
        self.heard = False
        self.due = bool(reason)
        self.newest_seen = newest_seen

    def hear(self, version: int, own: int) -> bool:
        """Take a version that somebody knows of, while `own` is the newest here.

        Returns True when it makes a new life due. Raises PeerError for a number out of all proportion.
        """
        if is_provisional(version) or version <= max(own, self.newest_seen):
            return False
        lives_ahead = version // LIFE_VERSIONS - own // LIFE_VERSIONS
        if lives_ahead > _MOST_LIVES or next_life(version, own) >= FIRST_PROVISIONAL:
            raise PeerError("future-version", f"version {version}, now {own}")
        self.newest_seen = version
        self.reason = self.reason or "gateway-ahead"
        news, self.due = not self.due, True
        return news

    def number(self, own: int) -> int:
        """Return the first version of the new life."""
        return next_life(self.newest_seen, own)

    def took(self, descriptor: Descriptor) -> None:
        """A version is durable: it may be the first of the new life."""
        if descriptor.version > max(self.newest_seen, descriptor.parent + 1):
            self.due = False
