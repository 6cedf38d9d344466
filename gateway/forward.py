"""What goes up to the aggregator: partial aggregates of the pending updates, and what their replies mean."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace

from gateway.checks import is_sound
from gateway.held import HeldUpdates
from gateway.relay import Relay
from gateway.way import Way
from hedgerow.core import names
from hedgerow.core.codec import encode
from hedgerow.core.effects import Send
from hedgerow.core.messages import (
    BucketSums,
    Header,
    IslandResult,
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
from hedgerow.core.quantize import decode_delta
from hedgerow.core.rules import Rules
from hedgerow.core.versions import is_provisional

MAX_BUCKETS = 8
_HANDED_TOGETHER = 16
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
    """Return the partial aggregate of checked updates, in the frame of the aggregator's newest version."""
    assert relay.lasting is not None
    sums = Accumulator()
    for update in updates:
        plan, base = relay.plan(update.plan_id), relay.rules(update.base_version)
        frame = frame_for(base, update.base_version, relay.lasting.rules, relay.version)
        sums.add(_header(update), decode_delta(update, plan), plan, base, frame)
    return sums.result()


def _header(update: Update) -> Header:
    """Return an update's header without the hash: to compute that reads the whole update."""
    return Header(update.id, update.base_version, update.examples, update.kappa)


def _sum_bytes(plan: Plan) -> int:
    return 4 * plan.size + _NORM_BYTES * len(plan.names) + _BUCKET_OVERHEAD_BYTES


class Forwarder:
    """Posts partial aggregates and follows each update in them to its end."""

    def __init__(
        self,
        held: HeldUpdates,
        relay: Relay,
        way: Way,
        outlet: Outlet,
        *,
        gateway: str,
        boot: int,
    ) -> None:
        self._held = held
        self._relay = relay
        self._way = way
        self._outlet = outlet
        self._gateway = gateway
        self._boot = boot
        self._count = 0
        self._posts: dict[str, list[UpdateId]] = {}
        self._doubted: set[UpdateId] = set()

    def flush(self) -> None:
        """Post everything pending of the aggregator's own versions.

        Updates too old to be summed here go up as they are: only the ledger knows whether one of them was
        applied before, so it is for the aggregator to call them settled or stale.
        """
        if self._way.route.to_island:
            self._hand_over()
            return
        lasting = self._relay.lasting
        if lasting is None:
            return
        pending = [u for u in self._held.pending() if not is_provisional(u.base_version)]
        sound, unsound, late = self._sorted(pending)
        most = lasting.rules.count_max
        partials: list[Partial] = []
        for group in group_for_partials(sound, lasting.rules):
            partials += self._partials(group, summed=True)
        for start in range(0, len(late), most):
            partials += self._partials(late[start : start + most], summed=False)
        for update in unsound:  # each alone: the aggregator refuses a whole partial for one of them
            partials += self._partials([update], summed=False)
        self._way.post(partials)

    def _hand_over(self) -> None:
        """Give everything pending, as it is, to the acting aggregator of an island."""
        pending = self._held.pending()
        partials: list[Partial] = []
        for start in range(0, len(pending), _HANDED_TOGETHER):
            partials += self._partials(pending[start : start + _HANDED_TOGETHER], summed=False)
        self._way.post(partials)

    def _sorted(self, updates: Iterable[Update]) -> tuple[list[Update], list[Update], list[Update]]:
        """Return those that can be summed, those whose deltas are wrong, those of unknown or old rules."""
        sound: list[Update] = []
        unsound: list[Update] = []
        late: list[Update] = []
        for update in updates:
            base = update.base_version
            if not self._relay.knows(base) or self._relay.is_stale(base):
                late.append(update)
            elif is_sound(self._relay, self._held.buffer[update.id], self._outlet):
                sound.append(update)
            else:
                unsound.append(update)
        return sound, unsound, late

    def _partials(self, group: list[Update], *, summed: bool) -> list[Partial]:
        """Return partials of one group, posted now: one, or as many as the way's bound asks for."""
        sums = self._sums(group) if summed else []
        partial = self._new_partial(
            [self._header(update) for update in group], sums=sums, updates=[] if sums else group
        )
        most_bytes = self._way.most_bytes
        if most_bytes and len(encode(partial)) > most_bytes:
            return self._split(group, summed=summed)
        ids = [update.id for update in group]
        self._posts[partial.id] = ids
        self._held.move(ids, "posted")
        self._outlet.record("partial_posted", kind="sums" if sums else "updates")
        return [partial]

    def _split(self, group: list[Update], *, summed: bool) -> list[Partial]:
        half = len(group) // 2
        if half:
            return [
                *self._partials(group[:half], summed=summed),
                *self._partials(group[half:], summed=summed),
            ]
        self._outlet.record("partial_held_back", reason="packet-size", node=group[0].id.node)
        self._held.move([group[0].id], "too-large")
        return []

    def _new_partial(self, headers: list[Header], **contents: Any) -> Partial:
        self._count += 1
        # A gateway that took up updates from its disk may not know their versions yet.
        bases = [h.base_version for h in headers if not is_provisional(h.base_version)]
        return Partial(
            id=f"{self._gateway}-{self._boot:x}-{self._count}",
            gateway=self._gateway,
            model=self._relay.model,
            at_version=max(self._relay.version, 0, *bases),
            headers=headers,
            **contents,
        )

    def island_partial(self, headers: list[Header], result: IslandResult) -> Partial:
        """Return a partial of what an island came to; whoever asks follows it to its end."""
        return self._new_partial(headers, island=result)

    def fits(self, partial: Partial) -> bool:
        """Whether the present way can take a partial of this size."""
        most_bytes = self._way.most_bytes
        return not most_bytes or len(encode(partial)) <= most_bytes

    def send(self, partial: Partial) -> None:
        """Send such a partial by the present way."""
        self._way.post([partial])

    def _header(self, update: Update) -> Header:
        """Return an update's header, which names its plan where that is not its base version's own."""
        header, base = _header(update), update.base_version
        own = not self._relay.knows(base) or self._relay.descriptor(base).plan_id == update.plan_id
        plan_id = "" if own else update.plan_id
        return replace(header, plan_id=plan_id, hash=self._held.buffer[update.id].hash)

    def _sums(self, group: list[Update]) -> list[BucketSums]:
        """Return the group's sums, or none where the updates themselves cost fewer bytes or do not fit."""
        lasting = self._relay.lasting
        assert lasting is not None
        if lasting.individual:
            return []
        decays = lasting.rules.staleness.decays_at_gateway
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
            self.take_receipts(self._held.rejections(ids, reply.reason or "rejected"))
            return
        # Those that the reply does not name are pending again and go into a new partial.
        self._held.move(ids, "pending")
        self._held.move((r.id for r in reply.receipts if r.status == "admitted"), "accepted")
        self.take_receipts([r for r in reply.receipts if r.status in ("settled", "rejected")])

    def undelivered(self, partial: Partial) -> None:
        """A post failed, or its answer was lost: its updates are pending again."""
        self._held.move(self._posts.pop(partial.id, []), "pending")

    def way_changed(self) -> None:
        """What was too large for the last way may not be for this one."""
        self._held.move(self._held.in_stage("too-large"), "pending")

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
