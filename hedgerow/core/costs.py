"""What a model's stages cost, as plain figures: input of the memory model and of the plan search."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from hedgerow.core.units import Manifest, Unit

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage, per example; activations are float32.

    `input_bytes` and `output_bytes` are its activations, `inner_bytes` what stays inside for its backward
    pass (sums before an activation or a pooling), `mflop` its forward pass in million operations (a
    multiply-add is two). `layers` are the layers whose units belong to it. Its backward pass needs
    `scratch_bytes` besides the gradients of input and output: that of what its layer made, before activation
    and pooling, and counts of ties of a maximum. `own_output` says whether it reads its output again, as a
    maximum does; `shared` whether a parameter's gradient is a sum even for one example, as a convolution's.
    """

    name: str
    layers: tuple[str, ...]
    input_bytes: int
    output_bytes: int
    inner_bytes: int
    mflop: float
    scratch_bytes: int = 0
    own_output: bool = False
    shared: bool = False


@dataclass(frozen=True)
class ModelCosts:
    """A model's stages from the input on, the bytes of one example's input and target, and its units."""

    manifest: Manifest
    stages: tuple[StageCost, ...]
    example_bytes: int
    target_bytes: int

    def stage_of(self, unit: str) -> int:
        """Return the number of the stage that a unit belongs to."""
        return self._stage_numbers[self.manifest.by_name[unit].layer]

    @cached_property
    def stage_units(self) -> tuple[tuple[Unit, ...], ...]:
        """The units of each stage, in the manifest's order."""
        found: list[list[Unit]] = [[] for _ in self.stages]
        for unit in self.manifest.units:
            found[self.stage_of(unit.name)].append(unit)
        return tuple(tuple(units) for units in found)

    @cached_property
    def params_bytes(self) -> tuple[int, ...]:
        """The bytes of each stage's parameters."""
        return tuple(FLOAT_BYTES * sum(u.size for u in units) for units in self.stage_units)

    @cached_property
    def _stage_numbers(self) -> Mapping[str, int]:
        return {layer: i for i, stage in enumerate(self.stages) for layer in stage.layers}
