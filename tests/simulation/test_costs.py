import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.core.config import TaskConfig
from hedgerow.core.costs import ModelCosts, StageCost
from hedgerow.core.effects import Probe, Train
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.core.units import Manifest
from hedgerow.runtime.layers import model_costs
from hedgerow.runtime.model import load_model
from sims.costs import content, probed_examples, trained_examples, training_cost

UNITS = {
    "first.weight": (4, 2),
    "first.bias": (4,),
    "second.weight[:,0:1]": (6, 1),
    "second.weight[:,1:4]": (6, 3),
    "second.bias": (6,),
    "third.weight": (1, 6),
}
MANIFEST = Manifest.of(UNITS)
COSTS = ModelCosts(
    MANIFEST,
    tuple(
        StageCost(name, (name,), 0, 0, 0, mflop)
        for name, mflop in (("first", 1.0), ("second", 10.0), ("third", 100.0))
    ),
    0,
    0,
)
CNN = load_model(
    TaskConfig(name="cnn", outputs=10, options={"channels": [4, 8], "kernel": 3, "hidden": [16]}),
    (28, 28),
    groups=2,
)
CNN_COSTS = model_costs(CNN)


def plan_of(*names: str) -> Plan:
    return Plan.of(MANIFEST, names)


def test_a_step_runs_from_the_first_trained_stage_on_and_back() -> None:
    everything = training_cost(COSTS, plan_of(*UNITS))
    assert everything.step_mflop == 111 + 111 + 110
    assert (everything.frozen_mflop, everything.frozen) == (0, ())
    assert everything.recomputed_mflop == 111
    last = training_cost(COSTS, plan_of("third.weight"))
    assert last.step_mflop == 100 + 100
    assert last.frozen_mflop == 11
    assert last.frozen == tuple(UNITS)[:5]
    assert training_cost(COSTS, plan_of("second.bias")).step_mflop == 110 + 0 + 100


def test_a_group_costs_its_share_of_the_layer() -> None:
    groups = [training_cost(COSTS, plan_of(name)) for name in tuple(UNITS)[2:4]]
    assert [cost.step_mflop for cost in groups] == [210 + 2.5, 210 + 7.5]
    assert {cost.frozen_mflop for cost in groups} == {1.0}


def test_a_cnn_costs_about_what_its_products_do() -> None:
    convs = [2 * 9 * 1 * 4 * 26 * 26, 2 * 9 * 4 * 8 * 11 * 11]
    linears = [2 * 8 * 5 * 5 * 16, 2 * 16 * 10]
    head = training_cost(CNN_COSTS, choose_plan(CNN.manifest, last_layers=2))
    assert head.step_mflop * 1e6 == pytest.approx(3 * sum(linears) - linears[0], rel=0.05)
    # What is not a product, activations and pooling, costs little.
    everything = training_cost(CNN_COSTS, choose_plan(CNN.manifest, preset="all"))
    products = 3 * sum(convs + linears) - convs[0]
    assert products < everything.step_mflop * 1e6 < 1.5 * products


OWN_TASK = """
import numpy as np
from tinygrad import nn

class Model:
    def __init__(self):
        self.first, self.second = nn.Linear(5, 4), nn.Linear(4, 3)
    def __call__(self, x):
        return self.second(self.first(x).tanh())

class Task:
    target_dtype = np.dtype(np.int32)
    def __init__(self, input_shape, kind, outputs):
        self.input_shape = input_shape
    def build(self):
        return Model()
    def loss(self, output, targets):
        return output.sparse_categorical_crossentropy(targets)
    def metrics(self, outputs, targets):
        return {}
"""


def test_a_users_network_is_one_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "costs_own.py").write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    model = load_model(TaskConfig(name="costs_own:Task", outputs=3), (5,))
    costs = model_costs(model)
    everything = training_cost(costs, choose_plan(model.manifest, preset="all"))
    assert everything.step_mflop == pytest.approx(2 * costs.stages[0].mflop)
    last = training_cost(costs, choose_plan(model.manifest, last_layers=1))
    assert last.frozen_mflop == 0
    assert last.step_mflop < everything.step_mflop


@given(
    st.sets(st.sampled_from(sorted(CNN.manifest.by_name)), min_size=1),
    st.sets(st.sampled_from(sorted(CNN.manifest.by_name))),
)
def test_a_plan_costs_no_less_than_one_it_contains(small: set[str], more: set[str]) -> None:
    less = training_cost(CNN_COSTS, Plan.of(CNN.manifest, sorted(small)))
    whole = training_cost(CNN_COSTS, Plan.of(CNN.manifest, sorted(small | more)))
    assert whole.step_mflop >= less.step_mflop > 0
    assert whole.frozen_mflop <= less.frozen_mflop


def test_only_a_change_of_the_frozen_stages_is_noticed() -> None:
    plan = plan_of("third.weight")
    frozen = training_cost(COSTS, plan).frozen
    params = np.arange(MANIFEST.size, dtype=np.float32)
    first = content(frozen, plan, params)
    changed = params.copy()
    changed[MANIFEST.slices["third.weight"]] += 1
    assert content(frozen, plan, changed) == first
    changed[MANIFEST.slices["second.bias"]] += 1
    assert content(frozen, plan, changed) != first
    assert content((), plan, params) == ""


@pytest.mark.parametrize(
    ("examples", "passes", "max_steps", "taken"),
    [(22, 2, 0, 32), (22, 2, 3, 24), (22, 2, 9, 32), (5, 3, 0, 15), (5, 3, 2, 10)],
)
def test_whole_batches_are_taken(examples: int, passes: int, max_steps: int, taken: int) -> None:
    plan, params = plan_of("third.weight"), np.zeros(MANIFEST.size, np.float32)
    job = Train(1, plan, params, passes, 8, 0.1, seed=1, max_steps=max_steps)
    assert trained_examples(job, examples) == taken


def test_a_probe_takes_its_batches() -> None:
    plan, params = plan_of("third.weight"), np.zeros(MANIFEST.size, np.float32)
    probe = Probe(1, plan, params, batch_size=8, batches=3, seed=1)
    assert (probed_examples(probe, 22), probed_examples(probe, 5)) == (24, 15)
