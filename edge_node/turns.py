"""When a node may train: once per version, and a bounded number of times more while it is alone."""

from edge_node.work import Work
from hedgerow.core.config import NodeConfig
from hedgerow.core.messages import Descriptor
from hedgerow.core.plan import Plan
from hedgerow.core.units import Vector
from hedgerow.core.versions import is_provisional

_RETRY_US = 10_000_000


class Turns:
    """The node's place in its cycle of training and rest.

    `trained` is the newest version of the aggregator that an update was made from, `provisional` that of an
    island, -1 for none: the numbers of one say nothing of the other's.
    """

    def __init__(self, trained: int, provisional: int, config: NodeConfig) -> None:
        self._drift: tuple[Plan, Vector] | None = None
        self._trained = {False: trained, True: provisional}
        self._sleep_us = round(config.sleep_s * 1_000_000)
        self._offline_updates = config.offline_updates
        self._offline_count = 0
        self._rest_until_us = 0

    def adopted(self) -> None:
        """A newer version is here."""
        self._drift = None
        self._offline_count = 0

    def offset(self, plan: Plan) -> Vector | None:
        """Return what the node has added to its version so far, shape (p,): alone, it goes on from there.

        It belongs to the plan it was trained under; under another one the node begins at the version.
        """
        return self._drift[1] if self._drift is not None and self._drift[0] == plan else None

    def wanted(self, base: Descriptor, node: str, *, online: bool) -> bool:
        """Whether there is a reason for `node` to train from `base`."""
        if not base.training_open:
            return False
        fresh = base.version > self._trained[is_provisional(base.version)]
        if base.sample is not None:
            return node in base.sample and fresh
        alone = not online and self._offline_count < self._offline_updates
        return fresh or alone

    def rest_us(self, now_us: int) -> int:
        """Return how long the node still rests, 0 when it may train."""
        return max(self._rest_until_us - now_us, 0)

    def rested(self) -> None:
        """The rest's timer fired; a clock that rounds must not make it last longer."""
        self._rest_until_us = 0

    def finished(self, work: Work, delta: Vector, version: int, now_us: int) -> None:
        """A training ended in an update of `delta`, shape (p,), while the node's version was `version`."""
        base, offset = work.base.version, self.offset(work.plan)
        lane = is_provisional(base)
        if version == base:
            self._offline_count += base <= self._trained[lane]
            self._drift = (work.plan, delta if offset is None else offset + delta)
        self._trained[lane] = max(self._trained[lane], base)
        self._rest_until_us = now_us + self._sleep_us

    def failed(self, now_us: int) -> None:
        """A training ended in nothing: it is tried again after a while."""
        self._rest_until_us = now_us + _RETRY_US
