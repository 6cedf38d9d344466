"""What a gateway asks its store to keep in an outage, and what it finds there at its start."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hedgerow.core.messages import Update, UpdateId


@dataclass(frozen=True, slots=True)
class SpoolUpdate:
    """A held update as one encoded message; the same id again changes nothing."""

    id: UpdateId
    body: bytes


@dataclass(frozen=True, slots=True)
class DropSpooled:
    """The updates whose receipts are final."""

    ids: tuple[UpdateId, ...]


@dataclass(frozen=True, slots=True)
class EmptySpool:
    """No update needs the disk any longer."""


@dataclass(frozen=True, slots=True)
class KeepIsland:
    """A named piece of what an island came to; it replaces the last one of that name."""

    name: str
    body: bytes


@dataclass(frozen=True, slots=True)
class DropIsland:
    """None of the pieces is of use any longer."""


Row = SpoolUpdate | DropSpooled | EmptySpool | KeepIsland | DropIsland


@dataclass(frozen=True, slots=True)
class Spooled:
    """What a gateway finds on its disk; `damaged` rows could not be read and are gone."""

    updates: tuple[Update, ...] = ()
    island: Mapping[str, bytes] = field(default_factory=dict)
    damaged: int = 0
