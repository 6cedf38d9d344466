"""The node's way to a new version: follow the channels of units it lacks, ask for what does not come.

Versions may follow one another faster than a node trains. It fetches only when it is about to need one, and
then the newest, or it would pay for versions that it never uses; where a round-based strategy has drawn a
sample of others, it waits for its turn.
"""

from collections.abc import Mapping

from edge_node.replica import Replica
from edge_node.rows import KeepUnit, Row
from hedgerow.core import names
from hedgerow.core.effects import CancelTimer, Follow, Send, SetTimer, Unfollow
from hedgerow.core.messages import BlobPart, BlobsWanted, Descriptor
from hedgerow.core.outlet import Outlet, Saves

FETCH_TIMER = "fetch"
_FETCH_US = 5_000_000
_LONGEST_US = 3_600_000_000
"""On a link of some bits per second a version takes hours: whoever asks every few seconds drowns it."""


class Fetcher:
    """Keeps a node's replica up to date; `kept` are the units on disk, so that each is saved only once."""

    def __init__(
        self,
        node: str,
        replica: Replica,
        outlet: Outlet,
        saves: Saves[Row],
        kept: Mapping[str, bytes],
    ) -> None:
        self.replica = replica
        self._node = node
        self._outlet = outlet
        self._saves = saves
        self._kept = dict(kept)
        self._followed: set[str] = set()
        self._asked: list[str] = []
        self._wait_us = _FETCH_US

    def take(self, message: Descriptor | BlobPart) -> bool:
        """Take a version or a piece of a unit; True when a newer version was adopted by it.

        Raises PeerError for what does not fit this node's model.
        """
        if isinstance(message, Descriptor):
            adopted = self.replica.offer(message)
        else:
            adopted = self.replica.put(message)
            if not adopted and self.replica.missing:
                self._outlet.do(SetTimer(FETCH_TIMER, self._wait_us))
        if adopted:
            self._outlet.do(CancelTimer(FETCH_TIMER))
            self._keep_units()
            self._outlet.record("version_adopted", version=self.replica.version)
        return adopted

    def ask(self, peer: str) -> None:
        """Ask the gateway, "" for none, for followed units that did not come; later and later again."""
        missing = self.replica.missing if self._followed else []
        if not missing:
            return
        if peer:
            self._outlet.do(Send(peer, BlobsWanted(model=self.replica.model, digests=missing)))
        self._wait_us = min(2 * self._wait_us, _LONGEST_US)
        self._outlet.do(SetTimer(FETCH_TIMER, self._wait_us))

    def fetch(self) -> None:
        """Follow what the newest version lacks here, and nothing else."""
        missing = self.replica.missing if self.replica.is_for(self._node) else []
        if missing == self._asked:
            return
        self._asked = list(missing)
        model = self.replica.model
        wanted = {names.blob_channel(model, digest, "+") for digest in missing}
        for channel in sorted(self._followed - wanted):
            self._outlet.do(Unfollow(channel))
        for channel in sorted(wanted - self._followed):
            self._outlet.do(Follow(channel))
        if wanted - self._followed:
            self._wait_us = _FETCH_US
            self._outlet.do(SetTimer(FETCH_TIMER, _FETCH_US))
        self._followed = wanted

    def _keep_units(self) -> None:
        units = self.replica.kept_units()
        changed = {name: body for name, body in units.items() if self._kept.get(name) != body}
        if changed:
            self._kept.update(changed)
            self._saves.save(*(KeepUnit(name, body) for name, body in changed.items()))
