"""The acting gateway's work: merges what is pending into provisional versions, serves and keeps them."""

from collections.abc import Mapping
from typing import Protocol

import msgspec

from gateway.checks import is_sound
from gateway.held import HeldUpdates
from gateway.islandmerge import MOST_MERGED, Merged
from gateway.islandwork import IslandWork, restored
from gateway.relay import Relay
from hedgerow.core.config import IslandConfig
from hedgerow.core.effects import CancelTimer, SetTimer
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Update
from hedgerow.core.outlet import Outlet

MERGE_TIMER = "island-merge"
_SECOND_US = 1_000_000


class Keeper(Protocol):
    """What keeps rows of an island on the gateway's disk."""

    def keep(self, name: str, body: bytes) -> None:
        """Keep a row, in the place of the last of that name."""

    def drop(self) -> None:
        """Drop all rows."""


class IslandMaker:
    """Makes one island after another; `work` is the present one, None between them."""

    def __init__(
        self,
        config: IslandConfig,
        held: HeldUpdates,
        relay: Relay,
        outlet: Outlet,
        keeper: Keeper,
    ) -> None:
        self.work: IslandWork | None = None
        self._config = config
        self._held = held
        self._relay = relay
        self._outlet = outlet
        self._keeper = keeper
        self._timer_set = False

    def restore(self, gateway: str, rows: Mapping[str, bytes]) -> None:
        """Take up the rows of a former life; its updates must be held again by now.

        Those that are not are left out. Rows that cannot be read are dropped and counted.
        """
        if "island" not in rows:
            return
        try:
            merges = _merges(rows)
            work = restored(gateway, rows["island"], merges)
            updates = {i: self._held.buffer[i].update for i in work.ids if i in self._held.buffer}
            work.without(set(work.ids).difference(updates), updates)
        except (PeerError, msgspec.MsgspecError, ValueError, KeyError) as error:
            self._outlet.record("island_lost", reason="unreadable", detail=str(error))
            self._keeper.drop()
            return
        self.work = work
        self._held.move(updates, "island")
        self._outlet.record("island_restored", len(updates), merges=len(merges))

    def begin(self, work: IslandWork) -> None:
        """Take up a new island."""
        # Rows of an island before would be taken for this one's.
        self._keeper.drop()
        self.work = work

    def serve_from(self, term: int) -> None:
        """Serve the present island's versions under another term from now on."""
        assert self.work is not None
        self.work.terms.append(term)
        self._keeper.keep("island", self.work.kept())
        self._relay.take_made(*self.work.next_version())

    def act(self) -> None:
        """Merge if enough is pending, else set the timer if anything is."""
        found = self._mergeable() if self._held.pending_count() else []
        if len(found) >= self._config.buffer_size:
            self._merge(found)
        elif found and not self._timer_set:
            self._timer_set = True
            self._outlet.do(SetTimer(MERGE_TIMER, round(self._config.deadline_s * _SECOND_US)))

    def timer_fired(self) -> None:
        """The deadline: merge what is pending."""
        self._timer_set = False
        self._merge(self._mergeable())

    def finish(self) -> IslandWork | None:
        """End the island with a last merge, and return it."""
        if self.work is not None:
            self._merge(self._mergeable(), last=True)
        work, self.work = self.work, None
        self._cancel_timer()
        return work

    def give_up(self) -> None:
        """End the island; what it merged is pending again."""
        if self.work is not None:
            self._held.move(self.work.ids, "pending")
        self.work = None
        self._cancel_timer()
        self._keeper.drop()

    def _mergeable(self) -> list[Update]:
        """Return the pending updates that this island can merge."""
        work = self.work
        if work is None or work.full:
            return []
        return [
            update
            for update in self._held.pending()
            if work.base.takes(update)
            and is_sound(self._relay, self._held.buffer[update.id], self._outlet)
        ][:MOST_MERGED]

    def _merge(self, updates: list[Update], *, last: bool = False) -> None:
        self._cancel_timer()
        work = self.work
        if work is None or not updates:
            return
        work.merge(updates)
        self._held.move((update.id for update in updates), "island")
        number = len(work.merges)
        self._keeper.keep(f"merge-{number:07d}", msgspec.msgpack.encode(work.merges[-1]))
        self._outlet.record("island_merged", len(updates), term=work.terms[-1], merges=number)
        if not last:
            self._relay.take_made(*work.next_version())

    def _cancel_timer(self) -> None:
        if self._timer_set:
            self._timer_set = False
            self._outlet.do(CancelTimer(MERGE_TIMER))


def _merges(rows: Mapping[str, bytes]) -> list[Merged]:
    names = sorted(name for name in rows if name.startswith("merge-"))
    return [msgspec.msgpack.decode(rows[name], type=Merged) for name in names]
