"""The word of tinygrad's own memory planner on a plan, asked once for each question."""

from collections.abc import Sequence

from edge_node.oracle import planned_bytes
from hedgerow.core.costs import FLOAT_BYTES
from hedgerow.core.execution import Execution
from hedgerow.core.plan import Plan
from hedgerow.core.search import Oracle
from hedgerow.planning.workbench import Workbench


def feedback_bytes(bench: Workbench, names: Sequence[str]) -> int:
    """Return the memory of what updates of these units have left out so far; personal ones send none."""
    if not bench.error_feedback:
        return 0
    shared = [name for name in names if name not in bench.personal]
    return FLOAT_BYTES * Plan.of(bench.model.manifest, shared).size


def oracle_of(bench: Workbench) -> Oracle:
    """Return what tells a plan's bytes; error feedback is added."""
    known: dict[tuple[tuple[str, ...], Execution, int], int] = {}

    def oracle(names: Sequence[str], execution: Execution, batch: int) -> int:
        plan = Plan.of(bench.model.manifest, names)
        question = (plan.names, execution, batch)
        if question not in known:
            planned = planned_bytes(bench.model, plan, batch, execution, target=bench.target_shape)
            known[question] = planned + feedback_bytes(bench, names)
        return known[question]

    return oracle
