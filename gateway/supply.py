"""Where a gateway's versions come from: the aggregator over its own uplink, or else the next peer's channels.

From a peer it learns as nodes do: it follows the peer's descriptor and the channels of the units it lacks,
and asks the peer for what does not come.
"""

from collections.abc import Mapping

from hedgerow.core import names
from hedgerow.core.chunks import Pieces
from hedgerow.core.effects import CancelTimer, Effect, Follow, Send, SetTimer, Unfollow
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import BlobPart, BlobsWanted
from hedgerow.core.outlet import Outlet
from hedgerow.core.units import digest

UNITS_TIMER = "units"
_ASK_US = 5_000_000
_LONGEST_US = 300_000_000


class Supply:
    """Brings units by digest. `source` is the peer they come from, "aggregator" or "gw/ID", "" for none."""

    def __init__(self, model: str, outlet: Outlet) -> None:
        self.source = ""
        self._model = model
        self._outlet = outlet
        self._wanted: dict[str, int] = {}
        self._followed: list[str] = []
        self._pieces: dict[str, Pieces] = {}
        self._wait_us = _ASK_US

    @property
    def peer(self) -> str:
        """The id of the gateway whose versions are followed, "" for none."""
        return "" if self.source == names.AGGREGATOR else names.peer_id(self.source)

    def turn_to(self, source: str) -> bool:
        """Take versions from another source from now on; False when it is the present one."""
        if source == self.source:
            return False
        self._switch_channel(Unfollow)
        self.source = source
        self._switch_channel(Follow)
        self.want({})
        return True

    def _switch_channel(self, effect: type[Follow | Unfollow]) -> None:
        if self.peer:
            channel: Effect = effect(names.descriptor_channel(self.peer, self._model))
            self._outlet.do(channel)

    def want(self, sizes: Mapping[str, int]) -> None:
        """Bring these units and no others; `sizes` are the most bytes that each can have."""
        self._wanted = dict(sizes)
        self._pieces = {name: got for name, got in self._pieces.items() if name in sizes}
        if self.source == names.AGGREGATOR:
            self._follow([])
            self._ask()
        else:
            self._follow(sorted(sizes) if self.peer else [])

    def _follow(self, digests: list[str]) -> None:
        for name in self._followed:
            if name not in digests:
                self._outlet.do(Unfollow(names.blob_channel(self._model, name, "+")))
        fresh = [name for name in digests if name not in self._followed]
        for name in fresh:
            self._outlet.do(Follow(names.blob_channel(self._model, name, "+")))
        if fresh:
            self._wait_us = _ASK_US
            self._outlet.do(SetTimer(UNITS_TIMER, self._wait_us))
        elif self._followed and not digests:
            self._outlet.do(CancelTimer(UNITS_TIMER))
        self._followed = digests

    def _ask(self) -> None:
        if self._wanted:
            wanted = BlobsWanted(model=self._model, digests=sorted(self._wanted))
            self._outlet.do(Send(self.source, wanted))

    def ask_again(self) -> None:
        """Ask the peer for what its channels did not bring; later and later again."""
        if not (self.peer and self._wanted):
            return
        self._ask()
        self._wait_us = min(2 * self._wait_us, _LONGEST_US)
        self._outlet.do(SetTimer(UNITS_TIMER, self._wait_us))

    def put(self, part: BlobPart) -> BlobPart | None:
        """Take a piece of a unit from a channel; return the unit, whole, once it is complete.

        Raises PeerError for a piece that contradicts the others, and for a unit that its name does not fit.
        """
        most_bytes = self._wanted.get(part.digest)
        if most_bytes is None:
            return None
        pieces = self._pieces.setdefault(part.digest, Pieces(part.count))
        try:
            pieces.put(part.index, part.count, part.body)
            if pieces.held_bytes > most_bytes:
                raise PeerError("too-large", f"unit {part.digest} is longer than its shape says")
            if not pieces.complete:
                return None
            body = pieces.join()
            if digest(body) != part.digest:
                raise PeerError("checksum", f"unit {part.digest} does not match its digest")
        except PeerError:
            del self._pieces[part.digest]
            raise
        return BlobPart(digest=part.digest, index=0, count=1, body=body)
