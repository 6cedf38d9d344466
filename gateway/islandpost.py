"""What islands came to, on its way to the aggregator: contributions, each held until it is answered."""

from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace

from gateway.held import HeldUpdates
from gateway.islandmerge import MOST_MERGED, IslandBase, Merged, change, segments
from hedgerow.core.messages import (
    Header,
    IslandResult,
    Partial,
    PartialReply,
    Receipt,
    Update,
    UpdateId,
)
from hedgerow.core.outlet import Outlet
from hedgerow.core.units import Vector
from hedgerow.core.versions import is_provisional


class Way(Protocol):
    """The way up that contributions take, the same as any partial's."""

    def island_partial(self, headers: list[Header], result: IslandResult) -> Partial:
        """Return a partial of this gateway, with an id of its own."""

    def fits(self, partial: Partial) -> bool:
        """Whether the present way can take a partial of this size."""

    def send(self, partial: Partial) -> None:
        """Send a partial towards the aggregator."""

    def take_receipts(self, receipts: list[Receipt]) -> None:
        """Take final receipts and pass each on."""


@dataclass
class Contribution:
    """Some merges of an island, and their sum where it is at hand."""

    base: IslandBase
    term: int
    merges: list[Merged]
    delta: Vector | None = None

    @property
    def ids(self) -> list[UpdateId]:
        """The updates in it."""
        return [update_id for one in self.merges for update_id in one.ids]


class Contributions:
    """Posts contributions one by one, and builds one anew without the updates that are known already."""

    def __init__(self, gateway: str, held: HeldUpdates, way: Way, outlet: Outlet) -> None:
        self._gateway = gateway
        self._held = held
        self._way = way
        self._outlet = outlet
        self._waiting: list[Contribution] = []
        self._posted: dict[str, Contribution] = {}

    def __len__(self) -> int:
        """Return how many are not answered yet."""
        return len(self._waiting) + len(self._posted)

    def give(self, base: IslandBase, term: int, merges: list[Merged], delta: Vector) -> None:
        """Take all merges of an island that ended, and the sum of their steps, shape (p,)."""
        groups = segments(one for one in merges if one.ids)
        for group in groups:
            whole = delta if len(groups) == 1 else None
            self._waiting.append(Contribution(base, term, group, whole))

    def give_late(self, base: IslandBase, term: int, updates: list[Update]) -> None:
        """Take updates of an island's versions that came after its end: one step of their own."""
        for start in range(0, len(updates), MOST_MERGED):
            ids = [update.id for update in updates[start : start + MOST_MERGED]]
            self._held.move(ids, "island")
            self._waiting.append(Contribution(base, term, [Merged(ids, [0] * len(ids))]))

    def post(self) -> bool:
        """Post what waits; False where something still does, because it is too large for the present way."""
        waiting, self._waiting = self._waiting, []
        self._waiting = [one for one in waiting if not self._post(one)]
        return not self._waiting

    def _post(self, one: Contribution) -> bool:
        # An update may have been settled meanwhile, by another gateway's post.
        gone = {update_id for update_id in one.ids if update_id not in self._held.buffer}
        if gone:
            one.merges, one.delta = [merged.without(gone) for merged in one.merges], None
        updates = {update_id: self._held.buffer[update_id].update for update_id in one.ids}
        if not updates:
            return True
        delta = change(one.merges, updates, one.base) if one.delta is None else one.delta
        partial = self._way.island_partial(
            [_header(update, one.base) for update in updates.values()],
            IslandResult(
                self._gateway,
                one.term,
                one.base.version,
                list(one.base.plan.names),
                sum(bool(merged.ids) for merged in one.merges),
                delta.astype("<f4").tobytes(),
            ),
        )
        if not self._way.fits(partial):
            one.delta = delta
            self._outlet.record("partial_held_back", reason="packet-size")
            return False
        self._posted[partial.id] = one
        self._held.move(updates, "posted")
        self._outlet.record("island_posted", len(updates))
        self._way.send(partial)
        return True

    def take_reply(self, reply: PartialReply) -> bool:
        """Take the answer to a contribution; False where the partial was none."""
        one = self._posted.pop(reply.partial_id, None)
        if one is None:
            return False
        self._outlet.record("partial_answered", reason=reply.status)
        if reply.status == "accepted":
            self._held.move(one.ids, "accepted")
        elif reply.status == "rejected":
            self._rejected(one, reply.reason or "rejected")
        else:
            self._overlapping(one, reply.receipts)
        return True

    def undelivered(self, partial: Partial) -> bool:
        """A post failed, or its answer was lost: it waits again; False where the partial was none."""
        one = self._posted.pop(partial.id, None)
        if one is None:
            return False
        self._held.move(one.ids, "island")
        self._waiting.append(one)
        return True

    def _overlapping(self, one: Contribution, receipts: list[Receipt]) -> None:
        """Leave out those that the aggregator knows; the others' sum is made anew."""
        known = {receipt.id for receipt in receipts}
        self._held.move((r.id for r in receipts if r.status == "admitted"), "accepted")
        self._way.take_receipts([r for r in receipts if r.status in ("settled", "rejected")])
        rest = [merged.without(known) for merged in one.merges]
        self._outlet.record("island_overlap", len(known))
        again = Contribution(one.base, one.term, rest)
        if known and again.ids:
            self._held.move(again.ids, "island")
            self._waiting.append(again)
        elif again.ids:
            # An overlap that names nobody: another post would be answered alike.
            self._rejected(again, "overlap")

    def _rejected(self, one: Contribution, reason: str) -> None:
        """The aggregator has no use for it: only its own versions' updates may go up by themselves."""
        ids = one.ids
        held = [self._held.buffer[i].update for i in ids if i in self._held.buffer]
        self._outlet.record("island_rejected", reason=reason)
        alone = [update.id for update in held if not is_provisional(update.base_version)]
        self._held.move(alone, "pending")
        lost = [update.id for update in held if is_provisional(update.base_version)]
        self._way.take_receipts(self._held.rejections(lost, reason))


def _header(update: Update, base: IslandBase) -> Header:
    own = is_provisional(update.base_version) and update.plan_id == base.plan.plan_id
    return update.header if own else replace(update.header, plan_id=update.plan_id)
