"""What a node says of itself: that it trains at once, for its lease; the rest now and then.

Every announcement is a retained publish that each gateway of the site receives, so what changes with every
message must not cause one each.
"""

from collections.abc import Callable, Mapping

from edge_node.closing import Closing
from edge_node.courier import Courier
from edge_node.epochs import Epochs
from hedgerow.core import names
from hedgerow.core.effects import Announce, SetTimer
from hedgerow.core.messages import NodeState, NodeStateName
from hedgerow.core.outlet import Outlet

PRESENCE_TIMER = "presence"
_LATER_US = 2_000_000


class Presence:
    """The node's retained state; `meter` reads the link's byte counters."""

    def __init__(
        self,
        courier: Courier,
        outlet: Outlet,
        closing: Closing,
        epochs: Epochs,
        memory_class: str,
        meter: Callable[[], Mapping[str, int]],
    ) -> None:
        self.state: NodeStateName = "ready"
        self.usual_us = 0
        self.peak_bytes = 0
        self.metrics: dict[str, float] = {}
        self._courier = courier
        self._outlet = outlet
        self._closing = closing
        self._epochs = epochs
        self._memory_class = memory_class
        self._meter = meter
        self._said: tuple[str, str] | None = None
        self._said_figures: tuple[dict[str, int], dict[str, float]] = {}, {}
        self._timer_set = False

    def trained(self, took_us: int, peak_bytes: int) -> None:
        """Learn from a training how long they take and what they need."""
        self.usual_us = took_us if self.usual_us == 0 else (self.usual_us + took_us) // 2
        self.peak_bytes = max(self.peak_bytes, peak_bytes)

    def began(self) -> None:
        """A training begins: the gateway counts on its update from now on."""
        self.state = "training"
        self._said = None

    def forget(self) -> None:
        """Nobody may know anything of this node any more: the link is new."""
        self._said = None

    def timer_fired(self, version: int) -> None:
        """Something has changed for a while."""
        self._timer_set = False
        if self._may_speak and self._changed():
            self._announce(version)

    def refresh(self, version: int) -> None:
        """Announce a training or a new gateway now, all else a little later; nothing while offline.

        Nor while the epoch is in doubt: what the node said in its last life is the evidence.
        """
        if not self._may_speak:
            return
        if self._said is None or self._said[1] != self._courier.gateway:
            self._announce(version)
        elif not self._timer_set and self._changed():
            self._timer_set = True
            self._outlet.do(SetTimer(PRESENCE_TIMER, _LATER_US))

    @property
    def _may_speak(self) -> bool:
        return self._courier.online and self._epochs.certain

    def _counters(self) -> dict[str, int]:
        disk_full = min(self._closing.failures, 1)
        return {**self._courier.outbox.counters(), "disk_full": disk_full}

    def _changed(self) -> bool:
        said = None if self._said is None else self._said[0]
        figures = (self._counters(), self.metrics)
        return said != self.state or self._said_figures != figures

    def _announce(self, version: int) -> None:
        outbox = self._courier.outbox
        self._said = (self.state, self._courier.gateway)
        self._said_figures = self._counters(), self.metrics
        state = NodeState(
            node=outbox.node,
            epoch=outbox.epoch,
            state=self.state,
            gateway=self._courier.gateway,
            version=max(version, 0),
            memory_class=self._memory_class,
            usual_us=self.usual_us,
            peak_bytes=self.peak_bytes,
            counters={**self._said_figures[0], **self._meter()},
            metrics=self.metrics,
        )
        self._outlet.do(Announce(names.node_state_channel(outbox.node), state))
