"""The parameter vector and its units.

A model's parameters travel, are trained and are aggregated as one float32 vector, cut into named *units*
that lie one behind the other. A unit is the smallest piece a plan can select. Everything below the model
itself (wire, trainer, aggregation) sees the manifest only, never a layer.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""A float32 vector; the docstrings give its length: (P,) is a whole model, (p,) the units of a plan."""

DIGEST_CHARS = 32


def digest(data: bytes | memoryview) -> str:
    """Return the first 32 hexadecimal characters of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_CHARS]


@dataclass(frozen=True, slots=True)
class Unit:
    """One selectable piece of the parameters: `shape` as the model has it, `layer` for grouping."""

    name: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of parameters."""
        return prod(self.shape)

    @property
    def layer(self) -> str:
        """The unit's layer: its name without the last dotted part."""
        return self.name.rpartition(".")[0] or self.name

    @property
    def is_bias(self) -> bool:
        """Whether the unit is a layer's bias."""
        return self.name.endswith("bias")


def consecutive(units: Iterable[Unit]) -> dict[str, slice]:
    """Lay units one behind the other: the slice of each in the joined vector."""
    out, offset = {}, 0
    for unit in units:
        out[unit.name] = slice(offset, offset + unit.size)
        offset += unit.size
    return out


@dataclass(frozen=True)
class Manifest:
    """The ordered units of one model, from the input to the output."""

    units: tuple[Unit, ...]

    def __post_init__(self) -> None:
        names = [unit.name for unit in self.units]
        if len(set(names)) != len(names):
            raise ValueError("a manifest needs distinct unit names")

    @classmethod
    def of(cls, shapes: Mapping[str, Iterable[int]]) -> "Manifest":
        """Build a manifest from unit names and shapes in the model's order."""
        return cls(tuple(Unit(name, tuple(shape)) for name, shape in shapes.items()))

    @cached_property
    def size(self) -> int:
        """Number of parameters P."""
        return sum(unit.size for unit in self.units)

    @cached_property
    def slices(self) -> Mapping[str, slice]:
        """Where each unit lies in the parameter vector."""
        return consecutive(self.units)

    @cached_property
    def by_name(self) -> Mapping[str, Unit]:
        """The units by name."""
        return {unit.name: unit for unit in self.units}

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """Layer names in order, each once."""
        return tuple(dict.fromkeys(unit.layer for unit in self.units))

    def take(self, params: Vector, names: Iterable[str]) -> Vector:
        """Copy the named units out of `params`, shape (P,), one behind the other: shape (p,)."""
        pieces = [params[self.slices[name]] for name in names]
        return np.concatenate(pieces) if pieces else np.empty(0, np.float32)

    def split(self, params: Vector) -> dict[str, Vector]:
        """View each unit of `params`, shape (P,), in its own shape."""
        return {u.name: params[self.slices[u.name]].reshape(u.shape) for u in self.units}

    def join(self, pieces: Mapping[str, Vector]) -> Vector:
        """Flatten units, each of its own shape, into a new vector of shape (P,)."""
        out = np.empty(self.size, np.float32)
        for unit in self.units:
            out[self.slices[unit.name]] = np.asarray(pieces[unit.name], np.float32).reshape(-1)
        return out

    def digests(self, params: Vector) -> dict[str, str]:
        """Return each unit's digest over its little-endian float32 bytes."""
        return {
            name: digest(params[where].astype("<f4", copy=False).tobytes())
            for name, where in self.slices.items()
        }
