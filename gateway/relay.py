"""Versions on their way down: the gateway fetches changed units once and announces them to its nodes.

Units are announced before the descriptor that needs them, and those of the current and two former
versions are kept, so that a node is never told of a version it cannot complete.

Versions have two lanes, the aggregator's and the provisional ones of an island: `hedgerow.core.versions`.
"""

from collections.abc import Container, Mapping
from math import prod

from gateway.supply import Supply
from hedgerow.core import names
from hedgerow.core.chunks import chunk_blob
from hedgerow.core.downlink import value_bytes
from hedgerow.core.effects import Announce
from hedgerow.core.errors import PeerError
from hedgerow.core.inline import carried, inline_units
from hedgerow.core.messages import BlobPart, Descriptor
from hedgerow.core.outlet import Outlet
from hedgerow.core.partial import fixed_point_scale
from hedgerow.core.plan import Plan
from hedgerow.core.planbook import PlanBook
from hedgerow.core.rules import Rules
from hedgerow.core.units import Manifest
from hedgerow.core.versions import check_lane, is_provisional, supersedes

VERSIONS_KEPT = 3
_VALUE_BYTES = 4
"""The most bytes of a value in any downlink format."""


class Relay:
    """Knows the versions an update may come from, and serves the newest ones.

    `newest` is what nodes are to train from, `lasting` the aggregator's newest version: another one while an
    island learns.
    """

    def __init__(
        self, gateway: str, model: str, chunk_bytes: int, supply: Supply, outlet: Outlet
    ) -> None:
        self._gateway = gateway
        self.model = model
        self._chunk_bytes = chunk_bytes
        self._supply = supply
        self._outlet = outlet
        self._descriptors: dict[int, Descriptor] = {}
        self._book = PlanBook()
        self._blobs: dict[str, bytes] = {}
        self._served: list[Descriptor] = []
        self.newest: Descriptor | None = None
        self.lasting: Descriptor | None = None

    @property
    def version(self) -> int:
        """The aggregator's newest version known, -1 before the first."""
        return -1 if self.lasting is None else self.lasting.version

    @property
    def term(self) -> int:
        """The aggregator's term as last heard, 0 before."""
        return 0 if self.lasting is None else self.lasting.term

    @property
    def served_version(self) -> int:
        """The newest version whose units are all here and announced, -1 before the first."""
        return self._served[-1].version if self._served else -1

    @property
    def served(self) -> Descriptor | None:
        """The version that nodes are given now, None before the first."""
        return self._served[-1] if self._served else None

    @property
    def units(self) -> Container[str]:
        """The names of the newest version's units."""
        return () if self.newest is None else self.newest.units

    def rules(self, version: int) -> Rules:
        """Return the rules published with a version. Raises PeerError when it is not known here."""
        return self.descriptor(version).rules

    def descriptor(self, version: int) -> Descriptor:
        """Return a version's descriptor. Raises PeerError when it is not known here."""
        found = self._descriptors.get(version)
        if found is None:
            raise PeerError("unknown-version", f"version {version} is not known here")
        return found

    def knows(self, version: int) -> bool:
        """Whether the rules published with a version are known here."""
        return version in self._descriptors

    def is_stale(self, version: int) -> bool:
        """Whether an update of this version is older than the newest rules of its lane allow."""
        newest = self._newest_like(version)
        return newest is not None and newest.version - version > newest.rules.staleness.tau_max

    def is_future(self, version: int) -> bool:
        """Whether a version is newer than any of its lane that is known here."""
        newest = self._newest_like(version)
        return newest is None or version > newest.version

    def _newest_like(self, version: int) -> Descriptor | None:
        """Return the newest version of the lane that `version` is in."""
        if not is_provisional(version):
            return self.lasting
        newest = self.newest
        return newest if newest is not None and is_provisional(newest.version) else None

    def island_base(self, version: int) -> Descriptor:
        """Return the descriptor of an island's version; of one that is not known here, the newest version's.

        An island that nobody here remembers had the rules of some version of the aggregator. Raises PeerError
        before the first version.
        """
        found = self._descriptors.get(version) or self.newest
        if found is None:
            raise PeerError("future-version", f"base version {version} is not known here yet")
        return found

    @property
    def oldest(self) -> Descriptor | None:
        """The oldest version of the aggregator that is known here."""
        lasting = (version for version in self._descriptors if not is_provisional(version))
        return self._descriptors.get(min(lasting, default=-1))

    def bodies(self, descriptor: Descriptor) -> dict[str, bytes]:
        """Return the units' bytes by name of a version that is served."""
        bodies = {**self._blobs, **inline_units(descriptor)}
        return {name: bodies[unit.digest] for name, unit in descriptor.units.items()}

    def take_made(self, descriptor: Descriptor, bodies: Mapping[str, bytes]) -> None:
        """Serve a version that was made here; `bodies` are its units by digest, but for those it carries."""
        self._blobs.update(bodies)
        self.take(descriptor)

    def plan(self, plan_id: str) -> Plan:
        """Return a plan of some known version. Raises PeerError for any other."""
        found = self._book.plans.get(plan_id)
        if found is None:
            raise PeerError("unknown-plan", f"plan {plan_id} is not known here")
        return found

    def take(self, descriptor: Descriptor) -> None:
        """Take a version from above and fetch what it lacks. Raises PeerError for a bad one."""
        if descriptor.model != self.model:
            raise PeerError(
                "wrong-model", f"descriptor of {descriptor.model}, this is {self.model}"
            )
        manifest = Manifest.of({name: unit.shape for name, unit in descriptor.units.items()})
        plans = self._book.read(descriptor, manifest)
        _check(descriptor)
        if self.is_stale(descriptor.version):
            return  # no update of it can be summed here, and nothing below would forget it again
        self._descriptors[descriptor.version] = descriptor
        newer = _replaces(descriptor, self.newest, self.served)
        if newer:
            self.newest = descriptor
        if not is_provisional(descriptor.version) and descriptor.version >= self.version:
            self.lasting = descriptor
        self._descriptors = {v: d for v, d in self._descriptors.items() if not self.is_stale(v)}
        self._book.take(plans, self._descriptors.values())
        if newer:
            self._bring(descriptor)

    def _bring(self, descriptor: Descriptor) -> None:
        """Fetch what the newest version lacks here, and serve it once it is complete."""
        # A version may be overtaken before it was complete: its units are of no use then.
        useful: set[str] = set().union(*(_apart(d) for d in (*self._served, descriptor)))
        self._blobs = {name: body for name, body in self._blobs.items() if name in useful}
        self.fetch()
        self._serve_if_complete()

    def fetch(self) -> None:
        """Have the units brought that the newest version lacks here."""
        if self.newest is None:
            return
        missing = _apart(self.newest) - self._blobs.keys()
        units = self.newest.units.values()
        sizes = {u.digest: _VALUE_BYTES * prod(u.shape) for u in units if u.digest in missing}
        self._supply.want(sizes)

    def put(self, part: BlobPart) -> None:
        """Take a unit, whole; its digest was checked by whoever brought it."""
        if self.newest is not None and part.digest in _apart(self.newest):
            self._blobs[part.digest] = part.body
            if self._supply.peer:
                self.fetch()  # what is here is not followed any longer
            self._serve_if_complete()

    def serve_again(self, digests: list[str]) -> None:
        """Announce units once more: a node did not get them."""
        for digest in digests:
            if digest in self._blobs:
                self._announce_blob(self._blobs[digest])

    def _serve_if_complete(self) -> None:
        newest = self.newest
        if newest is None or not _apart(newest) <= self._blobs.keys():
            return
        _check_lengths(newest, self.bodies(newest))
        if newest.version != self.served_version:
            announced: set[str] = set().union(*(_apart(old) for old in self._served))
            for digest in sorted(_apart(newest) - announced):
                self._announce_blob(self._blobs[digest])
            self._served.append(newest)
        else:
            self._served[-1] = newest
        channel = names.descriptor_channel(self._gateway, self.model)
        self._outlet.do(Announce(channel, newest))
        self._forget_old()

    def _announce_blob(self, body: bytes) -> None:
        for part in chunk_blob(body, self._chunk_bytes):
            channel = names.blob_channel(self.model, part.digest, part.index)
            self._outlet.do(Announce(channel, part))

    def _forget_old(self) -> None:
        while len(self._served) > VERSIONS_KEPT:
            dropped = self._served.pop(0)
            kept: set[str] = set().union(*(_apart(d) for d in self._served))
            for digest in sorted(_apart(dropped) - kept):
                self._clear_blob(self._blobs.pop(digest))

    def _clear_blob(self, body: bytes) -> None:
        for part in chunk_blob(body, self._chunk_bytes):
            channel = names.blob_channel(self.model, part.digest, part.index)
            self._outlet.do(Announce(channel, None))


def _replaces(new: Descriptor, newest: Descriptor | None, served: Descriptor | None) -> bool:
    """Whether nodes are to have a new version instead of the newest one.

    One of the aggregator that is not whole cannot become so in an island: it hides no provisional one.
    """
    if newest is not None and newest.island is None and new.island is not None:
        newest = served
    return newest is None or supersedes(new, newest)


def _check(descriptor: Descriptor) -> None:
    """Raise PeerError for what would fail later: it may come from a peer, as it is kept on a channel."""
    check_lane(descriptor)
    inline_units(descriptor)
    try:
        fixed_point_scale(descriptor.rules)
    except (ValueError, ArithmeticError) as error:
        raise PeerError("not-finite", f"rules that nothing can be summed by: {error}") from None


def _check_lengths(descriptor: Descriptor, bodies: Mapping[str, bytes]) -> None:
    """Raise PeerError unless each unit's bytes are as many as its shape asks for."""
    for name, unit in descriptor.units.items():
        expected = value_bytes(descriptor.downlink) * prod(unit.shape)
        if len(bodies[name]) != expected:
            raise PeerError("shape", f"unit {name} has {len(bodies[name])} bytes, not {expected}")


def _apart(descriptor: Descriptor) -> set[str]:
    """Return the digests of the units that travel on channels of their own."""
    return {unit.digest for unit in descriptor.units.values()} - carried(descriptor)
