"""What a search is given and how it says what it is at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Budgets:
    """The fleet's budget in bytes, and those of its memory classes."""

    widest: int
    classes: Mapping[str, int]


class Tell(Protocol):
    """Shows what is under way."""

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """Show `what`, and how much of it is done; a total of 0 is unknown."""
