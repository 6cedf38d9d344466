"""What happens to a fleet: crashes, broken links and bad weather, drawn from its seed."""

from collections import Counter
from collections.abc import Callable

from hedgerow.core import names
from hedgerow.core.effects import LinkDown
from tests.protocol.fleet import Fleet
from tests.protocol.scenarios import SECOND_US
from tests.protocol.wires import Session, Weather

_FOUL = Weather(drop=0.08, repeat=0.08, latency_us=300_000)
_FAIR = Weather(latency_us=20_000)
_LONGEST_FAULT_US = 15 * SECOND_US
_RATES = {
    "node": 6,
    "gateway": 3,
    "aggregator": 3,
    "link": 6,
    "uplink": 3,
    "stream": 2,
    "broker": 1,
}


class Faults:
    """Strikes one fleet; the first three strikes hit one process of each tier.

    `watch` is called with the fleet every second of a storm.
    """

    def __init__(self, fleet: Fleet, watch: Callable[[Fleet], None]) -> None:
        self.crashes: Counter[str] = Counter()
        self._watch = watch
        self._fleet = fleet
        self._clock = fleet.clock
        self._certain = ["node", "gateway", "aggregator"]

    def storm(self, seconds: int) -> None:
        """Let faults happen for a while."""
        fleet, clock = self._fleet, self._clock
        fleet.broker.weather = fleet.uplinks.weather = _FOUL
        for process in (fleet.aggregator, *fleet.nodes):
            process.save_failure_rate = 0.02
        end_us = clock.now_us + seconds * SECOND_US

        def strike() -> None:
            if clock.now_us < end_us:
                self._strike()
                clock.after(clock.between(SECOND_US // 2, 3 * SECOND_US), strike)

        strike()
        for _ in range(seconds):
            fleet.run(1)
            self._watch(fleet)

    def calm(self) -> None:
        """Let the last faults pass, and start what is still down."""
        fleet = self._fleet
        fleet.run(_LONGEST_FAULT_US / SECOND_US)
        fleet.broker.weather = fleet.uplinks.weather = _FAIR
        for process in fleet.processes:
            process.save_failure_rate = 0.0
            process.start()

    def _strike(self) -> None:
        clock, uplinks = self._clock, self._fleet.uplinks
        kind = clock.random.choices(list(_RATES), list(_RATES.values()))[0]
        if self._certain:
            kind = self._certain.pop()
        wait_us = clock.between(100_000, _LONGEST_FAULT_US)
        gateway = clock.random.choice(self._fleet.gateways).name
        if kind in ("node", "gateway", "aggregator"):
            self._crash(kind, wait_us)
        elif kind == "link":
            sessions = list(self._fleet.broker.sessions.values())
            self._break_link(clock.random.choice(sessions), wait_us)
        elif kind == "uplink":
            uplinks.cut.add(gateway)
            uplinks.break_stream(gateway)
            clock.after(wait_us, lambda: uplinks.cut.discard(gateway))
        elif kind == "stream":
            uplinks.break_stream(gateway)
        else:
            self._fleet.broker.forget()
            for session in self._fleet.broker.sessions.values():
                self._break_link(session, wait_us)

    def _crash(self, kind: str, wait_us: int) -> None:
        fleet = self._fleet
        tiers = {"node": fleet.nodes, "gateway": fleet.gateways, "aggregator": [fleet.aggregator]}
        process = self._clock.random.choice(tiers[kind])
        self.crashes[kind] += process.alive
        process.crash()
        self._clock.after(wait_us, process.start)

    def _break_link(self, session: Session, wait_us: int) -> None:
        """Break a link; the process notices after a while, and connects again after a longer one."""
        if not session.connected:
            return
        session.reachable = False
        self._fleet.broker.disconnect(session)
        life = session.process.life

        def notice() -> None:
            if session.process.life == life:
                session.process.receive(names.BROKER, LinkDown())

        def heal() -> None:
            session.reachable = True
            self._fleet.broker.connect(session)

        self._clock.after(wait_us // 2, notice)
        self._clock.after(wait_us, heal)
