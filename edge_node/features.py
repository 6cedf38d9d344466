"""What the frozen stages make of a node's own examples, computed once for each content of them.

A training that begins behind frozen stages needs only their outputs. They are computed one stage after the
other, a few examples at a time (`edge_node.frozen`), and kept in a file that is mapped, not
read: memory holds a batch of it.
"""

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from edge_node.design import Shape, StageMap
from edge_node.frozen import FrozenStages
from edge_node.jitcache import JitCache
from hedgerow.core.units import Vector, digest
from hedgerow.runtime.model import Model

Array = NDArray[Any]

FEATURE_BYTES = 256 * 2**20
"""What the features of all contents together may take, in files or in memory."""
CONTENTS_KEPT = 4
_CHECKSUM_BYTES = 32
_READ_BYTES = 1 << 20


class FrozenFeatures:
    """The features of one node's `inputs`, in files of `folder`, or in memory where that is None.

    All contents together take at most `limit_bytes`; the ones used longest ago are deleted. `computed` counts
    how often features were computed, `corrupt` damaged files, `unwritten` those that could not be written (a
    full disk), which are kept in memory.
    """

    def __init__(
        self,
        model: Model,
        stages: StageMap,
        inputs: Array,
        jits: JitCache,
        folder: Path | None,
        limit_bytes: int = FEATURE_BYTES,
    ) -> None:
        self.computed = self.corrupt = self.unwritten = 0
        self._model = model
        self._stages = stages
        self._inputs = inputs
        self._frozen = FrozenStages(model, stages, jits)
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._open: OrderedDict[str, Array] = OrderedDict()
        self._examples = ""
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for left_over in folder.glob("*.tmp"):
                left_over.unlink()

    def fit(self, first: int) -> bool:
        """Whether the features that stage `first` takes can be kept."""
        return self._nbytes(first) <= self._limit_bytes

    def prepare(self, params: Vector, first: int, rows: int) -> None:
        """Compile what `get` will need, so that it does nothing but compute."""
        if first and self._found(self._key(params, first), first) is None:
            self._frozen.compiled(first, rows)

    def get(self, params: Vector, first: int, rows: int) -> Array:
        """Return stage `first`'s inputs for all examples, computed `rows` at a time; not to be written to."""
        if not first:
            return self._inputs
        key = self._key(params, first)
        found = self._found(key, first)
        if found is None:
            self.computed += 1
            found = self._stored(key, first, params, rows)
        self._keep(key, found)
        return found

    def _shape(self, first: int) -> Shape:
        return (len(self._inputs), *self._stages.inputs[first])

    def _nbytes(self, first: int) -> int:
        return 4 * prod(self._shape(first))

    def _key(self, params: Vector, first: int) -> str:
        """Return the digest of all that the features follow from."""
        if not self._examples:
            self._examples = digest(np.ascontiguousarray(self._inputs).data.cast("B"))
        manifest = self._model.manifest
        content = hashlib.sha256()
        for text in (self._model.identity, str(first), self._examples):
            content.update(text.encode())
        for unit in manifest.units:
            if self._stages.of(unit) < first:
                content.update(np.ascontiguousarray(params[manifest.slices[unit.name]]).data)
        return digest(content.digest())

    def _found(self, key: str, first: int) -> Array | None:
        if key in self._open or self._folder is None:
            return self._open.get(key)
        path = self._folder / f"{key}.npy"
        if not path.exists():
            return None
        found = _read(path, self._shape(first))
        if found is None:
            self.corrupt += 1
            path.unlink(missing_ok=True)
        else:
            os.utime(path)
            self._open[key] = found
        return found

    def _stored(self, key: str, first: int, params: Vector, rows: int) -> Array:
        shape = self._shape(first)
        steps = self._frozen.compiled(first, rows)
        if self._folder is not None:
            self._make_room(self._nbytes(first))
            path = self._folder / f"{key}.npy"
            try:
                _write(path, shape, self._frozen.outputs(steps, params, self._inputs, rows))
            except OSError:
                self.unwritten += 1
            stored = _read(path, shape)
            if stored is not None:
                return stored
        return _filled(shape, self._frozen.outputs(steps, params, self._inputs, rows))

    def _keep(self, key: str, features: Array) -> None:
        self._open[key] = features
        self._open.move_to_end(key)
        while len(self._open) > 1 and (
            len(self._open) > CONTENTS_KEPT
            or sum(kept.nbytes for kept in self._open.values()) > self._limit_bytes
        ):
            self._open.popitem(last=False)

    def _make_room(self, nbytes: int) -> None:
        """Delete the files used longest ago, until there is room for as many bytes."""
        assert self._folder is not None
        files = sorted(self._folder.glob("*.npy"), key=lambda file: file.stat().st_mtime_ns)
        sizes = [file.stat().st_size for file in files]
        while files and (len(files) >= CONTENTS_KEPT or sum(sizes) + nbytes > self._limit_bytes):
            oldest = files.pop(0)
            sizes.pop(0)
            self._open.pop(oldest.stem, None)
            oldest.unlink()


def _filled(shape: Shape, pieces: Iterator[Array]) -> Array:
    out = np.empty(shape, np.float32)
    start = 0
    for piece in pieces:
        out[start : start + len(piece)] = piece
        start += len(piece)
    return out


def _write(path: Path, shape: Shape, pieces: Iterator[Array]) -> None:
    """Write float32 values as a .npy file with a checksum behind them, whole or not at all.

    Written and not mapped, because writing into a mapped file on a full disk ends the process.
    """
    fresh = path.with_suffix(".tmp")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - only os.open sets the mode at creation
            _write_checked(file, shape, pieces)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def _write_checked(file: BinaryIO, shape: Shape, pieces: Iterator[Array]) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    checksum = hashlib.sha256(repr(shape).encode())
    for piece in pieces:
        body = piece.astype("<f4", copy=False).data
        checksum.update(body)
        file.write(body)
    file.write(checksum.digest())
    file.flush()
    os.fsync(file.fileno())


def _read(path: Path, shape: Shape) -> Array | None:
    """Map a file of features; None for one that is damaged."""
    with suppress(ValueError, OSError):
        features: Array = np.load(path, mmap_mode="r")
        if features.shape != shape or features.dtype != np.dtype("<f4"):
            return None
        checksum = hashlib.sha256(repr(shape).encode())
        with path.open("rb") as file:
            file.seek(path.stat().st_size - features.nbytes - _CHECKSUM_BYTES)
            left = features.nbytes
            while left:
                body = file.read(min(left, _READ_BYTES))
                left -= len(body)
                checksum.update(body)
                if not body:
                    return None
            if file.read() == checksum.digest():
                return features
    return None
