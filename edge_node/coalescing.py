"""Two updates made into one, where there is no room for both and nobody has heard of either."""

import math
from collections.abc import Callable

from edge_node.work import rounding_of
from hedgerow.core.encodings import FED_BACK
from hedgerow.core.messages import Update, UpdateId
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import decode_delta, encode_delta


def can_coalesce(one: Update, other: Update) -> bool:
    """Whether the sum of two updates is an update: of one version, plan and encoding that feeds nothing back.

    Of an encoding that does, the residual would have to follow.
    """
    if one.encoding in FED_BACK:
        return False
    return (one.base_version, one.plan_id, one.encoding) == (
        other.base_version,
        other.plan_id,
        other.encoding,
    )


def coalesce(
    one: Update, other: Update, plan: Plan, clip_norm: float, next_id: Callable[[], UpdateId]
) -> Update:
    """Return the sum of two updates of `plan` as an update of its own, clipped as any other.

    The node trained them one after the other on the same examples, so those count once. Raises PeerError
    where a delta does not fit the plan or is not finite; then no id is taken.
    """
    delta = decode_delta(one, plan) + decode_delta(other, plan)
    update_id = next_id()
    encoded = encode_delta(delta, plan, one.encoding, clip_norm, rounding_of(update_id))
    return Update(
        id=update_id,
        model=one.model,
        base_version=one.base_version,
        plan_id=one.plan_id,
        examples=max(one.examples, other.examples),
        kappa=_mean_kappa(one.kappa, other.kappa),
        encoding=one.encoding,
        scales=encoded.scales,
        payload=encoded.payload,
    )


def _mean_kappa(*kappas: float) -> float:
    """Return the mean of those that say something; 0, which says nothing, where none does."""
    usable = [kappa for kappa in kappas if math.isfinite(kappa) and kappa > 0]
    return sum(usable) / len(usable) if usable else 0.0
