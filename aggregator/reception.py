"""Who hands over what: partials of a gateway's own, or of a peer's; and which versions they speak of."""

from collections.abc import Mapping

from aggregator.acceptance import Acceptance
from aggregator.lineage import Lineage
from aggregator.lives import Lives, claimed_version
from hedgerow.core import names
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Bundle, Partial
from hedgerow.core.outlet import Outlet


class Reception:
    """Checks where posts come from, and listens to which versions they speak of.

    `damage` counts what was found damaged in the ledger, by kind.
    """

    def __init__(
        self,
        lineage: Lineage,
        acceptance: Acceptance,
        lives: Lives,
        outlet: Outlet,
        damage: Mapping[str, int],
    ) -> None:
        self._lineage = lineage
        self._acceptance = acceptance
        self._lives = lives
        self._outlet = outlet
        self._damage = damage

    def started(self) -> None:
        """Say what is wrong with the ledger: what was damaged, and whether it was put back."""
        for kind, count in sorted(self._damage.items()):
            self._outlet.record("ledger_damaged", count, reason=kind, level="error")
        if self._lives.due:
            self._alarm()

    def take(self, peer: str, message: Partial | Bundle) -> None:
        """Take a post; it is answered to `peer`. Raises PeerError for one that is not the peer's to make."""
        partials = [message] if isinstance(message, Partial) else message.partials
        if isinstance(message, Bundle):
            _check_path(message)
        if peer != names.gateway_peer(message.gateway):
            raise PeerError("wrong-source", f"{peer} posted for {message.gateway}")
        for partial in partials:
            self._take(partial, message.gateway)

    def subscribed(self, after: int) -> bool:
        """A gateway asked for the versions after one that it knows; return whether that changes anything."""
        first = not self._lives.heard
        self._lives.heard = True
        return self._hear(after) or first

    def _take(self, partial: Partial, owner: str) -> None:
        try:
            self._hear(claimed_version(partial))
        except PeerError as error:
            self._acceptance.reject(partial, owner, error)
            return
        if self._lives.due:
            # What came between would be merged when it is too old to weigh anything.
            self._acceptance.put_off(partial, owner)
        else:
            self._acceptance.take(partial, owner)

    def _hear(self, version: int) -> bool:
        news = self._lives.hear(version, self._lineage.version)
        if news:
            self._alarm()
        return news

    def _alarm(self) -> None:
        self._outlet.record(
            "restored_backup",
            reason=self._lives.reason,
            version=self._lineage.version,
            newest_seen=self._lives.newest_seen,
            level="error",
        )


def _check_path(bundle: Bundle) -> None:
    """Raise PeerError unless the bundle's partials are those of the gateway where its path begins."""
    if len(set(bundle.path)) != len(bundle.path):
        raise PeerError("inconsistent", f"a bundle went in a circle: {' '.join(bundle.path)}")
    foreign = [partial.gateway for partial in bundle.partials if partial.gateway != bundle.path[0]]
    if foreign:
        raise PeerError("wrong-source", f"{bundle.path[0]} sent a partial of {foreign[0]} on")
