"""The aggregator's step: fold buffered partial aggregates into the parameters.

    num_k  = sum_r s(V - r) P[r]_k        den_k = sum_r s(V - r) A[r]_k      mean_k = num_k / den_k
    damp_k = sum_r s(V - r) D[r]_k / sum_r A0[r]_k        in (0, 1], else no step
    params_k(V + 1) = params_k(V) + eta damp_k mean_k

over the buckets whose plan covers unit k, r being a bucket's reference version. With psi = a = 1 this is
FedBuff (Nguyen et al., 2022): (1/K) sum s(tau) delta. The damping stays: without it a mostly stale buffer is
applied at full length and training diverges.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from hedgerow.core.partial import WEIGHT_ONE, Key, PartialAggregate, Sums, fixed_point_scale
from hedgerow.core.plan import Plan
from hedgerow.core.rules import Rules
from hedgerow.core.staleness import StalenessLaw
from hedgerow.core.units import Manifest, Vector


@dataclass(frozen=True, slots=True)
class MergeContext:
    """What a merge needs besides its input: version V, the law at V, plans and rules by version.

    `rules` is asked for reference versions of positive weight only: those beyond tau_max may be forgotten.
    """

    manifest: Manifest
    version: int
    law: StalenessLaw
    plans: Mapping[str, Plan]
    rules: Callable[[int], Rules]
    learning_rate: float


@dataclass(frozen=True, slots=True)
class UnitStatistics:
    """Diagnostics of one unit's step: the mean's damping, the updates' variance, their effective number."""

    damping: float
    variance: float
    effective_count: float


def merge(
    params: Vector, part: PartialAggregate, context: MergeContext
) -> tuple[Vector, dict[str, UnitStatistics]]:
    """Return the parameters of version V + 1, shape (P,), and each covered unit's statistics.

    Units that no update covers do not change, nor those whose updates all weigh less than the fixed point
    shows. The result depends on the set of updates only, not on their
    order or grouping.
    """
    out = params.copy()
    statistics = {}
    # Floating-point sums depend on their order, so buckets are taken in the order of their keys.
    buckets = sorted(part.items(), key=lambda item: item[0])
    for unit in context.manifest.units:
        covering = [
            (key, sums) for key, sums in buckets if unit.name in context.plans[key[0]].slices
        ]
        step = _unit_step(unit.name, covering, context)
        if step is None:
            continue
        delta, statistics[unit.name] = step
        where = context.manifest.slices[unit.name]
        out[where] = params[where] + (context.learning_rate * delta).astype(np.float32)
    return out, statistics


def _unit_step(
    name: str, covering: list[tuple[Key, Sums]], context: MergeContext
) -> tuple[np.ndarray, UnitStatistics] | None:
    numerator: np.ndarray | float = 0.0
    denominator = damping_sum = example_sum = norm_sum = square_sum = 0.0
    for (plan_id, ref_version, gamma), sums in covering:
        plan = context.plans[plan_id]
        decay = context.law.weight(context.version - ref_version, gamma)
        if decay > 0:
            scale = fixed_point_scale(context.rules(ref_version))
            numerator = numerator + sums.total[plan.slices[name]] * (decay / scale)
        denominator += decay * sums.weight / WEIGHT_ONE
        damping_sum += decay * sums.decayed / WEIGHT_ONE
        example_sum += sums.examples / WEIGHT_ONE
        norm_sum += decay * sums.norms[plan.names.index(name)] / WEIGHT_ONE
        square_sum += decay * decay * sums.squares / WEIGHT_ONE
    if denominator <= 0 or damping_sum <= 0:
        return None
    mean = np.asarray(numerator) / denominator
    damping = damping_sum / example_sum
    variance = max(0.0, norm_sum / denominator - float(np.dot(mean, mean)))
    effective = denominator**2 / square_sum if square_sum > 0 else 0.0
    return damping * mean, UnitStatistics(damping, variance, effective)
