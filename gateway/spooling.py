"""Held updates on disk, while there is no way to the aggregator.

The nodes have them all until they are settled, so nothing depends on this: it spares the nodes to send
everything again when a gateway restarts in a long outage, and spares the disk at all other times.
"""

from collections.abc import Iterable

from gateway.held import HeldUpdates
from gateway.rows import DropSpooled, EmptySpool, SpoolUpdate
from hedgerow.core.codec import encode
from hedgerow.core.effects import JobFailed, JobResult, Save, SetTimer
from hedgerow.core.messages import UpdateId
from hedgerow.core.outlet import Outlet

SPOOL_TIMER = "spool"
_BATCH_UPDATES = 64
_BATCH_BYTES = 1 << 20
_GROUP_US = 1_000_000
_RETRY_US = 10_000_000


class Spooling:
    """Saves what is held once there has been no way for `after_us`; one transaction at a time.

    `spooled` is what the disk held at the start.
    """

    def __init__(
        self, after_us: int, held: HeldUpdates, spooled: Iterable[UpdateId], outlet: Outlet
    ) -> None:
        self._after_us = after_us
        self._held = held
        self._outlet = outlet
        self._spooled = dict.fromkeys(spooled)
        self._way = True
        self._active = False
        self._seen: tuple[int, int] | None = None
        self._timer_set = False
        self._job = 0
        self._adding: list[UpdateId] = []
        self._dropping: list[UpdateId] = []

    def __contains__(self, job: int) -> bool:
        return self._job != 0 and job == self._job

    def __len__(self) -> int:
        """Return how many updates are on disk."""
        return len(self._spooled)

    def consider(self, *, way: bool) -> None:
        """Note whether there is a way to the aggregator; called after every input."""
        if way != self._way:
            self._way = way
            self._active = False
            self._set_timer(_GROUP_US if way else self._after_us)
        elif self._active or self._spooled:
            idle = not self._timer_set and not self._job
            if idle and self._changes != self._seen:
                self._set_timer(_GROUP_US)

    @property
    def _changes(self) -> tuple[int, int]:
        """What grows whenever something is held, or held no more."""
        return self._held.buffer.admitted, self._held.buffer.drained

    def timer_fired(self) -> None:
        """Save what is new and drop what is final, if anything."""
        self._timer_set = False
        self._active = not self._way
        if not self._job:
            self._save()

    def _set_timer(self, after_us: int) -> None:
        self._timer_set = True
        self._outlet.do(SetTimer(SPOOL_TIMER, after_us))

    def _save(self) -> None:
        self._seen = self._changes
        self._dropping = [i for i in self._spooled if i not in self._held.buffer]
        self._adding = []
        if self._dropping and not self._active and len(self._dropping) == len(self._spooled):
            self._start(EmptySpool())
        elif self._dropping:
            # By itself: on a full disk there is room to drop rows, but none to add others.
            self._start(DropSpooled(tuple(self._dropping)))
        elif self._active:
            self._add()

    def _add(self) -> None:
        rows: list[SpoolUpdate] = []
        size_bytes = 0
        for held in self._held.buffer.values():
            if held.update.id in self._spooled:
                continue
            rows.append(SpoolUpdate(held.update.id, encode(held.update)))
            size_bytes += len(rows[-1].body)
            if len(rows) >= _BATCH_UPDATES or size_bytes >= _BATCH_BYTES:
                break
        if rows:
            self._adding = [row.id for row in rows]
            self._start(*rows)

    def _start(self, *rows: SpoolUpdate | DropSpooled | EmptySpool) -> None:
        self._job = self._outlet.next_job()
        self._outlet.do(Save(self._job, rows))

    def job_done(self, result: JobResult) -> None:
        """Take what became of the transaction; a failed one is tried again after a while."""
        self._job = 0
        if isinstance(result, JobFailed):
            self._outlet.record("save_failed", reason="disk", detail=result.detail)
            self._set_timer(_RETRY_US)
            return
        self._spooled.update(dict.fromkeys(self._adding))
        for update_id in self._dropping:
            self._spooled.pop(update_id, None)
        if self._adding:
            self._outlet.record("update_spooled", len(self._adding))
        self._save()
