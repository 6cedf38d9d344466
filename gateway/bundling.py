"""What gateways hand one another: how partials are packed, and how long an answer is waited for."""

import random
from collections.abc import Iterable

from hedgerow.core.codec import encode
from hedgerow.core.messages import Partial

ENVELOPE_BYTES = 2048
"""Room for a topic and what a bundle says besides its partials, its path above all."""

_BUNDLE_BYTES = 64 << 10
_BUNDLE_PARTIALS = 16
_PATIENCE_FIRST_US = 5_000_000
_PATIENCE_MOST_US = 300_000_000
_MOST_DOUBLINGS = 6


def pack(partials: Iterable[Partial], packet_bytes: int) -> list[list[Partial]]:
    """Cut partials into bundles: small ones together, since each message costs, large ones alone.

    A bundle of several stays within `packet_bytes`, as each partial by itself must.
    """
    most_bytes = min(_BUNDLE_BYTES, packet_bytes - ENVELOPE_BYTES)
    bundles: list[list[Partial]] = []
    room = 0
    for partial in partials:
        size_bytes = len(encode(partial))
        if size_bytes > room or len(bundles[-1]) >= _BUNDLE_PARTIALS:
            bundles.append([])
            room = most_bytes
        bundles[-1].append(partial)
        room -= size_bytes
    return bundles


def patience_us(tries: int, rng: random.Random) -> int:
    """Return how long to wait for an answer to the next try; jittered, or all would try again at once."""
    bound = min(_PATIENCE_FIRST_US << min(tries, _MOST_DOUBLINGS), _PATIENCE_MOST_US)
    return rng.randrange(bound // 2, bound)
