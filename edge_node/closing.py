"""When updates come to the disk and leave it, and residuals with them.

The end of an update is written with the next one or a little later, for writes wear a flash card.

What a crash forgets of it is offered again, and settled again.
"""

from edge_node.feedback import Residuals
from edge_node.rows import CloseUpdate, KeepPersonal, KeepResidual, PutUpdate, Row
from hedgerow.core.effects import SetTimer
from hedgerow.core.outlet import Outlet, Saves

CLOSE_TIMER = "close"
_LATER_US = 5_000_000


class Closing:
    """Rows that wait to be written with others."""

    def __init__(self, outlet: Outlet, saves: Saves[Row], residuals: Residuals) -> None:
        self._outlet = outlet
        self._saves = saves
        self._residuals = residuals
        self._rows: list[PutUpdate | CloseUpdate | KeepPersonal] = []
        self._due = False

    @property
    def saving(self) -> bool:
        """Whether an update is not durable yet."""
        return any(isinstance(row, PutUpdate) for row in (*self._rows, *self._saves.waiting))

    def later(self, rows: list[CloseUpdate]) -> None:
        """Write these rows soon."""
        if rows and not self._rows:
            self._outlet.do(SetTimer(CLOSE_TIMER, _LATER_US))
        self._rows += rows

    def save(self, *rows: PutUpdate | CloseUpdate | KeepPersonal) -> None:
        """Write what waits, and `rows`, in one transaction: now, or after the last one with residuals.

        Those are written whole: of two on their way the older one might come last, after a failure.
        """
        self._rows += rows
        self._due = any(isinstance(row, KeepResidual) for row in self._saves.waiting)
        if self._rows and not self._due:
            waiting, self._rows = self._rows, []
            self._saves.save(*waiting, *self._residuals.changed_rows())

    def saved(self) -> None:
        """A transaction has ended well: go on with what waited for it."""
        if self._due:
            self.save()
