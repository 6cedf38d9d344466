import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hedgerow.core.effects import Probe, Probed, Train, Trained
from hedgerow.core.errors import ConfigError
from hedgerow.core.plan import Plan, choose_plan
from hedgerow.core.search import search
from hedgerow.core.units import Vector
from hedgerow.runtime.ports import ComputeError
from sims.surrogate import NOISE, SurrogateTrainer

REPOSITORY = Path(__file__).resolve().parents[2]


def job_of(world: SurrogateTrainer, **changes: Any) -> Train:
    settings: dict[str, Any] = {
        "job": 1,
        "plan": choose_plan(world.manifest, preset="all"),
        "params": world.initial_params(),
        "passes": 2,
        "batch_size": 16,
        "learning_rate": 0.2,
        "seed": 11,
    }
    return Train(**(settings | changes))


def trained_all(world: SurrogateTrainer, jobs: list[tuple[int, Train]]) -> list[Trained]:
    results = world.train(jobs)
    assert all(isinstance(result, Trained) for result in results)
    return [result for result in results if isinstance(result, Trained)]


def varied_jobs(world: SurrogateTrainer) -> list[tuple[int, Train]]:
    plans = [choose_plan(world.manifest, preset="all"), choose_plan(world.manifest, last_layers=1)]
    rng = np.random.default_rng(3)
    return [
        (
            i % 7,
            job_of(
                world,
                job=i,
                plan=plans[i % 2],
                passes=1 + i % 3,
                seed=i,
                params=rng.standard_normal(world.manifest.size).astype(np.float32),
                offset=np.ones(plans[i % 2].size, np.float32) if i == 4 else None,
                proximal=0.3 * (i % 2),
            ),
        )
        for i in range(12)
    ]


def averaged(world: SurrogateTrainer, rounds: int, plan: Plan) -> tuple[Vector, list[float]]:
    params, accuracies = world.initial_params(), []
    for number in range(rounds):
        jobs = [
            (i, job_of(world, params=params, seed=100 * number + i, plan=plan)) for i in range(50)
        ]
        mean = np.mean([result.delta for result in trained_all(world, jobs)], axis=0)
        for name, where in plan.slices.items():
            params[world.manifest.slices[name]] += mean[where]
        accuracies.append(world.evaluate(params)["accuracy"])
    return params, accuracies


def test_the_fleet_learns_from_a_tenth_towards_one() -> None:
    world = SurrogateTrainer(50, 64, 1)
    assert world.evaluate(world.initial_params())["accuracy"] == pytest.approx(0.1)
    params, accuracies = averaged(world, 12, choose_plan(world.manifest, preset="all"))
    assert accuracies == sorted(accuracies)
    assert accuracies[-1] > 0.95
    assert world.evaluate(params)["loss"] < 0.1 * world.evaluate(world.initial_params())["loss"]


def test_only_the_plans_units_are_trained() -> None:
    world = SurrogateTrainer(50, 64, 1)
    _, accuracies = averaged(world, 12, choose_plan(world.manifest, last_layers=1))
    assert 0.1 < accuracies[-1] < 0.5


def test_a_training_is_gradient_descent_towards_the_nodes_own_optimum() -> None:
    world = SurrogateTrainer(3, 64, 1)
    (found,) = trained_all(world, [(2, job_of(world, passes=400))])
    nodes = world.evaluate_nodes(found.delta)
    assert nodes[2]["accuracy"] == pytest.approx(1, abs=0.01)
    assert max(nodes[0]["accuracy"], nodes[1]["accuracy"]) < 0.9
    (one,) = trained_all(world, [(2, job_of(world, passes=1))])
    assert one.step_square_sum * 0.2**2 == pytest.approx(float(one.delta @ one.delta), rel=1e-4)
    assert np.abs(one.delta - 0.2 * found.delta).max() < 0.2 * 3 * NOISE
    assert found.loss_last < 0.01 * found.loss_first


def test_a_proximal_pull_holds_back() -> None:
    world = SurrogateTrainer(3, 64, 1)
    free, held = trained_all(
        world, [(0, job_of(world, passes=9)), (0, job_of(world, passes=9, proximal=1.0))]
    )
    assert np.linalg.norm(held.delta) < 0.7 * np.linalg.norm(free.delta)


def test_a_job_gives_the_same_bits_whatever_lies_beside_it() -> None:
    world, again = SurrogateTrainer(7, 64, 1), SurrogateTrainer(7, 64, 1)
    jobs = varied_jobs(world)
    together = trained_all(world, jobs)
    for job, result in zip(jobs, together, strict=True):
        (alone,) = trained_all(again, [job])
        np.testing.assert_array_equal(alone.delta, result.delta)
        assert (alone.step_square_sum, alone.loss_first, alone.loss_last) == (
            result.step_square_sum,
            result.loss_first,
            result.loss_last,
        )
        assert result.job == job[1].job
        assert result.delta.dtype == np.float32
        assert result.delta.shape == (job[1].plan.size,)
        assert result.examples == world.examples(job[0])


def test_another_seed_is_another_problem() -> None:
    one, two = (SurrogateTrainer(7, 64, seed) for seed in (1, 2))
    (first,), (second,) = (trained_all(world, [(0, job_of(world))]) for world in (one, two))
    assert not np.array_equal(first.delta, second.delta)
    sizes = [one.examples(node) for node in range(7)]
    assert sizes != [two.examples(node) for node in range(7)]
    assert all(10 <= size <= 100 for size in sizes)


def test_a_failing_job_fails_alone() -> None:
    world = SurrogateTrainer(7, 64, 1)
    short = np.zeros(3, np.float32)
    diverged, params, offset, fine = world.train(
        [
            (0, job_of(world, job=9, learning_rate=1e30, passes=9)),
            (1, job_of(world, params=short)),
            (2, job_of(world, offset=short)),
            (3, job_of(world)),
        ]
    )
    for result, about in (
        (diverged, "job 9: training diverged"),
        (params, "params have shape (3,)"),
        (offset, "offset has shape (3,)"),
    ):
        assert isinstance(result, ComputeError)
        assert about in str(result)
    assert isinstance(fine, Trained)
    assert world.train([]) == []


def test_every_training_costs_the_same() -> None:
    world = SurrogateTrainer(2, 64, 1)
    assert [unit.size for unit in world.manifest.units] == [14, 14, 14, 14, 8]
    assert world.training_cost(choose_plan(world.manifest, preset="all")).step_mflop == 1.0


def test_a_plan_with_gaps_trains_its_units_as_one_without() -> None:
    world = SurrogateTrainer(3, 64, 1)
    whole = choose_plan(world.manifest, preset="all")
    parts = choose_plan(world.manifest, units=["body.1.weight", "head.weight"])
    (everything,), (some,) = (
        trained_all(world, [(1, job_of(world, plan=plan, passes=300))]) for plan in (whole, parts)
    )
    for name, where in parts.slices.items():
        found, expected = some.delta[where], everything.delta[whole.slices[name]]
        np.testing.assert_allclose(found, expected, atol=3 * NOISE)


def test_fewer_steps_are_taken_where_the_job_says_so() -> None:
    world = SurrogateTrainer(3, 64, 1)
    long, cut, short = trained_all(
        world,
        [
            (1, job_of(world, passes=9)),
            (1, job_of(world, passes=9, max_steps=2)),
            (1, job_of(world, passes=2, max_steps=5)),
        ],
    )
    assert (long.steps, cut.steps, short.steps) == (9, 2, 2)
    np.testing.assert_array_equal(cut.delta, short.delta)


def test_a_plan_too_large_for_its_bound_fails() -> None:
    world = SurrogateTrainer(3, 64, 1)
    head = choose_plan(world.manifest, last_layers=1)
    needed = 4 * (64 + 2 * 8)
    fits, fails = world.train(
        [
            (0, job_of(world, plan=head, memory_bytes=needed)),
            (0, job_of(world, plan=head, memory_bytes=needed - 1)),
        ]
    )
    assert isinstance(fits, Trained)
    assert fits.peak_bytes == needed
    assert isinstance(fails, ComputeError)
    assert f"needs {needed} bytes" in str(fails)


def test_a_probe_tells_what_training_would_gain() -> None:
    world = SurrogateTrainer(3, 64, 1)
    plan = choose_plan(world.manifest, preset="all")

    def probed(params: Vector) -> Probed:
        found = world.probe(2, Probe(4, plan, params, batch_size=8, batches=3, seed=1))
        assert isinstance(found, Probed)
        return found

    before = probed(world.initial_params())
    (found,) = trained_all(world, [(2, job_of(world, plan=plan, passes=300))])
    after = probed(found.delta)
    assert (before.job, before.batches, list(before.squares)) == (4, 3, list(plan.names))
    assert all(after.squares[name] < 0.05 * before.squares[name] for name in plan.names)
    assert sum(before.squares.values()) == pytest.approx(found.delta @ found.delta, rel=0.05)
    short = Probe(4, plan, np.zeros(3, np.float32), batch_size=8, batches=3, seed=1)
    assert isinstance(world.probe(2, short), ComputeError)


def test_its_costs_can_be_searched() -> None:
    world = SurrogateTrainer(3, 64, 1)
    costs = world.costs()
    assert costs.manifest is world.manifest
    assert [costs.stage_of(unit.name) for unit in world.manifest.units] == [0, 1, 2, 3, 4]
    squares = world.probe(0, _probe(world))
    assert isinstance(squares, Probed)
    best, *_ = search(costs, squares.squares, 700, 4)
    assert 0 < best.share < 1
    assert best.planned_bytes <= 700


def _probe(world: SurrogateTrainer) -> Probe:
    plan = choose_plan(world.manifest, preset="all")
    return Probe(1, plan, world.initial_params(), batch_size=4, batches=1, seed=1)


def test_too_few_parameters_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"surrogate_parameters: 8 must be more"):
        SurrogateTrainer(2, 8, 1)


def test_the_surrogate_needs_no_tinygrad() -> None:
    code = "import sys, sims.surrogate; sys.exit('tinygrad' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0
