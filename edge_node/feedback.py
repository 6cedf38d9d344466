"""What a thin encoding leaves out of one update goes into the next: error feedback.

Sent is what is encoded of delta + residual; the new residual is what that left out. (Seide et al., 2014,
"1-bit stochastic gradient descent"; Karimireddy et al., 2019, "Error feedback fixes SignSGD".) The content
of an update that ends rejected or expired goes back, so that, over any fates,

    sum of applied updates + residual (+ updates that wait) = sum of deltas

up to the rounding of float32 and to what clipping cuts: that is not fed back, neither of a delta nor of an
update, or a node that diverges would pump its residual up for ever.

Costs four bytes for each trained value, in memory and on disk. On the disk, too, it is float32: it is written
once per training with the update itself, and half of that would not be worth an overflow at 65504 nor a law
that ends at every restart.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.random import Generator

from edge_node.rows import KeepResidual
from hedgerow.core.codec import decode
from hedgerow.core.encodings import FED_BACK
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Update
from hedgerow.core.outlet import Outlet
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import Encoded, clip_factor, decode_delta, norm, quantize
from hedgerow.core.units import Manifest, Vector

_KEPT_PLANS = 8
"""Former plans whose updates may still come back."""


class Residuals:
    """What was left out so far, on the units of the plan that was trained last.

    `kept` has what is on disk by unit, as little-endian float32. What cannot be kept is recorded as
    "residual_dropped", once for each unit.
    """

    def __init__(self, manifest: Manifest, kept: Mapping[str, bytes], outlet: Outlet) -> None:
        self._outlet = outlet
        self._plan: Plan | None = None
        self._values: Vector = np.empty(0, np.float32)
        self._plans: dict[str, Plan] = {}
        self._gone: list[str] = []
        self._changed = False
        fitting = manifest.fitting(kept)
        self._drop(sorted(kept.keys() - fitting), "shape")
        if fitting:
            self._adopt(Plan(manifest, tuple(fitting)))
            self._values = np.frombuffer(b"".join(kept[n] for n in fitting), "<f4").copy()

    @property
    def changed(self) -> bool:
        """Whether `changed_rows` has something to write."""
        return self._changed

    @property
    def plan(self) -> Plan | None:
        """The plan that there are residuals of, if any."""
        return self._plan

    def of(self, plan: Plan) -> Vector:
        """Return a copy of the residuals of a plan's units, shape (p,); 0 where there are none."""
        values = np.zeros(plan.size, np.float32)
        for name, where in plan.slices.items():
            if self._plan is not None and name in self._plan.slices:
                values[where] = self._values[self._plan.slices[name]]
        return values

    def encode(
        self,
        delta: Vector,
        plan: Plan,
        encoding: str,
        clip_norm: float,
        rng: Generator | None = None,
        k: int = 0,
    ) -> Encoded:
        """Encode delta, shape (p,), with the residual, and keep what that leaves out.

        As `core.quantize.encode_delta`, whose arguments these are.
        """
        self._follow(plan)
        factor = clip_factor(norm(delta), clip_norm)
        wanted = delta * np.float32(factor) + self._values
        quantized = quantize(wanted, plan, encoding, rng, k)
        self._values = wanted - quantized.restored()
        self._changed = True
        encoded = quantized.clipped_to(clip_norm)
        return replace(encoded, clipped=encoded.clipped or factor < 1)

    def taken_along(self, delta: Vector, plan: Plan) -> Vector:
        """Return delta with the residual, which ends: the encoding now is one that leaves nothing out."""
        if self._plan is None:
            return delta
        self._follow(plan)
        out = delta + self._values
        self._gone += plan.names
        self._plan, self._values = None, np.empty(0, np.float32)
        self._changed = True
        return out

    def give_back(self, body: bytes) -> None:
        """Take back the content of an encoded update that ended without being applied."""
        update = decode(body)
        assert isinstance(update, Update)
        if update.encoding not in FED_BACK:
            return
        plan = self._plans.get(update.plan_id)
        if plan is None or self._plan is None:
            self._outlet.record("residual_dropped", reason="unknown-plan", seq=update.id.seq)
            return
        try:
            delta = decode_delta(update, plan)
        except PeerError as error:
            # A plan's id does not tell its units' shapes: the model may have changed.
            self._outlet.record("residual_dropped", reason=error.reason, seq=update.id.seq)
            return
        self._add(delta, plan)

    def changed_rows(self) -> list[KeepResidual]:
        """Return what is to be written in the same transaction as the updates' rows, and forget it."""
        if not self._changed:
            return []
        self._changed = False
        rows = [KeepResidual(name, None) for name in self._gone]
        self._gone = []
        if self._plan is not None:
            values = self._values.astype("<f4", copy=False)
            rows += [KeepResidual(n, values[s].tobytes()) for n, s in self._plan.slices.items()]
        return rows

    def _add(self, delta: Vector, plan: Plan) -> None:
        assert self._plan is not None
        lost = 0
        for name, where in plan.slices.items():
            own = self._plan.slices.get(name)
            if own is None:
                lost += 1
            else:
                self._values[own] += delta[where]
        self._changed = True
        if lost:
            self._outlet.record("residual_dropped", lost, reason="left-plan")

    def _follow(self, plan: Plan) -> None:
        """Go over to a plan; units that are not in it lose their residual."""
        if self._plan is not None and self._plan.plan_id == plan.plan_id:
            return
        values = self.of(plan)
        before = () if self._plan is None else self._plan.names
        self._drop([name for name in before if name not in plan.slices], "left-plan")
        self._adopt(plan)
        self._values = values

    def _adopt(self, plan: Plan) -> None:
        self._plan = plan
        self._plans.pop(plan.plan_id, None)  # taken up again it is the newest
        self._plans[plan.plan_id] = plan
        if len(self._plans) > _KEPT_PLANS:
            del self._plans[next(iter(self._plans))]

    def _drop(self, names: list[str], reason: str) -> None:
        if names:
            self._gone += names
            self._changed = True
            self._outlet.record("residual_dropped", len(names), reason=reason)
