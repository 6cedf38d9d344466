"""What goes up to the aggregator: partial aggregates of the pending updates, and what their replies mean."""

from collections import defaultdict
from collections.abc import Iterable

from gateway.held import HeldUpdates
from gateway.relay import Relay
from hedgerow.core import names
from hedgerow.core.effects import Send
from hedgerow.core.messages import (
    BucketSums,
    Header,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    Update,
    UpdateId,
)
from hedgerow.core.outlet import Outlet
from hedgerow.core.partial import Accumulator, PartialAggregate, frame_for, to_wire
from hedgerow.core.plan import Plan
from hedgerow.core.planbook import header_of
from hedgerow.core.quantize import decode_delta
from hedgerow.core.rules import Rules

MAX_BUCKETS = 8
_UPDATE_OVERHEAD_BYTES = 160
_BUCKET_OVERHEAD_BYTES = 120
_NORM_BYTES = 5
"""One unit's sum of squared norms, a whole number in MessagePack."""


def group_for_partials(updates: Iterable[Update], newest: Rules) -> list[list[Update]]:
    """Cut pending updates into groups of one partial aggregate each.

    A group has at most `count_max` updates, so that no int32 sum can overflow, and at most eight buckets.
    Updates of one base version stay together as far as the bounds allow.
    """
    groups: list[list[Update]] = []
    buckets: set[tuple[str, int]] = set()
    for update in sorted(updates, key=lambda u: (u.base_version, u.plan_id)):
        base = 0 if newest.staleness.decays_at_gateway else update.base_version
        bucket = (update.plan_id, base)
        full = not groups or len(groups[-1]) >= newest.count_max
        if full or len(buckets | {bucket}) > MAX_BUCKETS:
            groups.append([])
            buckets = set()
        groups[-1].append(update)
        buckets.add(bucket)
    return groups


def sum_updates(updates: Iterable[Update], relay: Relay) -> PartialAggregate:
    """Return the partial aggregate of checked updates, in the frame of the newest version known here."""
    assert relay.newest is not None
    sums = Accumulator()
    for update in updates:
        plan, base = relay.plan(update.plan_id), relay.rules(update.base_version)
        frame = frame_for(base, update.base_version, relay.newest.rules, relay.version)
        sums.add(update.header, decode_delta(update, plan), plan, base, frame)
    return sums.result()


def _sum_bytes(plan: Plan) -> int:
    return 4 * plan.size + _NORM_BYTES * len(plan.names) + _BUCKET_OVERHEAD_BYTES


class Forwarder:
    """Posts partial aggregates and follows each update in them to its end."""

    def __init__(
        self,
        held: HeldUpdates,
        relay: Relay,
        outlet: Outlet,
        *,
        gateway: str,
        model: str,
        boot: int,
    ) -> None:
        self._held = held
        self._relay = relay
        self._outlet = outlet
        self._gateway = gateway
        self._model = model
        self._boot = boot
        self._count = 0
        self._posts: dict[str, list[UpdateId]] = {}
        self._doubted: set[UpdateId] = set()

    def flush(self) -> None:
        """Post everything pending.

        Updates too old to be summed here go up as they are: only the ledger knows whether one of them was
        applied before, so it is for the aggregator to call them settled or stale.
        """
        newest = self._relay.newest
        if newest is None:
            return
        pending = self._held.pending()
        fresh = [update for update in pending if self._can_sum(update)]
        late = [update for update in pending if not self._can_sum(update)]
        for group in group_for_partials(fresh, newest.rules):
            self._post(group, self._sums(group))
        for start in range(0, len(late), newest.rules.count_max):
            self._post(late[start : start + newest.rules.count_max], [])

    def _can_sum(self, update: Update) -> bool:
        """Whether the update was checked on admission, which one too old is not, and its rules are known."""
        base = update.base_version
        return self._relay.knows(base) and not self._relay.is_stale(base)

    def _post(self, group: list[Update], sums: list[BucketSums]) -> None:
        """Post one group as `sums`, or as the updates themselves where there are none."""
        self._count += 1
        partial = Partial(
            id=f"{self._gateway}-{self._boot:x}-{self._count}",
            gateway=self._gateway,
            model=self._model,
            at_version=self._relay.version,
            headers=[self._header(update) for update in group],
            sums=sums,
            updates=[] if sums else group,
        )
        ids = [update.id for update in group]
        self._posts[partial.id] = ids
        self._held.move(ids, "posted")
        self._outlet.record("partial_posted", kind="sums" if sums else "updates")
        self._outlet.do(Send(names.AGGREGATOR, partial))

    def _header(self, update: Update) -> Header:
        """Return an update's header, which names its plan where that is not its base version's own."""
        if not self._relay.knows(update.base_version):
            return update.header
        return header_of(update, self._relay.descriptor(update.base_version))

    def _sums(self, group: list[Update]) -> list[BucketSums]:
        """Return the group's sums, or none where the updates themselves cost fewer bytes or do not fit."""
        assert self._relay.newest is not None
        if self._relay.newest.individual:
            return []
        decays = self._relay.newest.rules.staleness.decays_at_gateway
        buckets = {(u.plan_id, 0 if decays else u.base_version) for u in group}
        as_updates = sum(len(u.payload) + len(u.scales) + _UPDATE_OVERHEAD_BYTES for u in group)
        as_sums = sum(_sum_bytes(self._relay.plan(plan_id)) for plan_id, _ in buckets)
        if as_updates <= as_sums:
            return []
        try:
            return to_wire(sum_updates(group, self._relay))
        except OverflowError:
            # The scale was fixed by rules with a lower count_max or cap than the newest ones.
            return []

    def take_reply(self, reply: PartialReply) -> None:
        """Take the aggregator's answer to a partial of ours; a repeated answer changes nothing."""
        ids = self._posts.pop(reply.partial_id, None)
        if ids is None:
            return
        self._outlet.record("partial_answered", reason=reply.status)
        if reply.status == "accepted":
            self._held.move(ids, "accepted")
            return
        if reply.status == "rejected":
            # No other try can help: the aggregator found the whole partial unusable.
            self.take_receipts([Receipt(i, "rejected", reply.reason or "rejected") for i in ids])
            return
        # Those that the reply does not name are pending again and go into a new partial.
        self._held.move(ids, "pending")
        self._held.move((r.id for r in reply.receipts if r.status == "admitted"), "accepted")
        self.take_receipts([r for r in reply.receipts if r.status in ("settled", "rejected")])

    def undelivered(self, partial: Partial) -> None:
        """A post failed, or its answer was lost: its updates are pending again."""
        self._held.move(self._posts.pop(partial.id, []), "pending")

    def post_again(self) -> None:
        """A new aggregator term: whatever is not settled is posted again; known ids do no harm."""
        self._held.move(self._held.in_stage("accepted"), "pending")

    def doubt(self) -> None:
        """Post again what was accepted long ago: a receipt may be lost, or have gone to another gateway.

        Called at intervals well above a merge's; two calls in a row must find an update still unsettled.
        """
        accepted = set(self._held.in_stage("accepted"))
        again = [update_id for update_id in accepted if update_id in self._doubted]
        self._doubted = accepted.difference(again)
        if again:
            self._outlet.record("posted_again", len(again), reason="no-receipt")
            self._held.move(sorted(again), "pending")

    def take_receipts(self, receipts: list[Receipt]) -> None:
        """Take final receipts and pass each on to its node."""
        by_node: dict[str, list[Receipt]] = defaultdict(list)
        for receipt in receipts:
            self._held.close(receipt)
            by_node[receipt.id.node].append(receipt)
            self._outlet.record(f"update_{receipt.status}", reason=receipt.reason)
        for node, own in by_node.items():
            self._outlet.do(Send(names.node_peer(node), Receipts(receipts=own)))
