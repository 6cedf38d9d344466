"""Everything of islands at one gateway, as its protocol calls it."""

from collections.abc import Callable, Collection, Iterable, Mapping

from gateway.held import HeldUpdates
from gateway.island import WAIT_TIMER, Island
from gateway.islanddelivery import POST_TIMER, IslandDelivery
from gateway.islandkeeper import IslandKeeper
from gateway.islandmaker import MERGE_TIMER, IslandMaker
from gateway.islandpost import Way
from gateway.islandsink import IslandSink, is_for_island
from gateway.relay import Relay
from hedgerow.core.config import IslandConfig
from hedgerow.core.effects import JobResult
from hedgerow.core.messages import Bundle, GatewayState, Partial, PartialReply, Receipt
from hedgerow.core.outlet import Outlet


class SiteIslands:
    """Routes inputs to the parts; `rows` are those of an island that the disk held."""

    def __init__(
        self,
        gateway: str,
        config: IslandConfig,
        held: HeldUpdates,
        relay: Relay,
        way: Way,
        outlet: Outlet,
        *,
        rows: Mapping[str, bytes],
        post_again: Callable[[], None],
    ) -> None:
        self._keeper = IslandKeeper(outlet, any_kept=bool(rows))
        self._delivery = IslandDelivery(gateway, held, relay, way, outlet)
        self._sink = IslandSink(held, relay, outlet)
        self._maker = IslandMaker(config, held, relay, outlet, self._keeper)
        self._island = Island(
            gateway,
            config,
            relay,
            outlet,
            maker=self._maker,
            delivery=self._delivery,
            keeper=self._keeper,
            post_again=post_again,
        )
        self._gateway = gateway
        self._rows = rows

    @property
    def term(self) -> int:
        """The term under which this gateway is an island's acting aggregator, 0 when it is none."""
        return self._island.term

    @property
    def served(self) -> int:
        """The newest version of the aggregator that is whole here, -1 before the first."""
        return self._island.served

    def start(self) -> None:
        """Take up what the disk held; the updates that it held must be held again by now."""
        self._maker.restore(self._gateway, self._rows)
        self._island.start()

    def consider(self, mine: GatewayState, peers: Collection[GatewayState]) -> None:
        """Do what is due; called after every input."""
        self._island.consider(mine, peers)

    def timer_fired(self, name: str) -> bool:
        """Take a timer; False where it is none of an island's. `consider` must follow."""
        if name == POST_TIMER:
            self._delivery.timer_fired()
        elif name == WAIT_TIMER:
            self._island.timer_fired()
        elif name == MERGE_TIMER:
            self._maker.timer_fired()
        else:
            return False
        return True

    def job_done(self, result: JobResult) -> bool:
        """Take the end of a save; False where it is none of an island's."""
        return self._keeper.job_done(result)

    def take_bundle(self, peer: str, bundle: Bundle) -> bool:
        """Take a peer's updates for the island; False for a bundle that is to be passed on as it is."""
        ours = is_for_island(bundle, self.term)
        if ours:
            self._sink.take(peer, bundle)
        return ours

    def take_reply(self, reply: PartialReply) -> bool:
        """Take the answer to a contribution; False where the partial was none."""
        return self._delivery.take_reply(reply)

    def undelivered(self, partial: Partial, wait_us: int) -> bool:
        """A contribution did not arrive; False where the partial was none."""
        return self._delivery.undelivered(partial, wait_us)

    def take_receipts(self, receipts: Iterable[Receipt]) -> None:
        """Pass receipts back to the peers that handed the updates over."""
        self._sink.take_receipts(receipts)

    def saw_version(self, version: int) -> None:
        """A node says which version it has. Raises PeerError for one that cannot be."""
        self._island.saw_version(version)
