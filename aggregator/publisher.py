"""Who is listening, and what each gateway must hear: receipts first, then the versions that settled them."""

from collections import deque
from collections.abc import Mapping, Sequence

from aggregator.observer import Observer
from hedgerow.core import names
from hedgerow.core.effects import Send
from hedgerow.core.messages import Descriptor, Receipt, Receipts
from hedgerow.core.outlet import Outlet

_RECENT = 4096
_RECEIPTS_PER_MESSAGE = 4096


class Publisher:
    """Pushes over the gateways' open streams and remembers lately sent receipts for those that were away.

    What is forgotten or lost here is not lost: a node offers again, its gateway posts again, and the ledger
    answers.
    """

    def __init__(self, outlet: Outlet, observer: Observer) -> None:
        self._outlet = outlet
        self._observer = observer
        self._streams: set[str] = set()
        self._recent: deque[tuple[int, str, Receipts]] = deque(maxlen=_RECENT)

    def opened(self, peer: str, after: int, versions: Sequence[Descriptor]) -> None:
        """A gateway opened its stream: send it what it missed after a version.

        The newest version goes first: its units are the only ones that the gateway will fetch.
        """
        self._streams.add(peer)
        self._observer.link(names.peer_id(peer), connected=True)
        for version, owner, receipts in self._recent:
            if owner == peer and version > after:
                self._outlet.do(Send(peer, receipts))
        for descriptor in reversed(versions):
            self._outlet.do(Send(peer, descriptor))

    def closed(self, peer: str) -> None:
        """A gateway's stream ended."""
        self._streams.discard(peer)
        self._observer.link(names.peer_id(peer), connected=False)

    def settle(self, version: int, by_gateway: Mapping[str, list[Receipt]]) -> None:
        """Tell each gateway that its updates are in the ledger as of `version`."""
        for gateway, receipts in by_gateway.items():
            peer = names.gateway_peer(gateway)
            for start in range(0, len(receipts), _RECEIPTS_PER_MESSAGE):
                piece = receipts[start : start + _RECEIPTS_PER_MESSAGE]
                message = Receipts(receipts=piece, version=version)
                self._recent.append((version, peer, message))
                if peer in self._streams:
                    self._outlet.do(Send(peer, message))

    def push(self, descriptor: Descriptor) -> None:
        """Send a version to every open stream."""
        for peer in sorted(self._streams):
            self._outlet.do(Send(peer, descriptor))
