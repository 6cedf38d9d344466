"""What is learnt, and by whom: data, model and training of a whole fleet."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from numpy.typing import NDArray

from hedgerow.core.config import Config
from hedgerow.core.costs import ModelCosts
from hedgerow.core.effects import Probe, Probed, Train, Trained
from hedgerow.core.plan import Plan
from hedgerow.core.units import Manifest, Vector
from hedgerow.runtime.cache import cache_folder
from hedgerow.runtime.compiler import prepare_tinygrad
from hedgerow.runtime.ports import ComputeError
from sims.costs import TrainingCost, training_cost
from sims.fleetdata import FleetData, load_fleet_data
from sims.scenario import Scenario

if TYPE_CHECKING:
    from hedgerow.runtime.model import Model

Array = NDArray[Any]


class FleetWorld(Protocol):
    """Everything the simulator asks about learning; nodes are known by number."""

    @property
    def manifest(self) -> Manifest:
        """The model's units."""

    def initial_params(self) -> Vector:
        """Return version 0, shape (P,)."""

    def train(self, jobs: Sequence[tuple[int, Train]]) -> list[Trained | ComputeError]:
        """Train all jobs; a job that cannot be done gives its error as a value."""

    def probe(self, node: int, job: Probe) -> Probed | ComputeError:
        """Return the units' mean squared gradients on a node's examples, or why it cannot be done."""

    def costs(self) -> ModelCosts | None:
        """Return the model's costs, None where there are none to plan with."""

    def too_large(self, job: Train) -> ComputeError | None:
        """Return why such a training does not fit its `memory_bytes`, None where it does."""

    def evaluate(self, params: Vector) -> Mapping[str, float]:
        """Return the metrics on the evaluation set."""

    def evaluate_nodes(self, params: Vector) -> Sequence[Mapping[str, float]]:
        """Return the metrics on each node's own examples: those kept for tests, if any are."""

    def evaluate_node(self, node: int, params: Vector) -> Mapping[str, float]:
        """Return the same for one node."""

    def training_cost(self, plan: Plan) -> TrainingCost:
        """Return what one example costs under a plan."""

    def examples(self, node: int) -> int:
        """Return how many examples a node has."""


class RealWorld:
    """A real model, trained with tinygrad on real data."""

    def __init__(self, scenario: Scenario, config: Config, data: FleetData, seed: int) -> None:
        # tinygrad reads its environment when it is imported, after `prepare_tinygrad`.
        from hedgerow.runtime.layers import model_costs  # noqa: PLC0415
        from hedgerow.runtime.model import load_model  # noqa: PLC0415
        from sims.training import FleetTrainer  # noqa: PLC0415

        self._scenario = scenario
        self._seed = seed
        self._data = data
        self._model = load_model(config.task, data.input_shape, config.plan.unit_groups)
        self._trainer = FleetTrainer(self._model, data.shards, cache_folder() / "jit")
        self._costs = model_costs(self._model)
        self._training_costs: dict[str, TrainingCost] = {}

    @property
    def model(self) -> "Model":
        """The model."""
        return self._model

    @property
    def manifest(self) -> Manifest:
        """The model's units."""
        return self._model.manifest

    def largest_shard(self) -> tuple[Array, Array]:
        """Return the inputs and targets of a node that has most examples."""
        return max(self._data.shards, key=lambda shard: len(shard[0]))

    def initial_params(self) -> Vector:
        """Return version 0: drawn from the seed, then trained on the public share if there is one."""
        params = self._model.initial_params(self._seed)
        warm, public = self._scenario.warm_start, self._data.public
        if not warm.passes or public is None:
            return params
        from sims.warmstart import warmed_up  # noqa: PLC0415 - as above

        return warmed_up(self._model, params, public, warm, self._seed, cache_folder())

    def train(self, jobs: Sequence[tuple[int, Train]]) -> list[Trained | ComputeError]:
        """Train all jobs; a job that cannot be done gives its error as a value."""
        return self._trainer.train(jobs)

    def probe(self, node: int, job: Probe) -> Probed | ComputeError:
        """Return the units' mean squared gradients on a node's examples, or why it cannot be done."""
        return self._trainer.probe(node, job)

    def too_large(self, job: Train) -> ComputeError | None:
        """Return why such a training does not fit its `memory_bytes`, None where it does."""
        return self._trainer.too_large(job)

    def costs(self) -> ModelCosts:
        """Return the model's costs."""
        return self._costs

    def evaluate(self, params: Vector) -> Mapping[str, float]:
        """Return the metrics on the evaluation set."""
        return self._model.evaluate(params, *self._data.evaluation)

    def evaluate_nodes(self, params: Vector) -> Sequence[Mapping[str, float]]:
        """Return the metrics on each node's own examples: those kept for tests, if any are."""
        if len(self._data.tests[0][0]):
            return [self.evaluate_node(node, params) for node in range(len(self._data.tests))]
        return self._trainer.evaluate_nodes(params)

    def evaluate_node(self, node: int, params: Vector) -> Mapping[str, float]:
        """Return the same for one node."""
        test = self._data.tests[node]
        return self._model.evaluate(params, *(test if len(test[0]) else self._data.shards[node]))

    def training_cost(self, plan: Plan) -> TrainingCost:
        """Return what one example costs under a plan."""
        if plan.plan_id not in self._training_costs:
            self._training_costs[plan.plan_id] = training_cost(self._costs, plan)
        return self._training_costs[plan.plan_id]

    def examples(self, node: int) -> int:
        """Return how many examples a node has."""
        return len(self._data.shards[node][0])


def real_world(scenario: Scenario, config: Config, seed: int) -> RealWorld:
    """Load data and model; raises ConfigError for what cannot be loaded."""
    prepare_tinygrad(cache_folder())
    return RealWorld(scenario, config, load_fleet_data(scenario, config, seed), seed)
