"""How a node holds back while its gateway has no room: it trains and offers less, longer each time."""

import random
from typing import get_args

from hedgerow.core.errors import Reason
from hedgerow.core.messages import Receipt

_FIRST_US = 10_000_000
_LONGEST_US = 600_000_000
_FAULTS = frozenset(get_args(Reason))
FORK = "fork"
"""A receipt's reason: another update has the same id."""


def is_pressure(receipt: Receipt) -> bool:
    """Whether a receipt says that the gateway has no room, and not what is wrong with the update."""
    return receipt.status == "busy" and receipt.reason not in {*_FAULTS, FORK}


class Backoff:
    """A pause that doubles with each refusal after it, from 10 s to 10 min, and ends when there is room.

    Half of each is chance, from `rng`: nodes that were refused together must not come back together.
    """

    def __init__(self, rng: random.Random) -> None:
        self._random = rng
        self._next_us = _FIRST_US
        self._until_us = 0

    def refused(self, now_us: int) -> None:
        """The gateway has no room; within a pause that is no news."""
        if self.pause_us(now_us):
            return
        self._until_us = now_us + round(self._next_us * self._random.uniform(0.5, 1.0))
        self._next_us = min(2 * self._next_us, _LONGEST_US)

    def eased(self) -> None:
        """There is room, here or at another gateway."""
        self._next_us, self._until_us = _FIRST_US, 0

    def pause_us(self, now_us: int) -> int:
        """Return how long the node still holds back, 0 when it need not."""
        return max(self._until_us - now_us, 0)
