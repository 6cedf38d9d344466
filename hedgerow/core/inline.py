"""Small versions travel whole: a descriptor carries the plan's units itself where they are few bytes.

Everybody who is told of the version gets what changed with it in the same message, instead of following one
channel for each unit.
"""

from math import prod

from hedgerow.core.downlink import Downlink, value_bytes
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Descriptor
from hedgerow.core.plan import Plan
from hedgerow.core.units import Vector, unit_bytes

INLINE_BYTES = 16384
"""The most that a descriptor carries: half a chunk, so that it still fits every link."""


def inline_of(params: Vector, plan: Plan, downlink: Downlink = "fp32") -> bytes:
    """Return the plan's units of `params`, shape (P,), as they are published, or nothing if too long."""
    if value_bytes(downlink) * plan.size > INLINE_BYTES:
        return b""
    return unit_bytes(plan.manifest.take(params, plan.names), downlink)


def carried(descriptor: Descriptor) -> set[str]:
    """Return the digests of the units that the descriptor carries itself."""
    if not descriptor.inline:
        return set()
    return {descriptor.units[name].digest for name in descriptor.plan}


def inline_units(descriptor: Descriptor) -> dict[str, bytes]:
    """Return the carried units by their stated digest; raises PeerError where the length does not fit."""
    out: dict[str, bytes] = {}
    if not descriptor.inline:
        return out
    start = 0
    for name in descriptor.plan:
        unit = descriptor.units[name]
        end = start + value_bytes(descriptor.downlink) * prod(unit.shape)
        out[unit.digest] = descriptor.inline[start:end]
        start = end
    if start != len(descriptor.inline):
        raise PeerError("shape", f"{len(descriptor.inline)} bytes inline, the plan needs {start}")
    return out
