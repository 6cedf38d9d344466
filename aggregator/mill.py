"""When what is buffered becomes a version: one commit at a time, an island's contribution by itself."""

from aggregator.deadline import Deadline
from aggregator.lineage import Lineage
from aggregator.lives import Lives
from aggregator.mergebuffer import MergeBuffer
from aggregator.merger import Merger
from aggregator.rounds import Turntable
from aggregator.rows import CommitVersion, Row
from aggregator.stopping import StopRule
from hedgerow.core.outlet import Outlet, Saves


class Mill:
    """Starts commits and knows the one under way; `committing` says whether there is one."""

    def __init__(
        self,
        lineage: Lineage,
        buffer: MergeBuffer,
        merger: Merger,
        *,
        saves: Saves[Row],
        outlet: Outlet,
        turns: Turntable,
        deadline: Deadline,
        lives: Lives,
        stop: StopRule,
        term: int,
    ) -> None:
        self.committing = False
        self._lineage = lineage
        self._buffer = buffer
        self._merger = merger
        self._saves = saves
        self._outlet = outlet
        self._turns = turns
        self._deadline = deadline
        self._lives = lives
        self._stop = stop
        self._term = term

    def turn(self) -> None:
        """Start whatever commit is due; if none is, see to it that the deadline will come."""
        self.begin_life()
        if not self._merge_island() and not self._merge_if(
            due=self._counted() >= self._turns.needed
        ):
            self.arm_deadline()

    def merge_anything(self) -> bool:
        """The deadline is here: merge what waits, however little it is. Return False if nothing can be."""
        return self._merge_if(due=len(self._buffer) > 0)

    def begin_life(self) -> None:
        """Go on under other numbers, if this ledger was put back, before anything else is merged.

        What waits goes along, for after that it would be too old to weigh anything.
        """
        waits = self._buffer.is_saving or (len(self._buffer) > 0 and not self._lives.heard)
        if not self._lives.due or self.committing or waits:
            return
        version = self._lineage.version
        entries = self._buffer.drain() if self._stop.may_merge(version) else []
        commit = self._merger.fold(entries, self._term, self._lives.number(version))
        if entries:
            self._deadline.cancel()
            self._merge(commit)
        else:
            self._save(commit)

    def durable(self, commit: CommitVersion) -> None:
        """The commit under way is on disk."""
        self.committing = False
        self._lives.took(commit.descriptor)
        self._merger.params = commit.params

    def arm_deadline(self) -> None:
        """Let the deadline come if anything is waited for."""
        expected = self._turns.sample is not None or len(self._buffer)
        if expected and not self._stop.done:
            self._deadline.arm()

    def _counted(self) -> int:
        """Return how many buffered updates count towards a merge: in a round, those of its own version."""
        if self._turns.sample is None:
            return len(self._buffer)
        return self._buffer.count_since(self._lineage.version)

    def _may_merge(self) -> bool:
        free = not self.committing and self._lives.heard and not self._lives.due
        return free and self._stop.may_merge(self._lineage.version)

    def _merge_if(self, *, due: bool) -> bool:
        """Merge everything buffered, if it is due and nothing stands in the way."""
        if not due or not self._may_merge():
            return False
        self._deadline.cancel()
        self._merge(self._merger.fold(self._buffer.drain(), self._term))
        return True

    def _merge_island(self) -> bool:
        """Merge one island's contribution, if there is any and nothing stands in the way."""
        entries = self._buffer.drain_island() if self._may_merge() else []
        if entries:
            self._outlet.record("island_merged", updates=len(entries[0].partial.headers))
            self._merge(self._merger.fold(entries, self._term))
        return bool(entries)

    def _merge(self, commit: CommitVersion) -> None:
        self._outlet.record("merged", updates=len(commit.headers))
        self._turns.close()
        self._save(commit)

    def _save(self, commit: CommitVersion) -> None:
        self.committing = True
        self._saves.save(commit)
