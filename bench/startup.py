"""Start-up of each tier: from the start of the process until it serves or is connected."""

import time
import tomllib
from collections.abc import Callable

from bench.measure import Row, Settings
from bench.processes import Fleet, cpu_s
from bench.subjects import GATEWAY
from hedgerow.runtime.configfile import find_config

FIGURE = "start-up"
_BOUND_S = 60.0
_NODE = "node-01"
_CONNECTED = '"mqtt_connects"'
"""The event that a process logs once the broker has accepted it."""

Times = dict[str, tuple[float, float]]
"""Wall seconds and CPU-seconds of each start."""


def measure(settings: Settings) -> list[Row]:
    """Start the demo's tiers one after another, several times."""
    tables = tomllib.loads(find_config("demo").read_text(encoding="utf-8"))
    starts = 1 if settings.quick else 3
    rounds = []
    for number in range(starts):
        settings.say(f"start-up: round {number + 1} of {starts}")
        with Fleet(settings.folder / str(number), settings.broker, tables) as fleet:
            rounds.append(_start_each(fleet))
    rows = []
    for what in rounds[0]:
        wall, cpu = zip(*(one[what] for one in rounds), strict=True)
        rows.append(Row(FIGURE, what, "s", wall))
        rows.append(Row(FIGURE, what, "CPU-s", cpu))
    return rows


def _start_each(fleet: Fleet) -> Times:
    fleet.start_broker()
    aggregator = "aggregator: until /healthz answers"
    gateway = "gateway: until it has a version and its broker"
    node = "node: until the broker has accepted it"
    return {
        aggregator: _time(fleet, "aggregator", "", fleet.aggregator_serves),
        gateway: _time(fleet, "gateway", GATEWAY, lambda: _gateway_is_up(fleet)),
        node: _time(fleet, "node", _NODE, lambda: fleet.logged(_NODE, _CONNECTED)),
    }


def _gateway_is_up(fleet: Fleet) -> bool:
    return fleet.logged(GATEWAY, _CONNECTED) and fleet.gateway_serves()


def _time(fleet: Fleet, role: str, identity: str, ready: Callable[[], bool]) -> tuple[float, float]:
    began = time.monotonic()
    process = fleet.start_tier(role, identity)
    fleet.wait_for(identity or role, ready, _BOUND_S)
    return time.monotonic() - began, cpu_s(process)
