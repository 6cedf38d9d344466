"""One training: from a version to the update that leaves the node."""

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from edge_node.feedback import Residuals
from edge_node.timebudget import examples_seen
from hedgerow.core import encodings
from hedgerow.core.effects import Train, Trained
from hedgerow.core.encodings import choose_encoding, encoded_bytes
from hedgerow.core.messages import Descriptor, Encoding, Update, UpdateId
from hedgerow.core.outlet import Outlet
from hedgerow.core.plan import Plan, moved
from hedgerow.core.quantize import Encoded, encode_delta, norm
from hedgerow.core.units import Vector

_KAPPA_EPSILON = 1e-12


@dataclass(frozen=True, slots=True)
class Work:
    """A training under way: the job, the version it starts from, and since when.

    `plan` is the shared part of what the job trains: the update is of its units.
    """

    job: Train
    base: Descriptor
    since_us: int
    plan: Plan

    def shared_part(self, delta: Vector) -> Vector:
        """Return what may leave the node of a delta of the job's plan, shape (p,)."""
        return moved(delta, self.job.plan, self.plan)


def kappa(result: Trained, learning_rate: float) -> float:
    """Return |delta|^2 / (lr^2 sum_s |g_s|^2): 1 for uncorrelated steps, S for S identical ones.

    Of all that was trained, personal units too: the steps' gradients are not told apart by unit.
    """
    return norm(result.delta) ** 2 / (learning_rate**2 * result.step_square_sum + _KAPPA_EPSILON)


class Packer:
    """Makes updates of trainings' results, clipped and encoded as the base version asks.

    An encoding that is too long for `max_update_bytes` (0: none is) gives way to a thinner one.
    """

    def __init__(self, residuals: Residuals, max_update_bytes: int, outlet: Outlet) -> None:
        self._residuals = residuals
        self._max_update_bytes = max_update_bytes
        self._outlet = outlet
        self._told = ""

    def update(self, work: Work, result: Trained, update_id: UpdateId) -> Update:
        """Return the update to send."""
        base, plan = work.base, work.plan
        delta = work.shared_part(result.delta)
        encoding, k = self._encoding(base, plan)
        encoded = self._encoded(delta, plan, encoding, k, base.rules.clip_norm, update_id)
        if encoded.clipped:
            self._outlet.record("clipped", clip_norm=base.rules.clip_norm)
        return Update(
            id=update_id,
            model=base.model,
            base_version=base.version,
            plan_id=plan.plan_id,
            examples=examples_seen(work.job, result),
            kappa=kappa(result, work.job.learning_rate),
            encoding=encoding,
            scales=encoded.scales,
            payload=encoded.payload,
        )

    def _encoding(self, base: Descriptor, plan: Plan) -> tuple[Encoding, int]:
        limit_bytes = self._max_update_bytes
        encoding, k = choose_encoding(plan, base.encoding, limit_bytes)
        size_bytes = encoded_bytes(encoding, plan, k)
        if limit_bytes and size_bytes > limit_bytes and self._told != plan.plan_id:
            self._told = plan.plan_id
            self._outlet.record(
                "update_too_large",
                reason="max-update-bytes",
                detail=f"an update of plan {plan.plan_id} takes {size_bytes} bytes at least,"
                f" node.max_update_bytes is {limit_bytes}: raise it, or train fewer units",
            )
        return encoding, k

    def _encoded(
        self,
        delta: Vector,
        plan: Plan,
        encoding: Encoding,
        k: int,
        clip_norm: float,
        update_id: UpdateId,
    ) -> Encoded:
        rng = rounding_of(update_id)
        if encoding in encodings.FED_BACK:
            return self._residuals.encode(delta, plan, encoding, clip_norm, rng, k)
        whole = self._residuals.taken_along(delta, plan)
        return encode_delta(whole, plan, encoding, clip_norm, rng, k)


def rounding_of(update_id: UpdateId) -> Generator:
    """Return the chances of an update's rounding: its own, so that a simulation repeats them."""
    name = zlib.crc32(update_id.node.encode())
    return np.random.default_rng([name, update_id.epoch, update_id.seq])
