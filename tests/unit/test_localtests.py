import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.localtests import local_metrics
from aggregator.status import LocalMetric
from hedgerow.core.messages import NodeState


def state(number: int, **metrics: float) -> NodeState:
    named = {name.replace("_", " "): value for name, value in metrics.items()}
    return NodeState(node=f"node-{number}", epoch=1, state="ready", metrics=named)


def test_without_reports_there_is_nothing() -> None:
    assert local_metrics([state(1), state(2)]) == []


def test_the_worst_tenth_is_the_lowest_accuracy_and_the_highest_loss() -> None:
    states = [state(n, global_accuracy=n / 20, global_loss=float(n)) for n in range(20)]
    accuracy, loss = local_metrics(states)
    assert (accuracy.metric, accuracy.nodes, loss.metric) == ("accuracy", 20, "loss")
    assert [accuracy.mean, accuracy.worst_decile] == pytest.approx([0.475, 0.025])
    assert [loss.mean, loss.worst_decile] == pytest.approx([9.5, 18.5])


def test_nodes_count_where_they_reported_and_kinds_are_told_apart() -> None:
    found = local_metrics(
        [state(1, global_accuracy=0.5), state(2, global_accuracy=0.7, personal_accuracy=0.9)]
    )
    assert [(row.kind, row.nodes) for row in found] == [("global", 2), ("personal", 1)]
    assert [row.mean for row in found] == [pytest.approx(0.6), 0.9]


def test_what_is_no_number_is_left_out() -> None:
    found = local_metrics([state(1, global_loss=float("nan")), state(2, global_loss=2.0)])
    assert found == [LocalMetric("loss", "global", 2.0, 2.0, 1)]


def test_names_that_nodes_make_up_are_bounded() -> None:
    states = [state(n, **{f"global_m{n}": 1.0}) for n in range(100)]
    assert len(local_metrics(states)) == 32


@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_the_worst_tenth_is_never_better_than_the_mean(values: list[float]) -> None:
    (row,) = local_metrics([state(n, global_accuracy=v) for n, v in enumerate(values)])
    assert row.worst_decile <= row.mean + 1e-12
    assert row.mean == pytest.approx(np.mean(values))


def test_figures_beyond_all_sense_count_for_nothing() -> None:
    """Two of them would overflow the sum, and with it the aggregator's status."""
    states = [state(n, global_loss=value) for n, value in enumerate([1.7e308, 1.7e308, 0.5])]
    (loss,) = local_metrics(states)
    assert (loss.mean, loss.worst_decile, loss.nodes) == (0.5, 0.5, 1)
