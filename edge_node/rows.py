"""What a node makes durable, and what it finds again when it starts."""

from collections.abc import Mapping
from dataclasses import dataclass


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


Row = PutUpdate | CloseUpdate | KeepUnit


@dataclass(frozen=True, slots=True)
class Books:
    """A node's durable state within one epoch.

    `outbox` maps held seqs to encoded updates; `units` maps unit names to little-endian float32 bytes;
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
