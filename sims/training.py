"""Trains a whole fleet: stacked where the model allows it, node by node otherwise."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from edge_node.design import StageMap
from edge_node.shards import Shards
from edge_node.stack import Need
from edge_node.stacked import FEATURE_BYTES, StackedTrainer
from edge_node.trainer import Trainer
from hedgerow.core.effects import Probe, Probed, Train, Trained
from hedgerow.core.units import Vector
from hedgerow.runtime.model import Model
from hedgerow.runtime.ports import ComputeError
from hedgerow.runtime.tasks import BuiltInTask

Array = NDArray[Any]
Job = tuple[int, Train]
Result = Trained | ComputeError
NeedKey = tuple[str, int, int, bool]


class FleetTrainer:
    """Trains jobs of any plans and batch sizes on any of `shards`, pairs of inputs and targets.

    A bound on memory decides whether a job can be done and what its result says of memory; it is computed in
    the fastest way all the same, which gives the same up to float32 rounding.

    Compiled steps lie in `jit_folder`; what frozen stages make of the examples is kept in memory, of stacked
    jobs and of the others up to `feature_bytes` each. All calls must come from the one thread that owns
    tinygrad. Raises ConfigError when examples do not fit the model.
    """

    def __init__(
        self,
        model: Model,
        shards: Sequence[tuple[Array, Array]],
        jit_folder: Path,
        feature_bytes: int = FEATURE_BYTES,
    ) -> None:
        self._model = model
        self._shards = Shards.of(model, shards)
        self._jit_folder = jit_folder
        self._stacked = (
            StackedTrainer(model, self._shards, jit_folder, feature_bytes=feature_bytes)
            if isinstance(model.task, BuiltInTask)
            else None
        )
        self.singles = _Singles(model, self._shards, jit_folder, feature_bytes)
        self._needs: dict[NeedKey, Need | str] = {}

    def train(self, jobs: Sequence[Job]) -> list[Result]:
        """Train (shard index, job) pairs; return the results in their order, a ComputeError for a failure.

        What the results say of memory is what one node needs alone. For jobs that are stacked or have a bound
        it is measured once for a plan, batch size and bound, on a full batch or, where all are smaller, on
        the largest shard.
        """
        groups: dict[NeedKey, list[int]] = {}
        for i, (_, job) in enumerate(jobs):
            groups.setdefault(_need_key(job), []).append(i)
        results: dict[int, Result] = {}
        for members in groups.values():
            results.update(zip(members, self._group([jobs[i] for i in members]), strict=True))
        return [results[i] for i in range(len(jobs))]

    def probe(self, shard: int, job: Probe) -> Probed | ComputeError:
        """Measure the gain of each unit on a shard's examples; a failure is a value."""
        try:
            return self.singles.of(shard, job.plan.names).probe(job)
        except ComputeError as error:
            return error

    def too_large(self, job: Train) -> ComputeError | None:
        """Return why nothing of a kind can be trained within its bound; None where it can or has none."""
        need = self._need(job) if job.memory_bytes else None
        return ComputeError(need) if isinstance(need, str) else None

    def evaluate_nodes(self, params: Vector) -> list[dict[str, float]]:
        """Return the task's metrics for `params`, shape (P,), on each shard's own examples."""
        outputs = self._model.predict(params, self._shards.inputs)
        return [
            self._model.task.metrics(outputs[self._shards.rows(shard)], self._shards[shard][1])
            for shard in range(len(self._shards))
        ]

    def _group(self, jobs: list[Job]) -> list[Result]:
        """Train jobs of one plan, batch size and bound."""
        first = jobs[0][1]
        stacked = self._stacked if self._stacked and self._stacked.can_train(first.plan) else None
        if stacked is None and not first.memory_bytes:
            return [self._alone(shard, job) for shard, job in jobs]
        need = self._need(first)
        if isinstance(need, str):
            return [ComputeError(need) for _ in jobs]
        if stacked is not None:
            return stacked.train(jobs, need)
        free = [(shard, replace(job, memory_bytes=0)) for shard, job in jobs]
        return [_needing(need, self._alone(shard, job)) for shard, job in free]

    def _alone(self, shard: int, job: Train) -> Result:
        try:
            return self.singles.of(shard, job.plan.names).train(job)
        except ComputeError as error:
            return error

    def _need(self, job: Train) -> Need | str:
        """Return what one node needs for such a job, or why it cannot do it: it is trained for one step."""
        key = _need_key(job)
        if key not in self._needs:
            largest = int(self._shards.sizes.argmax())
            inputs, targets = (part[: job.batch_size] for part in self._shards[largest])
            trainer = Trainer(self._model, inputs, targets, self._jit_folder)
            params = np.zeros(self._model.manifest.size, np.float32)
            sample = replace(job, params=params, passes=1, learning_rate=1e-3, offset=None)
            try:
                done = trainer.train(sample)
            except ComputeError as error:
                self._needs[key] = str(error)
            else:
                self._needs[key] = Need(done.peak_bytes, done.planned_bytes, done.execution)
        return self._needs[key]


def _needing(need: Need, result: Result) -> Result:
    """Return a result that says what the job needs within its bound."""
    if isinstance(result, ComputeError):
        return result
    return replace(
        result,
        peak_bytes=need.peak_bytes,
        planned_bytes=need.planned_bytes,
        execution=need.execution,
    )


def _need_key(job: Train) -> NeedKey:
    return job.plan.plan_id, job.batch_size, job.memory_bytes, job.proximal > 0


@dataclass(slots=True)
class _Single:
    """A node's own trainer, and the most that its features may take."""

    trainer: Trainer
    feature_bytes: int = 0


class _Singles:
    """The trainers of single nodes. Those used longest ago make room when features exceed `limit_bytes`."""

    def __init__(self, model: Model, shards: Shards, jit_folder: Path, limit_bytes: int) -> None:
        self._model = model
        self._shards = shards
        self._jit_folder = jit_folder
        self._limit_bytes = limit_bytes
        self._stages = StageMap(model)
        self._kept: OrderedDict[int, _Single] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def of(self, shard: int, units: Sequence[str]) -> Trainer:
        """Return the trainer of a shard, which will train or probe these units."""
        by_name = self._model.manifest.by_name
        first = min(self._stages.of(by_name[name]) for name in units)
        single = self._kept.get(shard) or _Single(self._made(shard))
        single.feature_bytes = max(single.feature_bytes, self._bytes(shard, first) if first else 0)
        self._kept[shard] = single
        self._kept.move_to_end(shard)
        while len(self._kept) > 1 and self._total_bytes() > self._limit_bytes:
            self._kept.popitem(last=False)
        return single.trainer

    def _made(self, shard: int) -> Trainer:
        """Return a new trainer. It keeps one content of the frozen stages, wherever a plan begins."""
        largest = max(self._bytes(shard, first) for first in range(len(self._stages)))
        return Trainer(
            self._model,
            *self._shards[shard],
            self._jit_folder,
            feature_bytes=largest,
            stages=self._stages,
        )

    def _bytes(self, shard: int, first: int) -> int:
        return 4 * int(self._shards.sizes[shard]) * prod(self._stages.inputs[first])

    def _total_bytes(self) -> int:
        return sum(single.feature_bytes for single in self._kept.values())
