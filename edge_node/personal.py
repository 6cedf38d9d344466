"""Units that a node trains for itself: each training takes them up as the last one left them; none is sent.

Shared units and personal ones are trained together, from the version's values of the shared ones. What comes
out is cut in two: the shared part becomes the update, the personal part stays here. (Arivazhagan et al.,
2019, "Federated learning with personalization layers"; Li et al., 2021, "FedBN".)
"""

from collections.abc import Mapping

import numpy as np

from edge_node.rows import KeepPersonal
from edge_node.work import Work
from hedgerow.core.messages import Descriptor
from hedgerow.core.outlet import Outlet
from hedgerow.core.units import Manifest, Vector


class PersonalUnits:
    """The node's own values of units, by name; which of them are personal, each version says.

    `kept` has what is on disk, as little-endian float32. What does not fit the model is not used and recorded
    as "personal_dropped". Bounded by the model: four bytes for each of its parameters.
    """

    def __init__(self, manifest: Manifest, kept: Mapping[str, bytes], outlet: Outlet) -> None:
        fitting = manifest.fitting(kept)
        self._values = {name: np.frombuffer(kept[name], "<f4") for name in fitting}
        if len(fitting) < len(kept):
            outlet.record("personal_dropped", len(kept) - len(fitting), reason="shape")

    def laid_over(self, params: Vector, base: Descriptor, manifest: Manifest) -> Vector:
        """Return version `base`'s parameters, shape (P,), with the node's own values of its personal units.

        Those that were never trained here stay as the version has them.
        """
        own = [name for name in base.personal if name in self._values]
        if not own:
            return params
        out = np.array(params, np.float32)
        for name in own:
            out[manifest.slices[name]] = self._values[name]
        return out

    def trained(self, work: Work, delta: Vector) -> list[KeepPersonal]:
        """Keep the personal part of a training's `delta`, of its job's plan; return what is to be saved."""
        job, rows = work.job, []
        for name in work.base.personal:
            before = job.params[job.plan.manifest.slices[name]]
            after = (before + delta[job.plan.slices[name]]).astype("<f4")
            self._values[name] = after
            rows.append(KeepPersonal(name, after.tobytes()))
        return rows
