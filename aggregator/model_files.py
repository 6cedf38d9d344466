"""Versions' parameters on disk: one safetensors file each, named by its content.

Equal parameters share a file. Nothing here is pickled, and a file that does not match its name is
refused.
"""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from hedgerow.core.messages import Descriptor
from hedgerow.core.units import Manifest, Vector, digest, unit_bytes
from hedgerow.runtime.files import atomic_write
from hedgerow.runtime.ports import StoreError

_SUFFIX = ".safetensors"


def manifest_of(descriptor: Descriptor) -> Manifest:
    """Return the units of a descriptor, in its order."""
    return Manifest.of({name: unit.shape for name, unit in descriptor.units.items()})


class ModelFiles:
    """A folder of parameter files, and an index from unit digests to the files that are kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index: dict[str, tuple[str, str, str]] = {}

    def write(self, descriptor: Descriptor, params: Vector) -> str:
        """Write `params`, shape (P,), durably and return the file's name.

        Raises StoreError where the disk refuses, ValueError where `params` does not fit the units.
        """
        manifest = manifest_of(descriptor)
        if params.shape != (manifest.size,):
            raise ValueError(
                f"params of shape {params.shape}, the units have {manifest.size} values"
            )
        data = save({k: np.ascontiguousarray(v, "<f4") for k, v in manifest.split(params).items()})
        name = digest(data)
        path = self._path(name)
        try:
            atomic_write(path, data)
        except OSError as error:
            raise StoreError(f"{path}: cannot be written: {error}") from error
        return name

    def read(self, name: str, descriptor: Descriptor) -> Vector:
        """Return the parameters in file `name`, shape (P,).

        Raises StoreError where the file is missing or is not what was written.
        """
        path = self._path(name)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error}") from error
        if digest(data) != name:
            raise StoreError(
                f"{path}: damaged, version {descriptor.version} cannot be read;"
                " put the file back from a backup"
            )
        return manifest_of(descriptor).join(load(data))

    def unit(self, unit_digest: str) -> bytes | None:
        """Return a kept unit's bytes as published, None when it is not kept (any more).

        Raises StoreError where the file is not what was written. May run on any thread.
        """
        entry = self._index.get(unit_digest)
        if entry is None:
            return None
        name, unit, downlink = entry
        path = self._path(name)
        try:
            with safe_open(path, framework="numpy") as file:
                data = unit_bytes(file.get_tensor(unit), downlink)
        except FileNotFoundError:
            return None
        except (SafetensorError, OSError) as error:
            raise StoreError(f"{path}: unit {unit!r} cannot be read: {error}") from error
        if digest(data) != unit_digest:
            raise StoreError(f"{path}: unit {unit!r} is damaged; put the file back from a backup")
        return data

    def keep(self, kept: Mapping[str, Descriptor]) -> None:
        """Remove every file but the named ones, and serve the units of those."""
        self._index = {
            unit.digest: (file, name, descriptor.downlink)
            for file, descriptor in kept.items()
            for name, unit in descriptor.units.items()
        }
        for path in self._others(kept):
            # What cannot be removed now is removed after a later version or at the next start.
            with suppress(OSError):
                path.unlink()

    def sizes(self) -> list[int]:
        """Return the size of each parameter file in bytes."""
        return [path.stat().st_size for path in self.folder.glob(f"*{_SUFFIX}")]

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{_SUFFIX}"

    def _others(self, kept: Iterable[str]) -> list[Path]:
        wanted = {self._path(name) for name in kept}
        return [path for path in self.folder.glob(f"*{_SUFFIX}*") if path not in wanted]
