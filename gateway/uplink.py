"""The link to the aggregator: whether it is up, and how long to wait after it failed."""

import random

from hedgerow.core import names
from hedgerow.core.effects import Send, SetTimer
from hedgerow.core.messages import Subscribe
from hedgerow.core.outlet import Outlet

SUBSCRIBE_TIMER = "subscribe"
_BACKOFF_FIRST_US = 500_000
_BACKOFF_MOST_US = 30_000_000
_MOST_DOUBLINGS = 10


class Uplink:
    """Subscribes to versions and counts the failures in a row."""

    def __init__(self, gateway: str, outlet: Outlet, rng: random.Random) -> None:
        self.up = False
        self._gateway = gateway
        self._outlet = outlet
        self._random = rng
        self._failures = 0

    def subscribe(self, version: int) -> None:
        """Ask for versions newer than the newest known here, -1 for none."""
        message = Subscribe(gateway=self._gateway, after=max(version, 0))
        self._outlet.do(Send(names.AGGREGATOR, message))

    def came_up(self) -> None:
        """The stream of versions is open."""
        self.up = True
        self._failures = 0

    def went_down(self) -> None:
        """The stream of versions ended; it is opened again after a while."""
        self.up = False
        self.subscribe_later()

    def subscribe_later(self, least_us: int = 0) -> None:
        """Subscribe again after a backoff, or after `least_us` if that is longer."""
        self._outlet.do(SetTimer(SUBSCRIBE_TIMER, max(least_us, self.backoff_us())))

    def answered(self) -> None:
        """A post was answered: the aggregator works."""
        self._failures = 0

    def backoff_us(self) -> int:
        """Full jitter: uniform up to a bound that doubles with each failure in a row."""
        bound = min(_BACKOFF_FIRST_US << min(self._failures, _MOST_DOUBLINGS), _BACKOFF_MOST_US)
        self._failures += 1
        return self._random.randrange(bound // 10, bound)
