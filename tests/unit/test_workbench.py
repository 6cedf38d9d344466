from typing import Any

import pytest

from hedgerow.planning.workbench import Workbench
from tests.protocol.scenarios import make_config


@pytest.mark.parametrize(
    ("encoding", "bound", "kept"),
    [("int8", 0, False), ("int4", 0, False), ("sign", 0, True), ("int8", 2000, True)],
)
def test_error_feedback_is_planned_for_as_the_aggregator_does(
    encoding: str, bound: int, *, kept: bool
) -> None:
    config = make_config(training={"encoding": encoding}, node={"max_update_bytes": bound})
    unused: Any = None
    bench = Workbench(config, 1, 1, (), 1, *[unused] * 6)
    assert bench.error_feedback is kept
