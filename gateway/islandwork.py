"""The provisional versions of one island: made of its merges, served like any version, kept for a restart."""

from collections.abc import Container, Mapping
from dataclasses import dataclass, field

import msgspec
import numpy as np
from msgspec.structs import replace

from gateway.islandmerge import IslandBase, Merged, change, step, with_change
from hedgerow.core.downlink import downlink_for
from hedgerow.core.inline import carried, inline_of
from hedgerow.core.messages import Descriptor, IslandStamp, UnitVersion, Update, UpdateId
from hedgerow.core.units import Vector, digest, unit_bytes
from hedgerow.core.versions import (
    TERM_PROVISIONALS,
    first_of_term,
    is_provisional,
    term_of,
)


class KeptIsland(msgspec.Struct, frozen=True, array_like=True):
    """What an acting gateway's disk has of its island, besides the updates: all but the merges."""

    terms: list[int]
    descriptor: Descriptor
    params: bytes


@dataclass
class IslandWork:
    """One island at the gateway that acts: `start` is the aggregator's version, `params`, (P,), are its own.

    `terms` are those under which it was the acting one, oldest first: more than one after restarts. `total`,
    shape (p,), is the sum of the steps of all `merges`; `newest` the descriptor served last.
    """

    gateway: str
    start: Descriptor
    params: Vector
    terms: list[int] = field(default_factory=list)
    merges: list[Merged] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.base = IslandBase.of(self.start)
        self.total: Vector = np.zeros(self.base.plan.size, np.float32)
        self.newest = self.start

    @property
    def ids(self) -> list[UpdateId]:
        """The updates merged so far."""
        return [update_id for one in self.merges for update_id in one.ids]

    @property
    def full(self) -> bool:
        """Whether the term has no number left for another version."""
        return len(self.merges) + 1 >= TERM_PROVISIONALS

    def age(self, version: int) -> int:
        """Return how many merges ago an update was trained that names a version.

        One of the aggregator's counts as the island's first version, and so does one of an island that this
        one does not go on: how it came about is not known here.
        """
        known = is_provisional(version) and term_of(version) in self.terms
        made = version - first_of_term(term_of(version)) if known else 0
        return max(len(self.merges) - made, 0)

    def merge(self, updates: list[Update]) -> None:
        """Add the step of some updates, which the base takes."""
        ages = [self.age(update.base_version) for update in updates]
        self.total = self.total + step(updates, ages, self.base)
        self.merges.append(Merged([update.id for update in updates], ages))

    def next_version(self) -> tuple[Descriptor, dict[str, bytes]]:
        """Return the version that the merges have come to, and the bytes of its units by digest.

        Those that the descriptor carries, or that have not changed since the last one, are left out.
        """
        params = with_change(self.params, self.total, self.base.plan)
        downlink = downlink_for(params, self.start.downlink)
        version = first_of_term(self.terms[-1]) + len(self.merges)
        units, bodies = {}, {}
        for unit in self.base.manifest.units:
            body = unit_bytes(params[self.base.manifest.slices[unit.name]], downlink)
            old, name = self.newest.units[unit.name], digest(body)
            units[unit.name] = old
            if name != old.digest:
                units[unit.name] = UnitVersion(name, version, list(unit.shape))
            bodies[name] = body
        made = replace(
            self.start,
            version=version,
            parent=self.newest.version,
            units=units,
            downlink=downlink,
            inline=inline_of(params, self.base.plan, downlink),
            training_open=True,
            sample=None,
            individual=True,
            probe=None,
            island=IslandStamp(self.gateway, self.terms[-1], self.start.version),
        )
        self.newest = made
        inline = carried(made)
        return made, {name: body for name, body in bodies.items() if name not in inline}

    def start_bodies(self) -> dict[str, bytes]:
        """Return the start's units by digest, without those that its descriptor carries."""
        inline = carried(self.start)
        bodies = {}
        for name, unit in self.start.units.items():
            if unit.digest not in inline:
                values = self.params[self.base.manifest.slices[name]]
                bodies[unit.digest] = unit_bytes(values, self.start.downlink)
        return bodies

    def without(self, ids: Container[UpdateId], updates: Mapping[UpdateId, Update]) -> None:
        """Leave some updates out, whatever they did; `updates` are all the others, at least."""
        self.merges = [one.without(ids) for one in self.merges]
        self.total = change(self.merges, updates, self.base)

    def kept(self) -> bytes:
        """Return all but the merges, for the disk."""
        return msgspec.msgpack.encode(
            KeptIsland(self.terms, self.start, self.params.astype("<f4").tobytes())
        )


def restored(gateway: str, body: bytes, merges: list[Merged]) -> IslandWork:
    """Return an island from the disk, its `total` still to be computed by `without`.

    Raises PeerError or msgspec.DecodeError for what does not fit.
    """
    kept = msgspec.msgpack.decode(body, type=KeptIsland)
    params = np.frombuffer(kept.params, "<f4").astype(np.float32)
    return IslandWork(gateway, kept.descriptor, params, kept.terms, merges)
