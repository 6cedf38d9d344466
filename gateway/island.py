"""A site that goes on learning without the aggregator: when it begins, who acts, and when it ends.

Only approximate: an island's steps are merged into each other in an order that the aggregator never sees.
Nothing is settled here. What was merged stays held, and in the nodes' outboxes, until the ledger has it.
"""

from collections.abc import Callable, Collection, Mapping

from gateway.election import acting, elect, is_cut_off
from gateway.islanddelivery import IslandDelivery
from gateway.islandmaker import IslandMaker, Keeper
from gateway.islandmerge import IslandBase
from gateway.islandwork import IslandWork
from gateway.relay import Relay
from hedgerow.core.config import IslandConfig
from hedgerow.core.downlink import unit_values
from hedgerow.core.effects import CancelTimer, SetTimer
from hedgerow.core.messages import NO_ROUTE, Descriptor, GatewayState
from hedgerow.core.outlet import Outlet
from hedgerow.core.units import Vector
from hedgerow.core.versions import MOST_TERM, check_term, is_provisional, term_of

WAIT_TIMER = "island"
_SECOND_US = 1_000_000
_APPROXIMATE = (
    "no gateway of this site reaches the aggregator: what is learnt now is merged approximately"
)


class Island:
    """One gateway's part in its site's islands. `term` is above 0 while it is the acting aggregator."""

    def __init__(
        self,
        gateway: str,
        config: IslandConfig,
        relay: Relay,
        outlet: Outlet,
        *,
        maker: IslandMaker,
        delivery: IslandDelivery,
        keeper: Keeper,
        post_again: Callable[[], None],
    ) -> None:
        self.term = 0
        self._gateway = gateway
        self._config = config
        self._relay = relay
        self._outlet = outlet
        self._maker = maker
        self._delivery = delivery
        self._keeper = keeper
        self._post_again = post_again
        self._whole: tuple[Descriptor, Mapping[str, bytes]] | None = None
        self._last_term = 0
        self._follows = ("", 0)
        self._states: list[GatewayState] = []
        self._timer_set = False

    # What it hears.

    @property
    def served(self) -> int:
        """The newest version of the aggregator that is whole here, -1 before the first."""
        work = self._maker.work
        kept = -1 if work is None else work.base.version
        return kept if self._whole is None else max(kept, self._whole[0].version)

    def start(self) -> None:
        """Go on from what was kept of a former life's island."""
        if self._maker.work is not None:
            self._saw_term(max(self._maker.work.terms))

    def saw_version(self, version: int) -> None:
        """A node says what it has: an island's term that nobody else remembers must not come again.

        Raises PeerError for a term that cannot be.
        """
        if is_provisional(version):
            check_term(term_of(version))
            self._saw_term(term_of(version))

    def consider(self, mine: GatewayState, peers: Collection[GatewayState]) -> None:
        """Do what the state of this gateway and of its living peers asks for; called after every input."""
        self._look_at_versions()
        self._states = [mine, *peers]
        for state in peers:
            self._saw_term(state.acting)
        self._follow(acting(peers), cut_off=mine.hops == NO_ROUTE)
        if mine.hops != NO_ROUTE:
            self._cancel_timer()
            self._conclude()
            self._deliver()
        elif self.term:
            self._act()
        elif self._config.enabled:
            self._await_election()

    def timer_fired(self) -> None:
        """The site was cut off for long enough: hold the election; `consider` must follow."""
        self._timer_set = False
        if self._config.enabled and is_cut_off(self._states):
            self._elect()

    def _saw_term(self, term: int) -> None:
        self._last_term = max(self._last_term, term)

    def _look_at_versions(self) -> None:
        """Note what the relay serves: the aggregator's newest whole version, and islands' bases."""
        served = self._relay.served
        if served is None:
            return
        stamp = served.island
        if stamp is None:
            if self._whole is None or served is not self._whole[0]:
                self._whole = (served, self._relay.bodies(served))
        elif not self._delivery.knows_base(stamp.term):
            self._saw_term(stamp.term)
            self._delivery.know_base(stamp.term, IslandBase.of(served))

    def _follow(self, other: GatewayState | None, *, cut_off: bool) -> None:
        """What was handed to a gateway that acts no more must be handed to somebody else.

        Unless there is a way to the aggregator: then it ended its island and is sending what came of it.
        """
        now = ("", 0) if other is None else (other.gateway, other.acting)
        if cut_off and self._follows[1] and now != self._follows:
            self._post_again()
        self._follows = now

    # The election.

    def _await_election(self) -> None:
        now = acting(self._states)
        if self._maker.work is not None and now is not None:
            self._give_up("another-acts")
        if now is not None or not is_cut_off(self._states):
            self._cancel_timer()
        elif not self._timer_set:
            self._timer_set = True
            self._outlet.do(SetTimer(WAIT_TIMER, round(self._config.after_s * _SECOND_US)))

    def _elect(self) -> None:
        """Begin an island if this gateway is the one; if not, another election follows unless one acts."""
        if elect(self._states) != self._gateway or not self._prepare():
            return
        assert self._maker.work is not None
        base = self._maker.work.base
        self.term = self._last_term = min(self._last_term + 1, MOST_TERM)
        self._delivery.know_base(self.term, base)
        self._outlet.record(
            "island_began", term=self.term, base_version=base.version, detail=_APPROXIMATE
        )
        self._maker.serve_from(self.term)

    def _prepare(self) -> bool:
        """Go on with the island of a former life, or begin one at the newest whole version."""
        work = self._maker.work
        if work is not None:
            if self._whole is None:
                self._relay.take_made(work.start, work.start_bodies())
                return True
            if self._whole[0].version <= work.base.version:
                return True
            self._conclude()
        if self._whole is None or not self._whole[0].training_open:
            return False
        self._maker.begin(IslandWork(self._gateway, self._whole[0], _joined(*self._whole)))
        return True

    # The acting gateway.

    def _act(self) -> None:
        now = acting(self._states)
        assert now is not None
        if now.gateway == self._gateway:
            self._maker.act()
        else:
            self._give_up("higher-term")

    def _conclude(self) -> None:
        """There is a way to the aggregator: send it what the site came to."""
        work = self._maker.finish()
        if work is not None:
            self._delivery.give(work)
            self._outlet.record("island_ended", reason="route")
        self.term = 0

    def _deliver(self) -> None:
        self._delivery.gather()
        self._delivery.post()
        if self._delivery.empty:
            self._keeper.drop()

    def _give_up(self, reason: str) -> None:
        """Another gateway acts: its island is to merge what this one did."""
        self._outlet.record("island_ended", reason=reason)
        self._maker.give_up()
        self.term = 0

    def _cancel_timer(self) -> None:
        if self._timer_set:
            self._timer_set = False
            self._outlet.do(CancelTimer(WAIT_TIMER))


def _joined(descriptor: Descriptor, bodies: Mapping[str, bytes]) -> Vector:
    """Return a version's parameters, shape (P,), from its units' bytes by name."""
    manifest = IslandBase.of(descriptor).manifest
    return manifest.join(
        {name: unit_values(body, descriptor.downlink) for name, body in bodies.items()}
    )
