"""What a version asks of those who train from it and of those who sum their updates."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from hedgerow.core.staleness import StalenessLaw
from hedgerow.core.wire import Count, Word


class LocalTraining(Struct, frozen=True, kw_only=True):
    """How nodes of one memory class train.

    `plan_id` names one of the descriptor's nested plans, "" the descriptor's own; a training is to end
    within `time_budget_us` and its tensors are to fit `memory_bytes`, for which the plan was searched; 0 is
    no bound.
    """

    passes: Annotated[int, Meta(ge=1, le=10_000)]
    batch_size: Annotated[int, Meta(ge=1, le=1 << 20)]
    learning_rate: Annotated[float, Meta(gt=0)]
    proximal: Annotated[float, Meta(ge=0)] = 0.0
    plan_id: Word = ""
    time_budget_us: Count = 0
    memory_bytes: Count = 0


class ProbeRequest(Struct, frozen=True, kw_only=True):
    """Asks a share of the nodes for the units' mean squared gradients at this version.

    A node takes part when a number drawn from its name and `round` is below `share`; once per round.
    """

    round: Count
    share: Annotated[float, Meta(gt=0, le=1)]
    batches: Annotated[int, Meta(ge=1, le=1024)] = 4


class Rules(Struct, frozen=True, kw_only=True):
    """What fixes an update's weight and scale; published with its base version, so every tier agrees."""

    staleness: StalenessLaw
    clip_norm: Annotated[float, Meta(gt=0)]
    example_exponent: Annotated[float, Meta(ge=0, le=1)] = 0.0
    example_cap: Annotated[int, Meta(ge=1, lt=1 << 31)] = 1
    variance: Literal["none", "kappa_diversity", "kappa_inverse"] = "none"
    kappa_ref: float = 0.0
    server_learning_rate: Annotated[float, Meta(gt=0)] = 1.0
    count_max: Annotated[int, Meta(ge=1, le=1 << 20)] = 64
    least_island_weight: Annotated[float, Meta(ge=0, le=1)] = 0.0
