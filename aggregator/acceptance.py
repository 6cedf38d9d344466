"""Taking partial aggregates in: known, overlapping, refused, or made durable and only then accepted."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from aggregator.intake import read_partial
from aggregator.lineage import Lineage
from aggregator.mergebuffer import MergeBuffer
from aggregator.refusal import Refusal, RefusalReason
from aggregator.rows import AcceptPartial, Row, SetAside
from hedgerow.core import names
from hedgerow.core.effects import Send
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Header, Partial, PartialReply, Receipt
from hedgerow.core.outlet import Outlet, Saves
from hedgerow.core.versions import is_provisional

_MAX_DEFERRED = 256
_RETRY_AFTER_S: dict[RefusalReason, int] = {"busy": 5, "disk": 10, "new-life": 1}
Answer = Literal["accepted", "known", "overlap", "rejected"]


@dataclass(frozen=True, slots=True)
class _Post:
    """A partial, and the gateway that handed it over: its own, or a peer on its behalf."""

    partial: Partial
    owner: str


class Acceptance:
    """Answers every post once its answer is true on disk, too.

    Once `most_held` updates are held, no post is taken before a merge has made room.
    """

    def __init__(
        self,
        lineage: Lineage,
        buffer: MergeBuffer,
        saves: Saves[Row],
        outlet: Outlet,
        *,
        most_held: int,
    ) -> None:
        self._lineage = lineage
        self._buffer = buffer
        self._saves = saves
        self._outlet = outlet
        self._most_held = most_held
        self._deferred: list[_Post] = []
        self._asking: dict[str, list[str]] = {}
        self._stuck: set[str] = set()

    @property
    def disk_refuses(self) -> bool:
        """Whether a partial cannot be made durable now; it is tried again."""
        return bool(self._stuck)

    def take(self, partial: Partial, owner: str) -> None:
        """Take a post. One that repeats a partial on its way to the disk is answered with that one."""
        post = _Post(partial, owner)
        if self._buffer.is_accepting(partial.id):
            self._ask_again(post)
        elif self._buffer.is_accepting_any(partial.headers):
            self._defer(post)
        else:
            self._decide(post)

    def reject(self, partial: Partial, owner: str, error: PeerError) -> None:
        """Answer a post that no other try can mend."""
        self._outlet.record("partial_rejected", reason=error.reason, detail=error.detail)
        self._reply(_Post(partial, owner), "rejected", reason=error.reason)

    def put_off(self, partial: Partial, owner: str) -> None:
        """Answer a post that must wait for a new life of version numbers."""
        self._refuse(_Post(partial, owner), "new-life")

    def durable(self, partial: Partial) -> None:
        """An accepted partial is on disk: answer it, and what waited to learn its fate."""
        self._buffer.durable(partial.id)
        self._stuck.discard(partial.id)
        for owner in self._asking.pop(partial.id, []):
            self._reply(_Post(partial, owner), "accepted")
        self._take_deferred()

    def failed(self, rows: Iterable[Row]) -> None:
        """The disk did not take rows, which are saved again later; nobody need wait for that."""
        for partial in (row.partial for row in rows if isinstance(row, AcceptPartial)):
            self._stuck.add(partial.id)
            for owner in self._asking.pop(partial.id, []):
                self._refuse(_Post(partial, owner), "disk")
        self._take_deferred()

    def restore(self, waiting: Iterable[Partial]) -> None:
        """Take up the partials found on disk at the start.

        One that does not fit what is known is set aside: its updates are unknown again and may come again.
        """
        for partial in waiting:
            self._restore(partial)

    def _restore(self, partial: Partial) -> None:
        try:
            repeated = [h.id for h in partial.headers if self._buffer.receipt(h, partial.gateway)]
            if repeated:
                raise PeerError("inconsistent", f"{repeated[0]} is known already")
            self._buffer.accept(read_partial(partial, self._lineage), partial.gateway)
        except PeerError as error:
            self._outlet.record(
                "partial_set_aside", reason=error.reason, detail=error.detail, level="error"
            )
            self._saves.save(SetAside(partial.id, error.reason))
            return
        self._buffer.durable(partial.id)

    def _decide(self, post: _Post) -> None:
        partial = post.partial
        fates = [self._fate(header, post) for header in partial.headers]
        receipts = [receipt for receipt in fates if receipt is not None]
        if receipts:
            whole = len(receipts) == len(partial.headers)
            self._reply(post, "known" if whole else "overlap", receipts)
        elif partial.island is None and self._lineage.is_lost(partial.at_version):
            self._refuse(post, "new-life")
        elif self._stuck:
            self._refuse(post, "disk")
        elif self._buffer.held >= self._most_held:
            self._refuse(post, "busy")
        else:
            self._admit(post)

    def _admit(self, post: _Post) -> None:
        partial = post.partial
        try:
            self._check_id(partial)
            entry = read_partial(partial, self._lineage)
        except PeerError as error:
            self.reject(partial, post.owner, error)
            return
        self._buffer.accept(entry, post.owner)
        self._asking[partial.id] = [post.owner]
        self._saves.save(AcceptPartial(partial))

    def _ask_again(self, post: _Post) -> None:
        """A partial on its way to the disk was posted again, perhaps by another way."""
        asking = self._asking.setdefault(post.partial.id, [])
        if post.partial.id in self._stuck:
            self._refuse(post, "disk")
        elif post.owner not in asking:
            asking.append(post.owner)
            for header in post.partial.headers:
                self._buffer.receipt(header, post.owner)

    def _defer(self, post: _Post) -> None:
        if self._stuck:
            self._refuse(post, "disk")
        elif len(self._deferred) >= _MAX_DEFERRED:
            self._refuse(post, "busy")
        else:
            self._deferred.append(post)

    def _take_deferred(self) -> None:
        deferred, self._deferred = self._deferred, []
        for waiting in deferred:
            self.take(waiting.partial, waiting.owner)

    def _check_id(self, partial: Partial) -> None:
        if not partial.id.startswith(f"{partial.gateway}-") or self._buffer.holds(partial.id):
            raise PeerError(
                "inconsistent", f"partial id {partial.id} is not a fresh one of its own"
            )

    def _fate(self, header: Header, post: _Post) -> Receipt | None:
        """Return the receipt of an update that must not be summed (again), None for a welcome one."""
        known = self._buffer.receipt(header, post.owner)
        if known is not None:
            if known.reason == "fork":
                self._outlet.record("fork_alarm", **_named(header), level="error")
            return known
        # An update of our own versions that was too old by itself must stay so in an island's contribution,
        # or one that was called stale would still be applied.
        in_island = post.partial.island is not None and is_provisional(header.base_version)
        reason = "" if in_island else _unusable(header.base_version, self._lineage)
        if not reason:
            return None
        self._outlet.record("update_rejected", reason=reason, **_named(header))
        return Receipt(header.id, "rejected", reason, header.hash)

    def _refuse(self, post: _Post, reason: RefusalReason) -> None:
        self._outlet.record("partial_refused", reason=reason)
        refusal = Refusal(post.partial.id, reason, _RETRY_AFTER_S[reason])
        self._outlet.do(Send(names.gateway_peer(post.owner), refusal))

    def _reply(
        self,
        post: _Post,
        status: Answer,
        receipts: list[Receipt] | None = None,
        reason: str = "",
    ) -> None:
        self._outlet.record("partial_answered", reason=status)
        reply = PartialReply(
            partial_id=post.partial.id, status=status, receipts=receipts or [], reason=reason
        )
        self._outlet.do(Send(names.gateway_peer(post.owner), reply))


def _unusable(base: int, lineage: Lineage) -> str:
    """Return why no update of a base version can be merged, "" where one can.

    What is not known here belongs to a history that is gone, or to an island that ended: no other try
    can help.
    """
    is_old = lineage.version - base > lineage.current.rules.staleness.tau_max
    if lineage.knows(base):
        return "stale" if is_old else ""
    if not is_old or is_provisional(base) or lineage.is_lost(base):
        return "unknown-version"
    return "stale"


def _named(header: Header) -> dict[str, Any]:
    """Return an update's name as fields of an event."""
    return {"node": header.id.node, "epoch": header.id.epoch, "seq": header.id.seq}
