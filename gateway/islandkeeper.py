"""Rows of an island on their way to the gateway's disk.

Nothing depends on them: without, an island begins again at the aggregator's version after a restart. So a
row that the disk does not take is counted and given up.
"""

from gateway.rows import DropIsland, KeepIsland
from hedgerow.core.effects import JobFailed, JobResult, Save
from hedgerow.core.outlet import Outlet


class IslandKeeper:
    """Keeps rows by name; `any_kept` says whether there were any at the start."""

    def __init__(self, outlet: Outlet, *, any_kept: bool) -> None:
        self._any = any_kept
        self._outlet = outlet
        self._jobs: set[int] = set()

    def keep(self, name: str, body: bytes) -> None:
        """Keep a row, in the place of the last of that name."""
        self._any = True
        self._save(KeepIsland(name, body))

    def drop(self) -> None:
        """Drop all rows."""
        if self._any:
            self._any = False
            self._save(DropIsland())

    def job_done(self, result: JobResult) -> bool:
        """Take the end of a job; False where it is none of its own."""
        if result.job not in self._jobs:
            return False
        self._jobs.discard(result.job)
        if isinstance(result, JobFailed):
            self._outlet.record("island_not_kept", reason="disk", detail=result.detail)
        return True

    def _save(self, row: KeepIsland | DropIsland) -> None:
        job = self._outlet.next_job()
        self._jobs.add(job)
        self._outlet.do(Save(job, (row,)))
