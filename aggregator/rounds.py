"""Whose turn it is: everybody's at any time, or a sample's, round by round.

A round belongs to one version. Its sample is drawn from the nodes that are there, idle ones first, once
there are enough of them; a round that comes to nothing until the merge deadline is drawn anew from whoever
is there, so that silent nodes can never hold training up for good.
"""

import math
import random
from collections.abc import Mapping

from hedgerow.core.config import Config
from hedgerow.core.strategy import Rounds

_ABSENT = ("lost", "disconnected")
_BUSY = "training"
_NEVER = 1 << 62


class Turntable:
    """Draws the samples of a round-based strategy; without `rounds` everybody may always train.

    `nodes` is the fleet's size, `buffer_size` what makes a merge due without rounds. `sample` is None for
    everybody, and empty while a round waits for its nodes.
    """

    def __init__(self, rounds: Rounds | None, *, nodes: int, buffer_size: int, seed: int) -> None:
        self.sample: list[str] | None = None if rounds is None else []
        self._rounds = rounds
        self._wanted = nodes if rounds is None else _part(rounds.sample_share, nodes)
        self._buffer_size = buffer_size
        self._seed = seed
        self._draws = 0

    @classmethod
    def of(cls, rounds: Rounds | None, config: Config) -> "Turntable":
        """Return the turntable of a configured fleet."""
        fleet = config.fleet
        size = config.aggregation.buffer_size
        return cls(rounds, nodes=fleet.nodes, buffer_size=size, seed=fleet.seed)

    @property
    def needed(self) -> int:
        """How many updates make a merge due."""
        if self._rounds is None:
            return self._buffer_size
        if not self.sample:
            return _NEVER
        return _part(self._rounds.enough_share, len(self.sample))

    @property
    def waiting(self) -> bool:
        """Whether a round waits for its nodes."""
        return self.sample == []

    def close(self) -> None:
        """A round is over: the next one is drawn by `draw`."""
        if self._rounds is not None:
            self.sample = []

    def draw(self, version: int, states: Mapping[str, str], *, at_least: int | None = None) -> bool:
        """Draw the sample for a version from nodes by state, `at_least` of them (default: all wanted).

        True when a sample was drawn; False changes nothing.
        """
        there = sorted(node for node, state in states.items() if state not in _ABSENT)
        least = self._wanted if at_least is None else at_least
        if self._rounds is None or len(there) < least:
            return False
        self._draws += 1
        random.Random(f"{self._seed}:sample:{version}:{self._draws}").shuffle(there)
        there.sort(key=lambda node: states[node] == _BUSY)
        self.sample = sorted(there[: self._wanted])
        return True


def _part(share: float, whole: int) -> int:
    """Return a share, rounded up but for what binary fractions add, and at least 1."""
    return max(1, math.ceil(round(share * whole, 6)))
