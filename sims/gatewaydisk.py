"""A gateway's disk, in memory: what it spooled while there was no way to the aggregator."""

from collections.abc import Sequence
from typing import Any

from gateway.rows import DropIsland, DropSpooled, EmptySpool, KeepIsland, Spooled, SpoolUpdate
from hedgerow.core.codec import decode
from hedgerow.core.messages import Update, UpdateId


class GatewayDisk:
    """Survives a crash of the gateway; `wipe` deletes it."""

    def __init__(self) -> None:
        self.updates: dict[UpdateId, bytes] = {}
        self.island: dict[str, bytes] = {}

    def write(self, rows: Sequence[Any]) -> None:
        """Take rows in one transaction."""
        for row in rows:
            match row:
                case SpoolUpdate(update_id, body):
                    self.updates.setdefault(update_id, body)
                case DropSpooled(ids):
                    for update_id in ids:
                        self.updates.pop(update_id, None)
                case EmptySpool():
                    self.updates.clear()
                case KeepIsland(name, body):
                    self.island[name] = body
                case DropIsland():
                    self.island.clear()

    def wipe(self) -> None:
        """Lose everything."""
        self.updates.clear()
        self.island.clear()

    def load(self) -> Spooled:
        """Return what a gateway finds when it starts."""
        updates = (decode(body) for body in self.updates.values())
        return Spooled(
            tuple(update for update in updates if isinstance(update, Update)), dict(self.island)
        )
