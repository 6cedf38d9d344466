"""One training: from a version to the update that leaves the node."""

from dataclasses import dataclass

from hedgerow.core.effects import Train, Trained
from hedgerow.core.messages import Descriptor, Update, UpdateId
from hedgerow.core.quantize import encode_delta, norm

_KAPPA_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class Work:
    """A training under way: the job, the version it starts from, and since when."""

    job: Train
    base: Descriptor
    since_us: int


def kappa(result: Trained, learning_rate: float) -> float:
    """Return |delta|^2 / (lr^2 sum_s |g_s|^2): 1 for uncorrelated steps, S for S identical ones."""
    return norm(result.delta) ** 2 / (learning_rate**2 * result.step_square_sum + _KAPPA_EPSILON)


def make_update(work: Work, result: Trained, update_id: UpdateId) -> tuple[Update, bool]:
    """Return the update to send, clipped and encoded as the base version asks, and whether it was cut."""
    base, plan = work.base, work.job.plan
    encoded = encode_delta(result.delta, plan, base.encoding, base.rules.clip_norm)
    update = Update(
        id=update_id,
        model=base.model,
        base_version=base.version,
        plan_id=plan.plan_id,
        examples=result.examples,
        kappa=kappa(result, work.job.learning_rate),
        encoding=base.encoding,
        scales=encoded.scales,
        payload=encoded.payload,
    )
    return update, encoded.clipped
