"""Parameters from a file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from hedgerow.core.errors import ConfigError
from hedgerow.core.units import Manifest, Unit, Vector

Array = NDArray[Any]


def read_params(path: Path, manifest: Manifest) -> Vector:
    """Return the parameters in a safetensors file, shape (P,): by the names of units, or of whole tensors.

    Raises ConfigError where the file cannot be read or does not fit the model.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"--model: {path} cannot be read as safetensors: {error}") from error
    return manifest.join({unit.name: _piece(path, tensors, unit) for unit in manifest.units})


def _piece(path: Path, tensors: Mapping[str, Array], unit: Unit) -> Array:
    found = tensors.get(unit.name)
    if found is None and unit.part is not None and unit.tensor in tensors:
        found = tensors[unit.tensor][unit.part.index]
    if found is None:
        raise ConfigError(
            f"--model: {path} has no {unit.name!r}, which the task's model has; take a file of the same"
            " task.name and task.options"
        )
    if found.shape != unit.shape or not np.isfinite(found).all():
        raise ConfigError(
            f"--model: {path}: {unit.name!r} of shape {found.shape} must be finite numbers of shape"
            f" {unit.shape}"
        )
    return found
