"""The nodes of a gateway as they last announced themselves, and which of them it expects updates from."""

from gateway.leases import Leases
from hedgerow.core import names
from hedgerow.core.effects import SetTimer
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import NodeState
from hedgerow.core.outlet import Outlet

LEASE_TIMER = "lease"
_MAX_NODES = 8192


class Roster:
    """Keeps the last word of every node of this gateway; `leases` are of those that train."""

    def __init__(self, gateway: str, outlet: Outlet) -> None:
        self.leases = Leases()
        self._gateway = gateway
        self._outlet = outlet
        self._nodes: dict[str, NodeState] = {}
        self._unreported: set[str] = set()

    def __len__(self) -> int:
        return len(self._nodes)

    def take(self, peer: str, state: NodeState, now_us: int) -> None:
        """Take a node's announcement. Raises PeerError when it is not the node's own."""
        if peer != names.node_peer(state.node):
            raise PeerError("wrong-source", f"{peer} announced the state of {state.node}")
        known = self._nodes.get(state.node)
        # A last will may come late: it must not bury a node that has been born again.
        if state.state == "lost" and (known is None or known.epoch != state.epoch):
            return
        if state.gateway != self._gateway and state.state != "lost":
            self._nodes.pop(state.node, None)
            self.leases.end(state.node)
            return
        if known is None and len(self._nodes) >= _MAX_NODES and not self._forget_a_lost_one():
            self._outlet.record("node_ignored", reason="roster-full", node=state.node)
            return
        self._nodes[state.node] = state
        self._unreported.add(state.node)
        self.leases.take(state, now_us)
        self._set_timer(now_us)

    def end_leases(self, now_us: int) -> None:
        """End the leases that have run out: their nodes are not waited for any longer."""
        late = self.leases.expire(now_us)
        if late:
            self._outlet.record("lease_expired", len(late), reason="silent")
        self._set_timer(now_us)

    def report_all(self) -> None:
        """Whoever listened may have forgotten: the next report names every node again."""
        self._unreported = set(self._nodes)

    def take_report(self) -> list[NodeState]:
        """Return the nodes whose state changed since the last report."""
        names_now = sorted(self._unreported & self._nodes.keys())
        self._unreported = set()
        return [self._nodes[name] for name in names_now]

    def _forget_a_lost_one(self) -> bool:
        lost = next((name for name, node in self._nodes.items() if node.state == "lost"), None)
        if lost is not None:
            del self._nodes[lost]
        return lost is not None

    def _set_timer(self, now_us: int) -> None:
        next_us = self.leases.next_us()
        if next_us is not None:
            self._outlet.do(SetTimer(LEASE_TIMER, max(next_us - now_us, 0)))
