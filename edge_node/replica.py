"""The node's copy of the model: which version it has, which units it still lacks.

A unit is known by its digest, so only units whose content changed are fetched, and a version is adopted
as a whole or not at all.
"""

from collections.abc import Mapping

from hedgerow.core.chunks import Pieces
from hedgerow.core.downlink import unit_values, value_bytes
from hedgerow.core.errors import PeerError
from hedgerow.core.inline import inline_units
from hedgerow.core.messages import BlobPart, Descriptor
from hedgerow.core.plan import Plan
from hedgerow.core.planbook import PlanBook
from hedgerow.core.units import FORMATS, Manifest, Vector, digest
from hedgerow.core.versions import check_lane, supersedes


class Replica:
    """Follows descriptors and gathers their units; pure bookkeeping, it sends nothing.

    `missing` are the digests of the wanted version's units that are neither held nor fetched, in order.
    """

    def __init__(self, manifest: Manifest, model: str, kept: Mapping[str, bytes]) -> None:
        self.manifest = manifest
        self._shapes = {unit.name: unit.shape for unit in manifest.units}
        self.model = model
        self.descriptor: Descriptor | None = None
        self._book = PlanBook()
        self.params: Vector | None = None
        self._wanted: Descriptor | None = None
        self._units = {
            name: body
            for name, body in kept.items()
            if name in manifest.by_name and _may_be(body, manifest.by_name[name].size)
        }
        self._digests = {name: digest(body) for name, body in self._units.items()}
        self._pieces: dict[str, Pieces] = {}
        self._fetched: dict[str, bytes] = {}
        self.missing: list[str] = []
        self._largest_bytes = 4 * max(unit.size for unit in manifest.units)

    @property
    def version(self) -> int:
        """The adopted version, -1 before the first."""
        return -1 if self.descriptor is None else self.descriptor.version

    def plan(self, plan_id: str) -> Plan:
        """Return one of the adopted version's plans."""
        return self._book.plans[plan_id]

    def is_for(self, node: str) -> bool:
        """Whether the version that is not here yet asks `node` to train, as all do without a sample."""
        sample = None if self._wanted is None else self._wanted.sample
        return sample is None or node in sample

    def _lacking(self, wanted: Descriptor) -> list[str]:
        lacking = {
            unit.digest
            for name, unit in wanted.units.items()
            if self._digests.get(name) != unit.digest and unit.digest not in self._fetched
        }
        return sorted(lacking)

    def offer(self, descriptor: Descriptor) -> bool:
        """Take a descriptor; True when the version it names was adopted at once and is a newer one.

        What `core.versions.supersedes` calls older is ignored; the same version anew replaces the descriptor.
        Raises PeerError when it does not describe this node's model.
        """
        if descriptor.model != self.model:
            raise PeerError(
                "wrong-model", f"descriptor of {descriptor.model}, this is {self.model}"
            )
        check_lane(descriptor)
        newest = self._wanted or self.descriptor
        if newest is not None and not supersedes(descriptor, newest):
            return False
        self._check(descriptor)
        self._take_inline(descriptor)
        self._wanted = descriptor
        wanted = {unit.digest for unit in descriptor.units.values()}
        self._pieces = {name: got for name, got in self._pieces.items() if name in wanted}
        self._fetched = {name: got for name, got in self._fetched.items() if name in wanted}
        self.missing = self._lacking(descriptor)
        return self._adopt_if_complete()

    def _take_inline(self, descriptor: Descriptor) -> None:
        held = set(self._digests.values())
        for name, body in inline_units(descriptor).items():
            if name not in held and digest(body) != name:
                raise PeerError("checksum", f"unit {name} does not match its digest")
            self._fetched[name] = body

    def put(self, part: BlobPart) -> bool:
        """Take a piece of a unit; True when it completed the wanted version, which is then adopted."""
        if part.digest not in self.missing:
            return False
        pieces = self._pieces.setdefault(part.digest, Pieces(part.count))
        try:
            pieces.put(part.index, part.count, part.body)
            if pieces.held_bytes > self._largest_bytes:
                raise PeerError(
                    "too-large", f"unit {part.digest} is longer than any of the model's"
                )
            if not pieces.complete:
                return False
            body = pieces.join()
            if digest(body) != part.digest:
                raise PeerError("checksum", f"unit {part.digest} does not match its digest")
        except PeerError:
            del self._pieces[part.digest]
            raise
        del self._pieces[part.digest]
        self._fetched[part.digest] = body
        self.missing.remove(part.digest)
        return self._adopt_if_complete()

    def kept_units(self) -> dict[str, bytes]:
        """Return the units outside the plan, as the store should keep them."""
        trained = set() if self.descriptor is None else set(self.descriptor.plan)
        return {name: body for name, body in self._units.items() if name not in trained}

    def _check(self, descriptor: Descriptor) -> None:
        if "default" not in descriptor.training:
            raise PeerError("malformed", "the descriptor does not say how to train by default")
        theirs = {name: tuple(unit.shape) for name, unit in descriptor.units.items()}
        ours = self._shapes
        if theirs != ours:
            detail = f"the aggregator's model has units {theirs}, this node's task builds {ours}"
            raise PeerError("shape", detail)
        self._book.read(descriptor, self.manifest)

    def _adopt_if_complete(self) -> bool:
        if self._wanted is None or self.missing:
            return False
        descriptor = self._wanted
        downlink = descriptor.downlink
        newer = descriptor.version != self.version
        units = {
            name: self._fetched.get(unit.digest) or self._units[name]
            for name, unit in descriptor.units.items()
        }
        for name, body in units.items():
            if len(body) != value_bytes(downlink) * self.manifest.by_name[name].size:
                self._wanted, self.missing = None, []
                raise PeerError("shape", f"unit {name} has {len(body)} bytes")
        self._units, self._fetched, self._wanted = units, {}, None
        self._digests = {name: unit.digest for name, unit in descriptor.units.items()}
        self.descriptor = descriptor
        self._book.take(self._book.read(descriptor, self.manifest), [descriptor])
        arrays = {name: unit_values(body, downlink) for name, body in units.items()}
        self.params = self.manifest.join(arrays)
        return newer


def _may_be(body: bytes, size: int) -> bool:
    """Whether bytes may be a unit of so many values, in whatever format its version had."""
    return len(body) in [kind.itemsize * size for kind in FORMATS.values()]
