"""Answering probes: what each unit would gain from training here, told in one number per unit.

A probe comes before the training from the same version, so it never holds up one that is under way, and what
goes wrong with it costs nothing else.
"""

import zlib

from hedgerow.core.config import NodeConfig
from hedgerow.core.effects import JobFailed, Probe, Probed, Send, Train
from hedgerow.core.messages import Descriptor, ProbeAnswer, UnitValues
from hedgerow.core.outlet import Outlet
from hedgerow.core.plan import Plan
from hedgerow.core.rules import ProbeRequest
from hedgerow.core.units import digest

_DRAW_DIGITS = 8
_VALUE_BYTES = 10
"""What MessagePack needs for a number and for the length of a name."""


class Prober:
    """Takes part in each round at most once while the process lives; the aggregator counts no repeats."""

    def __init__(self, node: str, config: NodeConfig, outlet: Outlet) -> None:
        self._node = node
        self._config = config
        self._outlet = outlet
        self._done_round = -1
        self._job: Probe | None = None

    @property
    def busy(self) -> bool:
        """Whether a probe is under way."""
        return self._job is not None

    def __contains__(self, job: int) -> bool:
        return self._job is not None and self._job.job == job

    def begin(self, base: Descriptor, training: Train) -> bool:
        """Begin a probe if `base` asks this node for one; `training` is what the node does next."""
        request = base.probe
        if request is None or request.round <= self._done_round:
            return False
        self._done_round = request.round
        if not takes_part(self._node, request):
            return False
        units = self._units(base, training.plan, request.round)
        size_bytes = sum(len(name) + _VALUE_BYTES for name in units.names)
        if 0 < self._config.max_update_bytes < size_bytes:
            self._outlet.record("probe_skipped", reason="thin-link", bytes=size_bytes)
            return False
        self._job = Probe(
            job=self._outlet.next_job(),
            plan=units,
            params=training.params,
            batch_size=training.batch_size,
            batches=request.batches,
            seed=zlib.crc32(f"{self._node}:probe:{request.round}".encode()),
            memory_bytes=training.memory_bytes if self._config.memory_bytes else 0,
        )
        self._outlet.do(self._job)
        return True

    def finished(self, result: Probed, peer: str, model: str) -> None:
        """Send the answer to the gateway, if there is one to send it to."""
        self._job = None
        if not peer:
            self._outlet.record("probe_answer_dropped", reason="offline")
            return
        values = UnitValues(self._node, self._done_round, dict(result.squares))
        self._outlet.do(Send(peer, ProbeAnswer(model=model, values=values)))
        self._outlet.record("probed", round=self._done_round, units=len(values.values))

    def failed(self, failed: JobFailed) -> None:
        """The device could not do it: other nodes answer."""
        self._job = None
        self._outlet.record("probe_failed", reason="compute", detail=failed.detail)

    def _units(self, base: Descriptor, plan: Plan, number: int) -> Plan:
        """Return the units to probe: all that are shared, or what a small memory may hold.

        A node with a bound on its memory probes its own plan and one more layer, another one each round.
        """
        manifest, personal = plan.manifest, frozenset(base.personal)
        shared = [unit for unit in manifest.units if unit.name not in personal]
        if self._config.memory_bytes:
            own = frozenset(plan.names)
            others = list(dict.fromkeys(u.layer for u in shared if u.name not in own))
            turn = number + zlib.crc32(self._node.encode())
            more = others[turn % len(others)] if others else ""
            shared = [unit for unit in shared if unit.name in own or unit.layer == more]
        return Plan(manifest, tuple(unit.name for unit in shared))


def takes_part(node: str, request: ProbeRequest) -> bool:
    """Whether the round's lot falls on this node."""
    drawn = int(digest(f"{node}:{request.round}".encode())[:_DRAW_DIGITS], 16)
    return drawn < request.share * 16.0**_DRAW_DIGITS
