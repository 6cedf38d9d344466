"""A node's tests on its own examples: when they run, and how their figures leave the node."""

from typing import Any

import pytest

from edge_node.presence import PRESENCE_TIMER
from hedgerow.core.effects import Effect, Evaluate, Evaluated, JobFailed, Saved, Train
from hedgerow.core.messages import NodeState
from tests.protocol.node_bench import Bench, descriptor, parts, trains
from tests.protocol.scenarios import MANIFEST, WHOLE, announced, params_of, recorded, saves

OWN = "body.weight"


def begin(bench: Bench, number: int, **changes: Any) -> list[Effect]:
    """Give the node a version; return everything that it does on it."""
    out = bench.hear("gw/gw-1", descriptor(number, **changes))
    for part in parts(number):
        out = out + bench.hear("blob", part)
    return out


def evaluations_in(effects: list[Effect]) -> list[Evaluate]:
    return [effect for effect in effects if isinstance(effect, Evaluate)]


def trained_with(bench: Bench, number: int, **changes: Any) -> list[Effect]:
    """Let the node train from a version and store the update; return what its end brings."""
    (job,) = trains(begin(bench, number, **changes))
    size = job.plan.size
    effects = bench.trained(job, WHOLE_DELTA[:size])
    return effects + bench.done(Saved(saves(effects)[0].job))


WHOLE_DELTA = params_of(0) * 0 + 0.5
assert WHOLE_DELTA.size == WHOLE.size


def test_a_node_without_test_examples_never_tests() -> None:
    assert evaluations_in(trained_with(Bench().online(), 0)) == []


def test_a_training_is_followed_by_tests_of_the_published_and_the_own_model() -> None:
    bench = Bench(tests=True).online()
    whole, own = evaluations_in(trained_with(bench, 0, personal=[OWN]))
    assert (whole.params == params_of(0)).all()
    where = MANIFEST.slices[OWN]
    assert (own.params[where] == params_of(0)[where] + 0.5).all()
    assert (own.params[where.stop :] == params_of(0)[where.stop :]).all()


def test_without_personal_units_there_is_one_test() -> None:
    (only,) = evaluations_in(trained_with(Bench(tests=True).online(), 0))
    assert only.version == 0


def test_the_next_training_waits_for_the_tests() -> None:
    bench = Bench(tests=True).online()
    whole, own = evaluations_in(trained_with(bench, 0, personal=[OWN]))
    assert trains(begin(bench, 1, personal=[OWN])) == []
    assert trains(bench.done(Evaluated(whole.job, 0, {"accuracy": 0.5}))) == []
    (job,) = trains(bench.done(Evaluated(own.job, 0, {"accuracy": 0.75})))
    assert isinstance(job, Train)


def test_figures_leave_with_the_nodes_state() -> None:
    bench = Bench(tests=True).online()
    whole, own = evaluations_in(trained_with(bench, 0, personal=[OWN]))
    bench.timer(PRESENCE_TIMER)
    bench.done(Evaluated(whole.job, 0, {"accuracy": 0.5, "loss": 1.5}))
    bench.done(Evaluated(own.job, 0, {"accuracy": 0.75}))
    (state,) = announced(bench.timer(PRESENCE_TIMER), NodeState)
    assert state.metrics == {
        "global accuracy": 0.5,
        "global loss": 1.5,
        "personal accuracy": 0.75,
    }


def test_figures_are_bounded_and_finite() -> None:
    bench = Bench(tests=True).online()
    (only,) = evaluations_in(trained_with(bench, 0))
    bench.timer(PRESENCE_TIMER)
    odd = {f"m{n:02d}": 1.0 for n in range(40)} | {"loss": float("nan"), "x" * 60: 1.0}
    bench.done(Evaluated(only.job, 0, odd))
    (state,) = announced(bench.timer(PRESENCE_TIMER), NodeState)
    assert list(state.metrics) == [f"global m{n:02d}" for n in range(16)]


def test_tests_are_test_versions_apart() -> None:
    bench = Bench(tests=True, test_versions=2).online()
    counts = []
    for number in range(4):
        asked = evaluations_in(trained_with(bench, number))
        counts.append(len(asked))
        for test in asked:
            bench.done(Evaluated(test.job, number, {"accuracy": 0.5}))
    assert counts == [1, 0, 1, 0]


@pytest.mark.parametrize("failing", [[0], [1], [0, 1]])
def test_a_failed_test_is_counted_and_training_goes_on(failing: list[int]) -> None:
    bench = Bench(tests=True).online()
    asked = evaluations_in(trained_with(bench, 0, personal=[OWN]))
    effects: list[Effect] = []
    for number, test in enumerate(asked):
        if number in failing:
            effects += bench.done(JobFailed(test.job, "no memory"))
        else:
            effects += bench.done(Evaluated(test.job, 0, {"accuracy": 0.5}))
    assert len(recorded(effects, "test_failed")) == len(failing)
    assert recorded(effects, "tested") == []
    assert len(trains(begin(bench, 1, personal=[OWN]))) == 1
