"""Leases: how long a node that said "training" is waited for.

A lease only counts a node in. When it runs out the node's place is free, and its update, if it still
comes, is as welcome as any of its age; so a silent node can never hold anybody up.
"""

from hedgerow.core.messages import NodeState

_FACTOR = 3
_FIRST_US = 60_000_000
_LEAST_US = 1_000_000


class Leases:
    """The nodes whose updates are expected, each until a time."""

    def __init__(self) -> None:
        self._until_us: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._until_us)

    def take(self, state: NodeState, now_us: int) -> None:
        """Begin or end a lease as the node's state says: about three times its usual training time."""
        if state.state != "training":
            self.end(state.node)
            return
        span_us = max(_FACTOR * state.usual_us, _LEAST_US) if state.usual_us else _FIRST_US
        self._until_us[state.node] = now_us + span_us

    def end(self, node: str) -> None:
        """The node's update arrived, or it said it is not training."""
        self._until_us.pop(node, None)

    def expire(self, now_us: int) -> list[str]:
        """End the leases that have run out and return their nodes."""
        late = [node for node, until_us in self._until_us.items() if until_us <= now_us]
        for node in late:
            del self._until_us[node]
        return late

    def next_us(self) -> int | None:
        """When the next lease runs out, None when there is none."""
        return min(self._until_us.values(), default=None)
