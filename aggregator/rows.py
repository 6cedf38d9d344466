"""What the aggregator makes durable, and what it finds again when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hedgerow.core.messages import Descriptor, Header, Partial
from hedgerow.core.units import Vector


@dataclass(frozen=True, slots=True)
class AcceptPartial:
    """A partial aggregate admitted to the buffer; kept for the replay after its merge, too."""

    partial: Partial


@dataclass(frozen=True, slots=True)
class CommitVersion:
    """A version: its parameters, shape (P,), the partials merged into it and their ledger rows.

    `partial_ids` are in the order of their merge; `headers` are the updates settled by it.
    """

    descriptor: Descriptor
    params: Vector
    partial_ids: tuple[str, ...]
    headers: tuple[Header, ...]


@dataclass(frozen=True, slots=True)
class SaveMetrics:
    """A version's evaluation."""

    version: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class DropPartials:
    """What a checkpoint makes needless: merge inputs up to it, and descriptors before `needed_from`."""

    through_version: int
    needed_from: int


@dataclass(frozen=True, slots=True)
class SetAside:
    """A waiting partial that cannot be merged; it is kept for people, and its updates are unknown again."""

    partial_id: str
    reason: str


Row = AcceptPartial | CommitVersion | SaveMetrics | DropPartials | SetAside


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One settled update and the version that it was merged into."""

    header: Header
    version: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything durable, as it is read at the start. `term` is this start's own, one above the last.

    `descriptors` are those that updates may come from or wait with, oldest first and never empty;
    `ledger` is complete; `waiting` are partials accepted but not merged, in the order of their acceptance;
    `metrics` are each version's evaluation. `restored` is "" for a ledger that goes on where it was, else why
    it may lack versions that were published: "restore", "lost-frames" or "damaged-version". `newest_seen` is
    then the newest version that is known to have been. `damage` counts what was found damaged, by kind.
    """

    term: int
    descriptors: tuple[Descriptor, ...]
    params: Vector
    ledger: tuple[LedgerRow, ...]
    waiting: tuple[Partial, ...]
    metrics: Mapping[int, Mapping[str, float]]
    restored: str = ""
    newest_seen: int = 0
    damage: Mapping[str, int] = field(default_factory=dict)
