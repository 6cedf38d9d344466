"""What a node makes durable, and what it finds again when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from hedgerow.core.messages import UpdateId


@dataclass(frozen=True, slots=True)
class PutUpdate:
    """A finished update; its `body` is the encoded message."""

    id: UpdateId
    base_version: int
    body: bytes


@dataclass(frozen=True, slots=True)
class CloseUpdate:
    """An update's end: it leaves the outbox and is counted as applied, rejected, expired or coalesced."""

    id: UpdateId
    outcome: str
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NewEpoch:
    """The node numbers its updates anew, under another epoch; `reason` says why the last one ended."""

    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class KeepUnit:
    """A unit outside the plan: it changes rarely, so a restart need not fetch it again."""

    unit: str
    body: bytes


@dataclass(frozen=True, slots=True)
class KeepResidual:
    """What a unit's updates have left out so far, as little-endian float32; None ends it.

    Written with the update or the end of one that it follows from, so that a crash loses neither.
    """

    unit: str
    body: bytes | None


@dataclass(frozen=True, slots=True)
class KeepPersonal:
    """The node's own values of a personal unit, as little-endian float32.

    Written with the update from the same training, so that a crash keeps both or neither.
    """

    unit: str
    body: bytes


Row = PutUpdate | CloseUpdate | NewEpoch | KeepUnit | KeepResidual | KeepPersonal


@dataclass(frozen=True, slots=True)
class EpochBooks:
    """The account of one epoch: issued = applied + rejected + expired + coalesced + held.

    `outbox` maps held seqs to encoded updates; an empty one is an update whose body the disk has damaged.
    `ended` is why the epoch ended, "" while it lasts: after "fork" or "restored-disk" others may have issued
    under it what these books do not know.
    """

    node: str
    epoch: int
    issued: int
    applied: int
    rejected: Mapping[str, int]
    expired: int
    outbox: Mapping[int, bytes]
    coalesced: int = 0
    ended: str = ""


@dataclass(frozen=True, slots=True)
class Books:
    """A node's durable state. The figures and the `outbox` are the current epoch's, as in `EpochBooks`.

    `former` are the epochs before it, oldest first. `found` says that the epoch was found on the disk, and
    not drawn at this start: then the disk may be an older copy of itself. `fresh_epoch` are 48 random bits,
    drawn at this start, from which further epochs come. `ended` is why a former epoch ended at this start.
    `units` maps unit names to their bytes as published, and `residuals` to what updates left out, `personal`
    to the node's own values, both as little-endian float32. `last_base_version` is the newest version of the
    aggregator that an update was made from, `last_provisional` that of an island, -1 for none.
    """

    node: str
    epoch: int
    issued: int
    applied: int
    rejected: Mapping[str, int]
    expired: int
    last_base_version: int
    outbox: Mapping[int, bytes]
    units: Mapping[str, bytes]
    residuals: Mapping[str, bytes] = field(default_factory=dict)
    personal: Mapping[str, bytes] = field(default_factory=dict)
    coalesced: int = 0
    last_provisional: int = -1
    former: tuple[EpochBooks, ...] = ()
    found: bool = False
    fresh_epoch: int = 0
    ended: str = ""

    @property
    def epochs(self) -> tuple[EpochBooks, ...]:
        """The account of every epoch, the current one last."""
        current = EpochBooks(
            node=self.node,
            epoch=self.epoch,
            issued=self.issued,
            applied=self.applied,
            rejected=self.rejected,
            expired=self.expired,
            outbox=self.outbox,
            coalesced=self.coalesced,
        )
        return (*self.former, current)
