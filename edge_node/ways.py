"""Chooses how a step is computed: the fastest way whose planned peak fits the memory allowed."""

from msgspec import Struct

from edge_node import design as design_module
from edge_node import frozen, lean, oracle
from edge_node.design import StepDesign
from edge_node.jitcache import JitCache, source_digest
from edge_node.oracle import pass_rows, step_bytes
from hedgerow.core import execution as executions_module
from hedgerow.core.execution import Execution, micro_batches, segments
from hedgerow.runtime.model import Model
from hedgerow.runtime.ports import ComputeError


class Way(Struct, frozen=True):
    """How a step is computed: an execution, and how many examples the frozen stages take at a time.

    `planned_bytes` is the peak that this will have.
    """

    execution: Execution
    pass_rows: int
    planned_bytes: int


class Ways:
    """Finds a way for each step and remembers it, in files beside the compiled steps too."""

    def __init__(self, model: Model, jits: JitCache) -> None:
        self._model = model
        self._jits = jits
        self._known: dict[tuple[str, str, int], Way] = {}

    def of(self, design: StepDesign, allowed_bytes: int) -> Way:
        """Return the fastest way to compute a step within `allowed_bytes`, 0 for no bound.

        The design's own execution is taken where it has one to compare with. Raises ComputeError naming what
        the leanest way needs where none fits.
        """
        key = (str(design.key()), design.plan.plan_id, allowed_bytes)
        if key not in self._known:
            identity = {
                "way": source_digest(*_SOURCES),
                "model": self._model.identity,
                "allowed": allowed_bytes,
                **design.key(),
                "batch": design.batch,
            }
            found = self._jits.note(identity, Way, lambda: self._found(design, allowed_bytes))
            self._known[key] = found
        return self._known[key]

    def _found(self, design: StepDesign, allowed_bytes: int) -> Way:
        return (
            self.planned(design) if not allowed_bytes else _Search(self, design).way(allowed_bytes)
        )

    def planned(self, design: StepDesign) -> Way:
        """Return the way of the design's own execution."""
        needed = step_bytes(self._model, design)
        rows, passing = pass_rows(self._model, design, needed)
        return Way(design.execution, rows, max(needed, passing))


class _Search:
    """One search; planned bytes are taken to grow with the micro-batch, so sizes are bisected."""

    def __init__(self, ways: Ways, design: StepDesign) -> None:
        self._ways = ways
        self._design = design
        self._planned: dict[Execution, Way] = {}

    def way(self, allowed_bytes: int) -> Way:
        """Return the fastest way that fits; raises ComputeError."""
        design = self._design
        fitting: list[Way] = []
        for segment in segments(len(design.map) - design.first):
            best = Execution(design.batch, segment).cost(design.batch)
            if all(best < self._cost(way) for way in fitting):
                fitting += self._largest(segment, allowed_bytes)
        if not fitting:
            leanest = min(self._planned.values(), key=lambda way: way.planned_bytes)
            raise ComputeError(
                f"plan {design.plan.plan_id}: a step of {design.batch} examples needs at least"
                f" {leanest.planned_bytes} bytes ({leanest.execution.in_words}), of"
                f" {allowed_bytes} allowed"
            )
        return min(fitting, key=self._cost)

    def _cost(self, way: Way) -> float:
        return way.execution.cost(self._design.batch)

    def _largest(self, segment: int, allowed_bytes: int) -> list[Way]:
        """Return the way with the largest micro-batch that fits, if any does."""
        sizes = micro_batches(self._design.batch)
        # The whole batch at once is apart: nothing is added up.
        if self._way(Execution(sizes[0], segment)).planned_bytes <= allowed_bytes:
            return [self._way(Execution(sizes[0], segment))]
        low, high = 1, len(sizes)  # sizes[high:] fit.
        while low < high:
            middle = (low + high) // 2
            if self._way(Execution(sizes[middle], segment)).planned_bytes <= allowed_bytes:
                high = middle
            else:
                low = middle + 1
        return [self._way(Execution(sizes[high], segment))] if high < len(sizes) else []

    def _way(self, execution: Execution) -> Way:
        if execution not in self._planned:
            self._planned[execution] = self._ways.planned(self._design.within(execution))
        return self._planned[execution]


_SOURCES = tuple(
    str(module.__file__) for module in (design_module, frozen, lean, oracle, executions_module)
)
