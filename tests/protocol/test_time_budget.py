"""The time budget: a node that was too slow last time takes fewer steps."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.rows import PutUpdate
from edge_node.timebudget import TimeBudget
from hedgerow.core.codec import decode
from hedgerow.core.config import LocalTrainingConfig
from hedgerow.core.effects import Effect, Train
from hedgerow.core.messages import Descriptor, Update
from tests.protocol.node_bench import Bench, descriptor, parts, trains
from tests.protocol.scenarios import make_config, make_lineage, saved_rows

BENCH_STEPS, BENCH_EXAMPLES = 2, 16
"""What a training of the bench says of itself; it takes a second."""


def version(number: int, budget_us: int, batch_size: int = 4) -> Descriptor:
    base = descriptor(number)
    local = msgspec.structs.replace(
        base.training["default"], time_budget_us=budget_us, batch_size=batch_size
    )
    return msgspec.structs.replace(base, training={"default": local})


def begin(bench: Bench, base: Descriptor) -> Train:
    out = bench.hear("gw/gw-1", base)
    for part in parts(base.version):
        out = out + bench.hear("blob", part)
    (job,) = trains(out)
    return job


def second_job(budget_us: int) -> Train:
    bench = Bench().online()
    bench.issue(begin(bench, version(0, budget_us)))
    return begin(bench, version(1, budget_us))


def examples(effects: list[Effect]) -> int:
    (row,) = saved_rows(effects, PutUpdate)
    update = decode(row.body)
    assert isinstance(update, Update)
    return update.examples


def test_the_first_training_is_whole_for_its_pace_is_not_known() -> None:
    assert begin(Bench().online(), version(0, 1_000)).max_steps == 0


@pytest.mark.parametrize(
    ("budget_us", "steps"),
    [(0, 0), (5_000_000, 10), (1_700_000, 3), (1_000_000, 2), (400_000, 1), (1, 1)],
)
def test_the_next_one_takes_as_many_steps_as_end_in_time_at_the_last_ones_pace(
    budget_us: int, steps: int
) -> None:
    assert second_job(budget_us).max_steps == steps


@pytest.mark.parametrize(
    ("budget_us", "batch_size", "seen"),
    [(0, 4, BENCH_EXAMPLES), (1_000_000, 4, 8), (1_000_000, 64, BENCH_EXAMPLES)],
)
def test_a_cut_training_counts_the_examples_that_it_has_seen(
    budget_us: int, batch_size: int, seen: int
) -> None:
    bench = Bench().online()
    bench.issue(begin(bench, version(0, budget_us, batch_size)))
    job = begin(bench, version(1, budget_us, batch_size))
    assert examples(bench.trained(job)) == seen


@given(
    fixed_us=st.integers(0, 500_000),
    step_us=st.integers(1_000, 100_000),
    budget_us=st.integers(800_000, 5_000_000),
)
def test_with_a_fixed_cost_trainings_come_to_end_in_time(
    fixed_us: int, step_us: int, budget_us: int
) -> None:
    budget, steps = TimeBudget(), 1000
    for _ in range(40):
        budget.learn(fixed_us + steps * step_us, steps)
        steps = budget.max_steps(budget_us)
    took_us = fixed_us + steps * step_us
    assert took_us <= budget_us or steps == 1


def test_every_memory_class_has_its_own_budget() -> None:
    slow = LocalTrainingConfig(time_budget_s=2.5)
    config = make_config(training={"time_budget_s": 20.0, "memory_classes": {"slow": slow}})
    training = make_lineage(1, config).current.training
    assert training["default"].time_budget_us == 20_000_000
    assert training["slow"].time_budget_us == 2_500_000
