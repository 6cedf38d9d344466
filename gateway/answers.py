"""Nodes' answers to probes, kept until the next report to the aggregator takes them along.

They may be lost without harm: the aggregator plans with those that arrive. Every loss is counted, here or by
the link that could not deliver a report.
"""

from collections.abc import Container

from hedgerow.core import names
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import ProbeAnswer, UnitValues
from hedgerow.core.outlet import Outlet

MAX_ANSWERS = 1024
_REPORT_VALUES = 1 << 15
"""Values in one report: with the nodes' states they stay well within what one message may hold."""


class Answers:
    """Holds at most one answer of each node, the newest."""

    def __init__(self, model: str, outlet: Outlet) -> None:
        self._model = model
        self._outlet = outlet
        self._held: dict[str, UnitValues] = {}

    def take(self, peer: str, answer: ProbeAnswer, units: Container[str]) -> None:
        """Keep an answer about `units`, those of the newest version.

        Raises PeerError when it is not the sender's own, of another model, or names other units.
        """
        node = answer.values.node
        if peer != names.node_peer(node):
            raise PeerError("wrong-source", f"{peer} sent a probe's answer of {node}")
        if answer.model != self._model:
            raise PeerError("wrong-model", f"a probe of {answer.model}, this is {self._model}")
        unknown = [name for name in answer.values.values if name not in units]
        if unknown:
            raise PeerError("shape", f"a probe of {unknown[0]!r}, which the model does not have")
        if node not in self._held and len(self._held) >= MAX_ANSWERS:
            self._outlet.record("probe_answer_dropped", reason="full", node=node)
            return
        self._held[node] = answer.values

    def take_report(self) -> list[UnitValues]:
        """Return the answers for one report, and forget them; what is too much waits for the next."""
        out: list[UnitValues] = []
        room = _REPORT_VALUES
        for node in list(self._held):
            room -= len(self._held[node].values)
            if room < 0 and out:
                break
            out.append(self._held.pop(node))
        return out
