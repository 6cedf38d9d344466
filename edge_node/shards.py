"""The examples of many nodes in one array, and what frozen layers make of them.

Layers before the first trained one are frozen: their outputs are the same for every training that starts
from the same values of them, so they are computed once for a shard and kept as long as they are needed.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hedgerow.core.units import Vector, digest
from hedgerow.runtime.model import Forward, Model
from hedgerow.runtime.stages import Stages

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Shards:
    """All shards' examples one behind the other: `inputs` and `targets` (rows, ...).

    Shard i has `sizes[i]` rows from `begins[i]` on. Raises ConfigError when examples do not fit the model.
    """

    inputs: Array
    targets: Array
    begins: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, model: Model, shards: Sequence[tuple[Array, Array]]) -> "Shards":
        """Copy the shards into one array each of inputs and of targets."""
        checked = [model.checked(inputs, targets) for inputs, targets in shards]
        sizes = [len(inputs) for inputs, _ in checked]
        return cls(
            np.concatenate([inputs for inputs, _ in checked]),
            np.concatenate([targets for _, targets in checked]),
            np.array([0, *accumulate(sizes[:-1])]),
            np.array(sizes),
        )

    def rows(self, shard: int) -> slice:
        """Where the shard's examples lie."""
        return slice(int(self.begins[shard]), int(self.begins[shard] + self.sizes[shard]))

    def __getitem__(self, shard: int) -> tuple[Array, Array]:
        rows = self.rows(shard)
        return self.inputs[rows], self.targets[rows]

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, slots=True)
class _Pool:
    """What frozen layers made of the examples: `features` (rows, F), valid where `known[shard]`."""

    features: Array
    known: NDArray[np.bool_]


class FeaturePools:
    """The inputs of stage number `depth`, for every row of `shards`.

    `limit_bytes` bounds what is kept, except that the pool in use stays; the one used longest ago goes first.
    `computed` counts the shards whose features were computed.
    """

    def __init__(self, model: Model, shards: Shards, limit_bytes: int) -> None:
        self.computed = 0
        self._model = model
        self._shards = shards
        self._raw = shards.inputs.reshape(len(shards.inputs), -1)
        self._limit_bytes = limit_bytes
        self._forwards: dict[int, Forward] = {}
        self._pools: OrderedDict[tuple[int, str], _Pool] = OrderedDict()

    @property
    def kept_bytes(self) -> int:
        """Memory of the features kept."""
        return sum(pool.features.nbytes for pool in self._pools.values())

    def features(self, depth: int, prefix: int, start: Vector, shards: Sequence[int]) -> Array:
        """Return features (rows, F), valid for the rows of `shards`.

        `start` (P,) are the parameters, of which the first `prefix` ones belong to the frozen layers.
        """
        if not prefix:
            return self._raw
        key = (depth, digest(start[:prefix].tobytes()))
        pool = self._pools.get(key)
        missing = sorted({shard for shard in shards if pool is None or not pool.known[shard]})
        if missing:
            rows = np.concatenate([np.arange(*_bounds(self._shards.rows(i))) for i in missing])
            made = self._forward(depth)(start, self._shards.inputs[rows])
            pool = pool or self._new(made.shape[1])
            pool.features[rows] = made
            pool.known[missing] = True
            self.computed += len(missing)
        assert pool is not None
        self._keep(key, pool)
        return pool.features

    def _new(self, features: int) -> _Pool:
        rows = len(self._shards.inputs)
        return _Pool(np.empty((rows, features), np.float32), np.zeros(len(self._shards), np.bool_))

    def _keep(self, key: tuple[int, str], pool: _Pool) -> None:
        self._pools[key] = pool
        self._pools.move_to_end(key)
        while len(self._pools) > 1 and self.kept_bytes > self._limit_bytes:
            self._pools.popitem(last=False)

    def _forward(self, depth: int) -> Forward:
        if depth not in self._forwards:
            self._forwards[depth] = Forward(self._model, _before(depth))
        return self._forwards[depth]


def _before(depth: int) -> Callable[[Any, Any], Any]:
    return lambda network, x: Stages.of(network).run(x, 0, depth)


def _bounds(rows: slice) -> tuple[int, int]:
    return rows.start, rows.stop
