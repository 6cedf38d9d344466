"""The plan: which units the nodes train.

The aggregator owns plans. A plan's id is the hash of its unit set, so two plans with the same units are
the same plan, and every update names the plan it was trained under.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hedgerow.core.errors import ConfigError
from hedgerow.core.units import Manifest, Vector, consecutive, digest

PRESETS = ("all", "biases+last")


@dataclass(frozen=True)
class Plan:
    """A set of units in the manifest's order, and the slices of its own vector."""

    manifest: Manifest
    names: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest, names: Iterable[str]) -> "Plan":
        """Build a plan; raises ConfigError for an unknown or missing unit.

        The name of a tensor stands for all its groups, the name of a layer for all its tensors.
        """
        wanted = named_units(manifest, names, "plan.units")
        if not wanted:
            raise ConfigError("plan.units: [] trains nothing; name at least one unit")
        return cls(manifest, wanted)

    def without(self, personal: Iterable[str]) -> "Plan":
        """Return the plan's units but for those that stay on the nodes; raises ConfigError for none."""
        kept = set(personal)
        names = tuple(name for name in self.names if name not in kept)
        if not names:
            raise ConfigError(
                f"plan.personal: {', '.join(self.names)} are all that is trained, so nodes would share"
                " nothing; train more units, or keep fewer personal"
            )
        return Plan(self.manifest, names)

    def joined(self, personal: Iterable[str]) -> "Plan":
        """Return the plan's units and others beside them."""
        both = {*self.names, *personal}
        return Plan(self.manifest, tuple(u.name for u in self.manifest.units if u.name in both))

    @cached_property
    def plan_id(self) -> str:
        """Content hash of the unit set."""
        return digest("\n".join(self.names).encode())

    @cached_property
    def size(self) -> int:
        """Number of parameters trained, p."""
        return sum(self.manifest.by_name[name].size for name in self.names)

    @property
    def share(self) -> float:
        """Trained share of the model's parameters, in (0, 1]."""
        return self.size / self.manifest.size

    @cached_property
    def slices(self) -> dict[str, slice]:
        """Where each unit lies in the plan's vector, shape (p,)."""
        return consecutive(self.manifest.by_name[name] for name in self.names)

    @cached_property
    def starts(self) -> NDArray[np.intp]:
        """Where each unit begins in the plan's vector, for sums over units."""
        return np.array([where.start for where in self.slices.values()], np.intp)

    @cached_property
    def sizes(self) -> NDArray[np.intp]:
        """How long each unit is."""
        return np.array([where.stop - where.start for where in self.slices.values()], np.intp)


def moved(values: Vector, before: Plan, after: Plan) -> Vector:
    """Return values of one plan's units as those of another one's; 0 for units that they do not have."""
    if before.names == after.names:
        return values
    out = np.zeros(after.size, np.float32)
    for name, where in after.slices.items():
        if name in before.slices:
            out[where] = values[before.slices[name]]
    return out


def named_units(manifest: Manifest, names: Iterable[str], key: str) -> tuple[str, ...]:
    """Return the units that names of units, tensors and layers stand for, in the manifest's order.

    Raises ConfigError naming the configuration's `key` for a name that the model does not have.
    """
    asked = set(names)
    known_names = {name for u in manifest.units for name in (u.name, u.tensor, u.layer)}
    unknown = sorted(asked - known_names)
    if unknown:
        known = ", ".join(manifest.by_name)
        raise ConfigError(f"{key}: the model has no unit {unknown[0]!r}; it has: {known}")
    return tuple(
        u.name for u in manifest.units if not asked.isdisjoint((u.name, u.tensor, u.layer))
    )


def personal_units(manifest: Manifest, names: Iterable[str]) -> tuple[str, ...]:
    """Return the units of `plan.personal`, which nodes train and never send.

    As the head in FedPer (Arivazhagan et al., 2019) or the norms in FedBN (Li et al., 2021). Raises
    ConfigError for a name that the model does not have.
    """
    return named_units(manifest, names, "plan.personal")


def choose_plan(
    manifest: Manifest,
    units: Sequence[str] = (),
    last_layers: int = 0,
    preset: str = "",
) -> Plan:
    """Return the plan an operator asked for in exactly one of three ways.

    `units` names them; `last_layers` takes the last k layers whole; `preset` is "all" or "biases+last"
    (every bias and the last layer's weight, as in TinyTL, 2020). Raises ConfigError otherwise.
    """
    asked = [bool(units), last_layers > 0, bool(preset)]
    if sum(asked) != 1:
        raise ConfigError(
            "plan: set exactly one of plan.units, plan.last_layers and plan.preset"
            f" (got {sum(asked)}); for example preset = 'biases+last'"
        )
    if units:
        return Plan.of(manifest, units)
    if last_layers:
        if last_layers > len(manifest.layers):
            raise ConfigError(
                f"plan.last_layers: {last_layers} is more than the model's {len(manifest.layers)} layers"
            )
        chosen = set(manifest.layers[-last_layers:])
        return Plan.of(manifest, [u.name for u in manifest.units if u.layer in chosen])
    if preset == "all":
        return Plan.of(manifest, manifest.by_name)
    if preset == "biases+last":
        last = manifest.layers[-1]
        return Plan.of(manifest, [u.name for u in manifest.units if u.is_bias or u.layer == last])
    raise ConfigError(f"plan.preset: {preset!r} is not one of {', '.join(PRESETS)}")
