"""The warm start: central training on the public share, done once and kept for the strategies that follow."""

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import json
from numpy.typing import NDArray

from edge_node import lean, trainer
from edge_node.jitcache import source_digest
from edge_node.trainer import Trainer
from hedgerow.core.effects import Train
from hedgerow.core.errors import ConfigError
from hedgerow.core.plan import choose_plan
from hedgerow.core.units import Vector
from hedgerow.runtime.model import Model
from hedgerow.runtime.ports import ComputeError
from sims.scenario import WarmStart

Array = NDArray[Any]
_KEPT = 16
"""Files kept; those used longest ago are deleted."""


def warmed_up(
    model: Model,
    params: Vector,
    public: tuple[Array, Array],
    warm: WarmStart,
    seed: int,
    folder: Path,
) -> Vector:
    """Return `params`, shape (P,), after the passes of the warm start over the public examples.

    Kept in `folder` by all that it follows from. Raises ConfigError where it diverges.
    """
    path = folder / "warm" / f"{_key(model, params, public, warm, seed)}.npy"
    known = _read(path, params.shape)
    if known is None:
        known = params + _delta(model, params, public, warm, seed, folder)
        _write(path, known)
    return known


def _delta(
    model: Model,
    params: Vector,
    public: tuple[Array, Array],
    warm: WarmStart,
    seed: int,
    folder: Path,
) -> Vector:
    plan = choose_plan(model.manifest, preset="all")
    job = Train(0, plan, params, warm.passes, warm.batch_size, warm.learning_rate, seed=seed)
    try:
        return Trainer(model, *public, folder / "jit").train(job).delta
    except ComputeError as error:
        raise ConfigError(f"warm_start: {error}") from error


def _key(
    model: Model, params: Vector, public: tuple[Array, Array], warm: WarmStart, seed: int
) -> str:
    found = sha256(model.identity.encode())
    found.update(source_digest(str(lean.__file__), str(trainer.__file__)).encode())
    found.update(json.encode([warm, seed]))
    for array in (params, *public):
        found.update(str((array.shape, str(array.dtype))).encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:32]


def _read(path: Path, shape: tuple[int, ...]) -> Vector | None:
    try:
        found = np.load(path)
    except (OSError, ValueError, EOFError):
        return None
    if found.shape != shape or found.dtype != np.float32 or not np.isfinite(found).all():
        return None
    path.touch()
    return found  # type: ignore[no-any-return]


def _write(path: Path, params: Vector) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")
    with fresh.open("wb") as file:
        np.save(file, params)
    fresh.replace(path)
    files = sorted(path.parent.glob("*.npy"), key=lambda file: file.stat().st_mtime_ns)
    for old in files[:-_KEPT]:
        old.unlink(missing_ok=True)
