"""The devices of a fleet: which kind each node is, and what the one it got can do."""

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from hedgerow.core.errors import ConfigError
from sims.availability import Availability
from sims.draws import draw_nonnegative, draw_positive
from sims.links import LinkModel, make_link
from sims.power import Power
from sims.scenario import DevicesTable, Scenario
from sims.traces import Traces

_SECOND_US = 1_000_000
_Table = TypeVar("_Table")


@dataclass
class Device:
    """One node's hardware. `index` counts the nodes of the fleet, `kind` is the name of its devices table.

    `memory_bytes` 0 is without limit, `max_update_bytes` 0 leaves the fleet's, `roam_every_s` 0 is never.
    `features_of` is the digest of the frozen stages whose results for its examples the device has stored.
    """

    name: str
    kind: str
    index: int
    mflop_per_s: float
    jitter: float
    overhead_us: int
    memory_bytes: int
    memory_class: str
    link: LinkModel
    power: Power
    availability: Availability
    roam_every_s: float
    max_update_bytes: int = 0
    features_of: str = ""

    def training_us(self, mflop: float, rng: random.Random) -> int:
        """Return how long a training of so many million operations takes, in virtual time, at least 1.

        The jitter is a lognormal factor of median 1, drawn from `rng`.
        """
        factor = math.exp(rng.gauss(0.0, self.jitter))
        return max(1, self.overhead_us + round(mflop / self.mflop_per_s * factor * _SECOND_US))


def make_devices(
    scenario: Scenario, names: Sequence[str], seed: int, traces: Traces
) -> list[Device]:
    """Return a device for each node, in the order of `names`: the same for every strategy.

    Kinds are dealt by share, by largest remainder, then shuffled with the seed; what a kind leaves to chance
    is drawn from the node's own generator. Raises ConfigError naming the dotted key: for a link or a power
    that the scenario has no table of, and for numbers that no device can have.
    """
    kinds = _dealt(scenario.devices, len(names), seed)
    return [
        _device(scenario, kind, name, index, random.Random(f"{seed}:device:{name}"), traces)
        for index, (kind, name) in enumerate(zip(kinds, names, strict=True))
    ]


def _dealt(tables: Sequence[DevicesTable], count: int, seed: int) -> list[DevicesTable]:
    """Return one table per node, each as often as its share says."""
    total = math.fsum(table.share for table in tables)
    quotas = [count * table.share / total for table in tables]
    counts = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(tables)), key=lambda kind: counts[kind] - quotas[kind])
    for kind in by_remainder[: count - sum(counts)]:
        counts[kind] += 1
    dealt = [table for table, times in zip(tables, counts, strict=True) for _ in range(times)]
    random.Random(f"{seed}:kinds").shuffle(dealt)
    return dealt


def _device(
    scenario: Scenario,
    table: DevicesTable,
    name: str,
    index: int,
    rng: random.Random,
    traces: Traces,
) -> Device:
    """Draw one device; the availability comes last, as it goes on drawing from `rng`."""
    place = f"devices.{table.name}"
    with _within(place):
        mflop_per_s = draw_positive(table.mflop_per_s, rng, traces, "mflop_per_s")
        memory_bytes = draw_nonnegative(table.memory_bytes, rng, traces, "memory_bytes")
        roam_every_s = draw_nonnegative(table.roam_every_s, rng, traces, "roam_every_s")
        link_table = _named(scenario.links, table.link, "link", "links")
        power_table = _named(scenario.power, table.power, "power", "power")
    with _within(f"links.{table.link}"):
        link = make_link(link_table, rng, traces)
    with _within(f"power.{table.power}"):
        power = Power(power_table, rng, traces)
    with _within(f"{place}.availability"):
        availability = Availability(table.availability, rng, traces, index)
    return Device(
        name=name,
        kind=table.name,
        index=index,
        mflop_per_s=mflop_per_s,
        jitter=table.jitter,
        overhead_us=round(table.overhead_s * _SECOND_US),
        memory_bytes=round(memory_bytes),
        memory_class=table.memory_class,
        link=link,
        power=power,
        availability=availability,
        roam_every_s=roam_every_s,
        max_update_bytes=0 if link_table is None else link_table.max_update_bytes,
    )


def _named(tables: Mapping[str, _Table], name: str, key: str, section: str) -> _Table | None:
    """Return a table by its name; None without a name."""
    if not name:
        return None
    if name not in tables:
        there = ", ".join(sorted(tables)) or "none"
        raise ConfigError(f"{key}: {name!r} is no table [{section}.{name}]; there is {there}")
    return tables[name]


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Put the table in front of the key that a ConfigError names."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{place}.{error}") from None
