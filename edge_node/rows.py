"""What a node makes durable, and what it finds again when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PutUpdate:
    """A finished update; its `body` is the encoded message."""

    seq: int
    base_version: int
    body: bytes


@dataclass(frozen=True, slots=True)
class CloseUpdate:
    """An update's end: it leaves the outbox and is counted as applied, rejected or expired."""

    seq: int
    outcome: str
    reason: str = ""


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


Row = PutUpdate | CloseUpdate | KeepUnit | KeepResidual | KeepPersonal


@dataclass(frozen=True, slots=True)
class Books:
    """A node's durable state within one epoch.

    `outbox` maps held seqs to encoded updates; `units` maps unit names to their bytes as published, and
    `residuals` to what updates left out, `personal` to the node's own values, both as little-endian float32;
    `last_base_version` is -1 before the first update.
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
