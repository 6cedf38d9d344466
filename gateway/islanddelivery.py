"""After an island: its contributions on their way up, and updates of its versions that come late."""

from collections.abc import Iterable

from gateway.checks import is_sound
from gateway.held import HeldUpdates
from gateway.islandmerge import IslandBase
from gateway.islandpost import Contributions, Way
from gateway.islandwork import IslandWork
from gateway.relay import Relay
from hedgerow.core.effects import SetTimer
from hedgerow.core.messages import Partial, PartialReply, Update, UpdateId
from hedgerow.core.outlet import Outlet
from hedgerow.core.versions import is_provisional, term_of

POST_TIMER = "island-post"
_LATE_US = 10_000_000
"""How long late updates are gathered for one contribution."""

_BASES_KEPT = 8


class IslandDelivery:
    """Delivers what islands came to. Of late updates each contribution is one step of their own.

    An island that nobody here remembers is taken to have begun at the oldest version known here.
    """

    def __init__(
        self, gateway: str, held: HeldUpdates, relay: Relay, way: Way, outlet: Outlet
    ) -> None:
        self._held = held
        self._relay = relay
        self._way = way
        self._outlet = outlet
        self._contributions = Contributions(gateway, held, way, outlet)
        self._bases: dict[int, IslandBase] = {}
        self._late: dict[int, list[Update]] = {}
        self._waits = False

    @property
    def empty(self) -> bool:
        """Whether everything was answered."""
        return not self._contributions and not self._late

    def know_base(self, term: int, base: IslandBase) -> None:
        """Remember where an island began."""
        self._bases[term] = base
        while len(self._bases) > _BASES_KEPT:
            del self._bases[next(iter(self._bases))]

    def knows_base(self, term: int) -> bool:
        """Whether it is remembered where an island began."""
        return term in self._bases

    def give(self, work: IslandWork) -> None:
        """Take an island that ended."""
        self._contributions.give(work.base, work.terms[-1], work.merges, work.total)

    def gather(self) -> None:
        """Take the pending updates of provisional versions: they cannot go up by themselves."""
        found = [u for u in self._held.pending() if is_provisional(u.base_version)]
        if not found or self._relay.oldest is None:
            return
        late = [u for u in found if is_sound(self._relay, self._held.buffer[u.id], self._outlet)]
        if len(late) < len(found):
            sound = {update.id for update in late}
            self._refuse((u.id for u in found if u.id not in sound), "unfit")
        self._held.move((update.id for update in late), "island")
        for update in late:
            self._late.setdefault(term_of(update.base_version), []).append(update)
        if late and not self._waits:
            self._wait(_LATE_US)

    def post(self) -> None:
        """Post what waits, unless it is to wait longer."""
        if self._waits:
            return
        late, self._late = self._late, {}
        for term, updates in late.items():
            self._give_late(term, updates)
        if not self._contributions.post():
            self._wait(_LATE_US)

    def timer_fired(self) -> None:
        """The wait is over; `post` must follow."""
        self._waits = False

    def take_reply(self, reply: PartialReply) -> bool:
        """Take the answer to a contribution; False where the partial was none."""
        return self._contributions.take_reply(reply)

    def undelivered(self, partial: Partial, wait_us: int) -> bool:
        """A contribution did not arrive: it is posted again after a while; False where it was none."""
        ours = self._contributions.undelivered(partial)
        if ours:
            self._wait(max(wait_us, 1))
        return ours

    def _give_late(self, term: int, updates: list[Update]) -> None:
        base = self._bases.get(term)
        if base is None:
            assert self._relay.oldest is not None
            base = IslandBase.of(self._relay.oldest)
        self._contributions.give_late(base, term, [u for u in updates if base.takes(u)])
        self._refuse((u.id for u in updates if not base.takes(u)), "unknown-plan")

    def _refuse(self, ids: Iterable[UpdateId], reason: str) -> None:
        refused = self._held.rejections(ids, reason)
        if refused:
            self._way.take_receipts(refused)

    def _wait(self, wait_us: int) -> None:
        self._waits = True
        self._outlet.do(SetTimer(POST_TIMER, wait_us))
