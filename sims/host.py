"""Where processes live: a gateway's box, and a node's device with its power, its hours and its ways.

A node's process runs while its device is available, has power and is not struck by a fault.
"""

import random
from collections.abc import Callable

from msgspec.structs import replace

from hedgerow.core import names
from hedgerow.core.config import NodeConfig
from hedgerow.core.effects import LinkDown
from sims.broker import Broker, Session
from sims.clock import SECOND_US, VirtualLoop
from sims.devices import Device
from sims.disks import NodeDisk
from sims.gatewaydisk import GatewayDisk
from sims.process import Ports, Process
from sims.uplink import Line, Uplinks

_CONNECT_US = 500_000
_POWER_CHECK_US = 600 * SECOND_US
_SPANS_KEPT = 400


class Attachment:
    """A process's session with a broker: opened when it starts, broken when it dies, moved when it roams."""

    def __init__(self, loop: VirtualLoop, session: Session) -> None:
        self.session = session
        self._loop = loop

    @property
    def broker(self) -> Broker:
        """The broker of the place where the process is."""
        assert self.session.broker is not None
        return self.session.broker

    def up(self, process: Process) -> None:
        """The process started: connect soon."""
        self.session.deliver = process.deliver
        self.connect_soon()

    def down(self, _process: Process) -> None:
        """The process died."""
        self.broker.disconnect(self.session)
        self.session.forget()

    def connect_soon(self) -> None:
        """Connect after a moment that differs from process to process."""
        delay_us = self.session.random.randrange(1_000, _CONNECT_US)
        self._loop.after_us(delay_us, lambda: self.broker.connect(self.session))

    def cut(self) -> None:
        """Break the link; the process hears of it."""
        self.session.reachable = False
        was_connected = self.session.connected
        self.broker.disconnect(self.session)
        if was_connected and self.session.deliver is not None:
            self.session.deliver(names.BROKER, LinkDown())

    def heal(self) -> None:
        """The link works again."""
        self.session.reachable = True
        self.connect_soon()

    def move(self, broker: Broker) -> None:
        """Leave one place and arrive at another."""
        self.cut()
        self.session.broker = broker
        self.heal()

    def hold(self) -> None:
        """Keep back whatever this session sends from now on."""
        if self.session.held is None:
            self.session.held = []

    def release(self) -> None:
        """Let everything that was kept back arrive now."""
        held, self.session.held = self.session.held or [], None
        for call in held:
            call()


class GatewayHost:
    """One gateway's process with its session, its line to the aggregator and its disk."""

    def __init__(
        self,
        name: str,
        loop: VirtualLoop,
        make: Callable[[Process], Ports],
        session: Session,
        line: Line,
        uplinks: Uplinks,
        disk: GatewayDisk,
    ) -> None:
        self.attachment = Attachment(loop, session)
        self.line = line
        self.disk = disk
        self._uplinks = uplinks
        self.process = Process(name, loop, make, up=self._up, down=self._down)

    def _up(self, process: Process) -> None:
        self.line.deliver = process.deliver
        self.attachment.up(process)

    def _down(self, process: Process) -> None:
        self.attachment.down(process)
        self._uplinks.gateway_died(self.line)


class NodeHost:
    """One node's process on its device. `trained` and `away` are spans of virtual microseconds."""

    def __init__(
        self,
        name: str,
        loop: VirtualLoop,
        make: Callable[[Process], Ports],
        session: Session,
        device: Device,
        disk: NodeDisk,
        brokers: list[Broker],
        config: NodeConfig,
    ) -> None:
        self.device = device
        self.disk = disk
        self.attachment = Attachment(loop, session)
        self.node_config = replace(
            config,
            memory_class=device.memory_class,
            memory_bytes=device.memory_bytes or config.memory_bytes,
            max_update_bytes=device.max_update_bytes or config.max_update_bytes,
        )
        self.struck = False
        self.trained: list[tuple[int, int]] = []
        self.away: list[tuple[int, int]] = []
        self.process = Process(name, loop, make, up=self.attachment.up, down=self.attachment.down)
        self._loop = loop
        self._brokers = brokers
        self._random = random.Random(f"roam:{session.random.random()}")
        self._has_power = True
        self._radio = (0, 0)
        self._off_since_us: int | None = None

    def begin(self) -> None:
        """Start the device's own course: hours, power, ways; and the process, if it is on."""
        self.device.power.switch(self._loop.now_us, on=False)
        self.refresh()
        self._plan_change()
        if self.device.power.level_share(self._loop.now_us) is not None:
            self._loop.after_us(_POWER_CHECK_US, self._check_power)
        if self.device.roam_every_s > 0 and len(self._brokers) > 1:
            self._plan_roaming()

    def refresh(self) -> None:
        """Start or kill the process, as device and faults want it; without it the device draws nothing."""
        now_us = self._loop.now_us
        wanted = self._has_power and not self.struck and self.device.availability.is_on(now_us)
        if wanted and not self.process.alive:
            if self._off_since_us is not None:
                self._span(self.away, self._off_since_us, now_us)
                self._off_since_us = None
            self.device.power.switch(now_us, on=True)
            self.process.start()
        elif not wanted:
            if self._off_since_us is None:
                self._off_since_us = now_us
            self.device.power.switch(now_us, on=False)
            self.process.kill()

    def finish(self) -> None:
        """The run is over: note the last absence, and settle the energy."""
        self.settle_radio()
        if self._off_since_us is not None:
            self._span(self.away, self._off_since_us, self._loop.now_us)

    def began_training(self, from_us: int, to_us: int) -> None:
        """Note a training."""
        self._span(self.trained, from_us, to_us)

    def dies_at(self, empty_us: int) -> None:
        """The battery will be empty during this training."""
        life = self.process.life

        def die() -> None:
            if self.process.life == life and self.process.alive:
                self._lose_power()

        self._loop.at_us(empty_us, die)

    def settle_radio(self) -> None:
        """Charge the bytes sent and received since the last time."""
        session, power = self.attachment.session, self.device.power
        up, down = session.bytes_up - self._radio[0], session.bytes_down - self._radio[1]
        self._radio = (session.bytes_up, session.bytes_down)
        if up or down:
            power.spend(self._loop.now_us, power.up_j(up) + power.down_j(down))

    def _plan_change(self) -> None:
        change_us = self.device.availability.next_change_us(self._loop.now_us)
        if change_us is not None:
            self._loop.at_us(change_us, self._change)

    def _change(self) -> None:
        self.refresh()
        self._plan_change()

    def _check_power(self) -> None:
        self.settle_radio()
        if self._has_power and self.device.power.is_empty(self._loop.now_us):
            self._lose_power()
        self._loop.after_us(_POWER_CHECK_US, self._check_power)

    def _lose_power(self) -> None:
        power, now_us = self.device.power, self._loop.now_us
        self.settle_radio()
        self._has_power = False
        self.process.recorder.record("power_lost", 1, {"reason": "battery"})
        self.refresh()
        back_us = power.back_at_us(now_us)
        if back_us is not None:
            self._loop.at_us(max(back_us, now_us + 1), self._regain_power)

    def _regain_power(self) -> None:
        self._has_power = True
        self.refresh()

    def _plan_roaming(self) -> None:
        wait_s = self._random.expovariate(1 / self.device.roam_every_s)
        self._loop.after_us(round(wait_s * SECOND_US) + 1, self._roam)

    def _roam(self) -> None:
        others = [broker for broker in self._brokers if broker is not self.attachment.broker]
        self.attachment.move(self._random.choice(others))
        self._plan_roaming()

    @staticmethod
    def _span(spans: list[tuple[int, int]], from_us: int, to_us: int) -> None:
        if len(spans) < _SPANS_KEPT:
            spans.append((from_us, to_us))
