"""An island's contribution: what a site without an uplink came to, taken in as one step of its own.

    params(V + 1)_k = params(V)_k + w share clip delta_k            for the units k of the island's plan

    w     = max(s(min(V - b, tau_max)), least weight)       s and tau_max of version V, b the island's base
    share = n_island / (n_island + n_cloud)
    clip  = min(1, C merges / |delta|)                      C of version V

n_island counts the updates in the contribution, n_cloud those that the versions in (b, V] settled. So a
site that learned alone counts as much as its updates among all, and no more than its steps could have
moved the model. The product is taken in float64, in the order above, and each step rounded to float32 once.
"""

import numpy as np

from aggregator.lineage import Lineage
from hedgerow.core.errors import ConfigError, PeerError
from hedgerow.core.messages import IslandResult, Partial
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import clip_factor, norm
from hedgerow.core.units import Vector
from hedgerow.core.versions import TERM_PROVISIONALS, is_provisional


def check_island(partial: Partial, island: IslandResult, lineage: Lineage) -> None:
    """Raise PeerError unless an island's contribution can be merged.

    Its base version may be older than tau_max, and need not be known any more.
    """
    if partial.sums or partial.updates:
        raise PeerError("inconsistent", "an island's contribution carries sums or updates as well")
    if is_provisional(island.base_version) or island.base_version > lineage.version:
        raise PeerError("future-version", f"an island that began at {island.base_version}")
    if not 1 <= island.merges <= TERM_PROVISIONALS:
        raise PeerError("inconsistent", f"an island of {island.merges} merges")
    plan = _plan(island, lineage)
    if len(island.delta) != 4 * plan.size:
        text = f"an island's delta of {len(island.delta)} bytes, plan has {plan.size} values"
        raise PeerError("shape", text)
    if not np.isfinite(_delta(island)).all():
        raise PeerError("not-finite", "an island's delta holds values that are not numbers")


def island_factor(partial: Partial, island: IslandResult, lineage: Lineage) -> float:
    """Return w share clip of the merge after the lineage's newest version."""
    rules = lineage.current.rules
    law = rules.staleness
    staleness = min(lineage.version - island.base_version, law.tau_max)
    weight = max(law.weight(staleness), rules.least_island_weight)
    own = len(partial.headers)
    share = own / (own + lineage.tally.between(island.base_version, lineage.version))
    return weight * share * clip_factor(norm(_delta(island)), rules.clip_norm * island.merges)


def merge_island(
    params: Vector, partial: Partial, island: IslandResult, lineage: Lineage
) -> Vector:
    """Return the parameters of the version after the lineage's newest, shape (P,).

    `params` are that one's; the contribution has passed `check_island`.
    """
    plan = _plan(island, lineage)
    factor, delta = island_factor(partial, island, lineage), _delta(island).astype(np.float64)
    out = params.copy()
    for name, own in plan.slices.items():
        where = plan.manifest.slices[name]
        out[where] = params[where] + (factor * delta[own]).astype(np.float32)
    return out


def _plan(island: IslandResult, lineage: Lineage) -> Plan:
    """Return the plan of an island's units, which no kept version need have."""
    try:
        return Plan.of(lineage.manifest, island.units)
    except ConfigError as error:
        raise PeerError("unknown-plan", f"an island that trained {island.units}") from error


def _delta(island: IslandResult) -> Vector:
    return np.frombuffer(island.delta, "<f4").astype(np.float32)
