"""The parameter vector and its units.

A model's parameters travel, are trained and are aggregated as one float32 vector, cut into named *units*
that lie one behind the other. A unit is the smallest piece a plan can select. Everything below the model
itself (wire, trainer, aggregation) sees the manifest only, never a layer.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
"""A float32 vector; the docstrings give its length: (P,) is a whole model, (p,) the units of a plan."""

FORMATS: dict[str, np.dtype[Any]] = {"fp32": np.dtype("<f4"), "fp16": np.dtype("<f2")}
"""How a version's values may be published; both little-endian."""

DIGEST_CHARS = 32

SMALLEST_GROUP = 64
"""Groups of fewer parameters cost more in bookkeeping than leaving them out can save."""

_PART = re.compile(r"(?P<tensor>.*)\[(?P<axes>(?::,)*)(?P<start>\d+):(?P<stop>\d+)\]\Z", re.DOTALL)


def digest(data: bytes | memoryview) -> str:
    """Return the first 32 hexadecimal characters of SHA-256."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_CHARS]


def unit_bytes(values: Vector, downlink: str) -> bytes:
    """Return a unit's values as they are published, "fp32" or "fp16"."""
    return values.astype(FORMATS[downlink], copy=False).tobytes()


@dataclass(frozen=True, slots=True)
class Part:
    """Where a unit lies in the model's tensor: `start` to `stop` along `axis`."""

    tensor: str
    axis: int
    start: int
    stop: int

    @property
    def index(self) -> tuple[slice, ...]:
        """The part as an index of the tensor."""
        return (*[slice(None)] * self.axis, slice(self.start, self.stop))


@dataclass(frozen=True, slots=True)
class Unit:
    """One selectable piece of the parameters: `shape` as the model has it, `layer` for grouping.

    A unit is one of the model's tensors, or a group of its channels. The name of a group says which, as an
    index does: "convs.1.weight[:,0:8]" are the first eight input channels.
    """

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
    def part(self) -> Part | None:
        """Where a group lies in its tensor; None for a whole tensor."""
        found = _PART.fullmatch(self.name)
        if found is None:
            return None
        axis = found["axes"].count(":")
        return Part(found["tensor"], axis, int(found["start"]), int(found["stop"]))

    @property
    def tensor(self) -> str:
        """The name of the model's tensor that the unit is or belongs to."""
        part = self.part
        return self.name if part is None else part.tensor

    @property
    def is_bias(self) -> bool:
        """Whether the unit is a layer's bias."""
        return self.name.endswith("bias")


def cut(tensor: str, shape: Iterable[int], groups: int) -> dict[str, tuple[int, ...]]:
    """Cut a tensor into at most `groups` units of its input channels: names and shapes, in order.

    Input channels are the second axis; where that is too short, as in a depthwise convolution, the first.
    Vectors and what would fall below SMALLEST_GROUP stay whole.
    """
    whole = tuple(shape)
    count = min(groups, prod(whole) // SMALLEST_GROUP)
    axis = next((axis for axis in (1, 0) if axis < len(whole) and whole[axis] >= count), None)
    if count < 2 or len(whole) < 2 or axis is None:  # noqa: PLR2004
        return {tensor: whole}
    bounds = [whole[axis] * i // count for i in range(count + 1)]
    leading = ":," * axis
    return {
        f"{tensor}[{leading}{start}:{stop}]": (*whole[:axis], stop - start, *whole[axis + 1 :])
        for start, stop in pairwise(bounds)
    }


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

    def fitting(self, bodies: Mapping[str, bytes]) -> list[str]:
        """Return the units, in order, that `bodies` has as many float32 values of as the model."""
        there = [unit for unit in self.units if unit.name in bodies]
        return [unit.name for unit in there if len(bodies[unit.name]) == 4 * unit.size]

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

    def digests(self, params: Vector, downlink: str = "fp32") -> dict[str, str]:
        """Return each unit's digest over its bytes as published."""
        return {
            name: digest(unit_bytes(params[where], downlink)) for name, where in self.slices.items()
        }
