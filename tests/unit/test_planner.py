import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from aggregator.planner import KEPT, Planner, first_plans
from aggregator.schedule import Schedule
from aggregator.values import LARGEST_VALUE, ROUNDS_KEPT, ValueBook
from hedgerow.core.config import LocalTrainingConfig, PlanConfig
from hedgerow.core.errors import ConfigError
from hedgerow.core.messages import UnitValues
from hedgerow.core.planbook import PlanSet
from tests.protocol.planning import BODY, COSTS, EVEN, HEAD, least_bytes, planned_config
from tests.protocol.scenarios import MANIFEST, WHOLE

values = st.floats(0, 1e6)


def book(*rounds: int) -> ValueBook:
    made = ValueBook(EVEN)
    for number in rounds:
        made.open(number)
    return made


@given(st.lists(values, min_size=1, max_size=20))
def test_a_units_value_is_the_mean_over_nodes(told: list[float]) -> None:
    made = book(1)
    for n, value in enumerate(told):
        assert made.take(UnitValues(f"n{n}", 1, {"body.bias": value})) == ""
    assert made.answers(1) == len(told)
    assert made.means() == {"body.bias": pytest.approx(math.fsum(told) / len(told))}


def test_each_node_counts_once_per_round_and_a_newer_round_twice_as_much() -> None:
    made = book(1)
    assert made.take(UnitValues("a", 1, {"body.bias": 6.0})) == ""
    assert made.take(UnitValues("a", 1, {"body.bias": 60.0})) == "repeated"
    made.open(2)
    assert made.take(UnitValues("a", 2, {"body.bias": 3.0})) == ""
    assert made.means() == {"body.bias": pytest.approx((0.5 * 6 + 3) / 1.5)}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (UnitValues("a", 9, {"body.bias": 1.0}), "unknown-round"),
        (UnitValues("a", 1, {}), "shape"),
        (UnitValues("a", 1, {"body.bias": 1.0, "tail": 1.0}), "shape"),
        (UnitValues("a", 1, {"body.bias": -1.0}), "not-finite"),
        (UnitValues("a", 1, {"body.bias": math.nan}), "not-finite"),
        (UnitValues("a", 1, {"body.bias": 2 * LARGEST_VALUE}), "not-finite"),
    ],
)
def test_what_cannot_be_a_value_is_refused_whole(answer: UnitValues, why: str) -> None:
    made = book(1)
    assert made.take(answer) == why
    assert made.answers(1) == 0
    assert made.means() == {}


def test_only_the_newest_rounds_are_kept() -> None:
    made = book(*range(1, ROUNDS_KEPT + 2))
    assert made.take(UnitValues("a", 1, EVEN)) == "unknown-round"
    assert made.take(UnitValues("a", 2, EVEN)) == ""


def schedule(version: int = 0, nodes: int = 10, **plan: Any) -> Schedule:
    config = PlanConfig(
        budget_bytes=1, **{"replan_versions": 10, "warmup_versions": 0, "stall_versions": 0, **plan}
    )
    return Schedule(config, nodes=nodes, metric="accuracy", version=version, term=1)


def test_the_first_search_waits_until_the_model_has_learnt_a_little() -> None:
    made = schedule(warmup_versions=10, replan_versions=50)
    assert [version for version in range(8) if made.published(version)] == []
    opened = made.published(8)
    assert made.request is not None
    assert (made.request.round, made.needed) == (opened, 3)
    assert made.reason(9, 3) == ""
    assert made.reason(10, 2) == ""
    assert made.reason(10, 3) == "first-values"
    made.decided(10)
    assert [version for version in range(11, 51) if made.published(version)] == [40]


def test_the_fleet_is_asked_shortly_before_the_next_search() -> None:
    made = schedule()
    made.published(0)
    made.decided(1)
    assert [version for version in range(1, 12) if made.published(version)] == [8]
    assert made.reason(9, 3) == ""
    assert made.reason(10, 3) == "interval"


def test_a_restart_does_not_shift_the_next_search() -> None:
    made = schedule(version=17)
    assert made.published(17) is None
    assert made.published(18) is not None
    assert made.reason(20, 3) == "interval"


def test_a_round_that_few_answer_is_followed_by_another() -> None:
    made = schedule()
    first = made.published(0)
    assert [version for version in range(1, 10) if made.published(version)] == []
    second = made.published(10)
    assert first is not None
    assert second == first + 1


def test_a_loss_that_stalls_makes_a_search_due() -> None:
    made = schedule(replan_versions=1000, stall_versions=4)
    made.published(0)
    made.decided(0)
    for version in range(1, 4):
        made.evaluated(version, {"loss": 1.0 / version, "accuracy": 0.0})
    for version in range(4, 7):
        made.evaluated(version, {"loss": 1.0 / 3 - 1e-6})
        assert made.published(version) is None
    assert made.published(7) is not None
    assert made.reason(7, 3) == "stall"
    made.decided(7)
    assert made.published(8) is None


def test_without_an_interval_the_plan_is_searched_once() -> None:
    made = schedule(replan_versions=0, stall_versions=4)
    made.published(0)
    made.decided(1)
    made.evaluated(1, {"accuracy": 0.5})
    assert [version for version in range(1, 200) if made.published(version)] == []


@pytest.mark.parametrize(("nodes", "share", "needed"), [(2, 1.0, 2), (4, 1.0, 3), (100, 0.2, 10)])
def test_small_fleets_are_asked_whole(nodes: int, share: float, needed: int) -> None:
    made = schedule(nodes=nodes)
    made.published(0)
    assert made.request is not None
    assert (made.request.share, made.needed) == (share, needed)


def planner(budget_bytes: int, **plan: Any) -> Planner:
    return Planner(planned_config(budget_bytes, **plan), COSTS, version=0, term=1)


BOTH_BUT_ONE = least_bytes("body.weight", "body.bias", "head.bias")


def tell(made: Planner, told: dict[str, float], version: int = 0) -> None:
    made.published(version)
    request = made.schedule.request
    assert request is not None
    answers = [UnitValues(f"node-{n}", request.round, told) for n in range(3)]
    assert made.take(answers) == []


def test_the_plan_follows_what_the_nodes_say() -> None:
    made = planner(BOTH_BUT_ONE)
    first = made.search()
    assert made.decide(0, first) is None
    tell(made, BODY)
    decision = made.decide(0, first)
    assert decision is not None
    assert decision.plans is not None
    assert "body.weight" in decision.plans.widest.names
    assert "body.weight" not in first.widest.names
    assert (decision.reason, decision.after > decision.before) == ("first-values", True)
    tell(made, {**EVEN, "head.weight": 1e6}, version=5)
    again = made.decide(5, decision.plans)
    assert again is not None
    assert again.plans is not None
    assert "head.weight" in again.plans.widest.names


def test_a_plan_that_is_hardly_better_does_not_replace_the_old_one() -> None:
    made = planner(BOTH_BUT_ONE, hysteresis=0.1)
    tell(made, BODY)
    first = made.decide(0, made.search())
    assert first is not None
    better = made.search()
    tell(made, {**BODY, "head.weight": 54.0}, version=5)
    kept = made.decide(5, better)
    assert kept is not None
    assert (kept.plans, kept.reason) == (None, "interval")


def test_a_plan_that_does_not_fit_any_more_is_replaced_at_once() -> None:
    made = planner(BOTH_BUT_ONE)
    decision = made.decide(0, PlanSet(WHOLE))
    assert decision is not None
    assert decision.plans is not None
    assert decision.reason == "budget"
    assert 0 < made.planned_bytes(decision.plans, "default") <= KEPT * BOTH_BUT_ONE + 1
    assert made.decide(0, decision.plans) is None


def test_units_that_nobody_gains_from_leave_the_plan_as_it_is() -> None:
    made = planner(BOTH_BUT_ONE)
    old = made.search()
    tell(made, dict.fromkeys(EVEN, 0.0))
    decision = made.decide(0, old)
    assert decision is not None
    assert (decision.plans, decision.reason) == (None, "nothing-fits")


def test_smaller_classes_train_parts_of_the_widest_plan() -> None:
    head = least_bytes("head.bias")
    made = planner(BOTH_BUT_ONE, class_budgets={"sensor": head, "pi": 1 << 20}, enough_value=1)
    plans = made.search()
    assert plans.of_class("pi") == plans.widest == WHOLE
    assert plans.of_class("sensor").names == ("head.bias",)
    default = set(plans.of_class("default").names)
    assert {"head.bias"} < default < set(WHOLE.names)
    assert sorted(plans.nested) == sorted(
        plans.of_class(name).plan_id for name in ("default", "sensor")
    )


def test_a_class_without_a_budget_of_its_own_keeps_to_the_fleets() -> None:
    config = planned_config(BOTH_BUT_ONE, class_budgets={"pi": 1 << 20}, enough_value=1)
    slow = LocalTrainingConfig(batch_size=4, time_budget_s=1.0)
    training = structs.replace(config.training, memory_classes={"slow": slow})
    config = structs.replace(config, training=training)
    plans = Planner(config, COSTS, version=0, term=1).search()
    assert plans.widest == WHOLE
    assert plans.of_class("slow") == plans.of_class("default") != WHOLE


def test_personal_units_are_in_no_plan_and_their_values_are_refused() -> None:
    made = planner(1 << 20, personal=["head"])
    assert made.search().widest.names == ("body.weight", "body.bias")
    made.published(0)
    request = made.schedule.request
    assert request is not None
    assert made.take([UnitValues("a", request.round, HEAD)]) == ["shape"]


def test_a_budget_that_is_just_enough_is_planned_to_the_byte() -> None:
    with pytest.raises(ConfigError) as told:
        planner(1).search()
    smallest = int(re.findall(r"(\d+) bytes$", str(told.value))[0])
    assert planner(smallest).search().widest.size > 0
    with pytest.raises(ConfigError):
        planner(smallest - 1).search()


def test_a_budget_that_nothing_fits_is_told_at_the_start() -> None:
    with pytest.raises(ConfigError, match="smallest budget"):
        first_plans(planned_config(1), MANIFEST, COSTS)
