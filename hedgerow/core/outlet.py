"""Where the parts of one protocol put their effects, and how rows are saved until they are durable."""

from typing import Any, Generic, TypeVar

from hedgerow.core.effects import Effect, JobFailed, Record, Save, SetTimer

R = TypeVar("R")

SAVE_TIMER = "save"
_SAVE_RETRY_US = 10_000_000


class Outlet:
    """The effects of one input, in order, shared by the parts of a protocol; it numbers jobs, too."""

    def __init__(self) -> None:
        self._effects: list[Effect] = []
        self._job = 0

    def do(self, effect: Effect) -> None:
        """Ask for an effect."""
        self._effects.append(effect)

    def record(self, event: str, amount: int = 1, **fields: Any) -> None:
        """Ask for an event to be counted and logged."""
        self.do(Record(event, amount, fields))

    def next_job(self) -> int:
        """Return a fresh job number."""
        self._job += 1
        return self._job

    def drain(self) -> list[Effect]:
        """Return the effects and forget them."""
        out, self._effects = self._effects, []
        return out


class Saves(Generic[R]):
    """Rows on their way to the disk. A failed save is tried again, whole, until the disk takes it."""

    def __init__(self, outlet: Outlet) -> None:
        self._outlet = outlet
        self._under_way: dict[int, tuple[R, ...]] = {}
        self._failed: list[tuple[R, ...]] = []

    def save(self, *rows: R) -> None:
        """Ask for rows to be made durable in one transaction."""
        job = self._outlet.next_job()
        self._under_way[job] = rows
        self._outlet.do(Save(job, rows))

    def __contains__(self, job: int) -> bool:
        return job in self._under_way

    @property
    def waiting(self) -> list[R]:
        """The rows that are not durable yet."""
        return [row for rows in (*self._under_way.values(), *self._failed) for row in rows]

    def done(self, job: int) -> tuple[R, ...]:
        """Take the success of a job and return its rows, durable now."""
        return self._under_way.pop(job)

    def failed(self, result: JobFailed) -> tuple[R, ...]:
        """Take the failure of a job and return its rows, which wait for `retry`."""
        rows = self._under_way.pop(result.job)
        self._failed.append(rows)
        self._outlet.record("save_failed", reason="disk", detail=result.detail)
        self._outlet.do(SetTimer(SAVE_TIMER, _SAVE_RETRY_US))
        return rows

    def retry(self) -> None:
        """Try what failed again, oldest first."""
        failed, self._failed = self._failed, []
        for rows in failed:
            self.save(*rows)
