"""When updates come to the disk and leave it, and residuals with them.

The end of an update is written with the next one or a little later, for writes wear a flash card.

What a crash forgets of it is offered again, and settled again.
"""

from edge_node.feedback import Residuals
from edge_node.rows import CloseUpdate, KeepPersonal, KeepResidual, NewEpoch, PutUpdate, Row
from hedgerow.core.effects import SetTimer
from hedgerow.core.outlet import Outlet, Saves

CLOSE_TIMER = "close"
_LATER_US = 5_000_000


class Closing:
    """Rows that wait to be written with others.

    `failures` is how often the disk has refused an update since it last had none waiting.
    """

    def __init__(self, outlet: Outlet, saves: Saves[Row], residuals: Residuals) -> None:
        self.failures = 0
        self._outlet = outlet
        self._saves = saves
        self._residuals = residuals
        self._rows: list[PutUpdate | CloseUpdate | KeepPersonal | NewEpoch] = []
        self._due = False

    @property
    def saving(self) -> bool:
        """Whether an update, or the epoch of those to come, is not durable yet."""
        waiting = (*self._rows, *self._saves.waiting)
        return any(isinstance(row, PutUpdate | NewEpoch) for row in waiting)

    def waits(self, outcome: str) -> bool:
        """Whether an end of this kind is not durable yet."""
        waiting = (*self._rows, *self._saves.waiting)
        return any(isinstance(row, CloseUpdate) and row.outcome == outcome for row in waiting)

    def later(self, rows: list[CloseUpdate]) -> None:
        """Write these rows soon."""
        if rows and not self._rows:
            self._outlet.do(SetTimer(CLOSE_TIMER, _LATER_US))
        self._rows += rows

    def save(self, *rows: PutUpdate | CloseUpdate | KeepPersonal | NewEpoch) -> None:
        """Write what waits, and `rows`, in one transaction: now, or after one that must come first."""
        self._rows += rows
        self._due = self._must_wait()
        if self._rows and not self._due:
            waiting, self._rows = self._rows, []
            self._saves.save(*waiting, *self._residuals.changed_rows())

    def saved(self) -> None:
        """A transaction has ended well: go on with what waited for it."""
        if self._due:
            self.save()
        if not self.saving:
            self.failures = 0

    def failed(self) -> None:
        """A transaction has failed."""
        self.failures += self.saving

    def _must_wait(self) -> bool:
        """Whether another transaction must be durable first.

        Residuals are written whole: of two on their way the older one might come last, after a failure. And
        no update may be there before its epoch is.
        """
        residuals = self._residuals.changed
        return any(
            isinstance(row, NewEpoch) or (residuals and isinstance(row, KeepResidual))
            for row in self._saves.waiting
        )
