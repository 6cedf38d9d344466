"""Which encoding an update travels in: what each takes, and the finest that a link's bound allows."""

from bisect import bisect_right
from typing import get_args

from hedgerow.core.messages import Encoding
from hedgerow.core.plan import Plan
from hedgerow.core.thin import packed_bytes

FINEST_FIRST: tuple[Encoding, ...] = ("fp32", "int8", "int4", "topk", "sign")
assert sorted(FINEST_FIRST) == sorted(get_args(Encoding))

FED_BACK: frozenset[Encoding] = frozenset({"sign", "topk"})
"""The encodings whose error goes into the node's next update, for four bytes of its memory for each value.

Not int4, which is right on average: it was 93.5% without feedback and 93.2% with it.
"""

SCALE_BYTES = 4
_DEFAULT_SHARE = 10
"""One of so many values is sent as "topk" where nothing bounds it."""


def feeds_back(encoding: Encoding, max_update_bytes: int = 0) -> bool:
    """Whether nodes may have to keep what updates leave out: where a link is bounded, they may."""
    return encoding in FED_BACK or max_update_bytes > 0


def default_k(plan: Plan) -> int:
    """Return how many values "topk" sends where nothing bounds it: a tenth, rounded up."""
    return -(-plan.size // _DEFAULT_SHARE)


def encoded_bytes(encoding: str, plan: Plan, k: int = 0) -> int:
    """Return the bytes of payload and scales; of "topk" with `k` values, 0 for a tenth, at most how many."""
    if encoding == "fp32":
        return 4 * plan.size
    packed = packed_bytes(encoding, plan.size, min(k or default_k(plan), plan.size))
    return packed + SCALE_BYTES * len(plan.names)


def choose_encoding(
    plan: Plan, encoding: Encoding, max_update_bytes: int = 0
) -> tuple[Encoding, int]:
    """Return the finest encoding, and the k of "topk", whose payload and scales take at most so many bytes.

    It is never finer than `encoding`, the fleet's. Where not even single bits fit, the most values that do
    are sent; where nothing fits, one value: `encoded_bytes` tells that it is too long. 0 bounds nothing.
    """
    k = default_k(plan)
    if not max_update_bytes:
        return encoding, k
    for name in FINEST_FIRST[FINEST_FIRST.index(encoding) :]:
        if encoded_bytes(name, plan, k) <= max_update_bytes:
            return name, k
    counts = range(1, plan.size + 1)
    fitting = bisect_right(
        counts, max_update_bytes, key=lambda count: encoded_bytes("topk", plan, count)
    )
    return "topk", max(fitting, 1)
