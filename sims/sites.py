"""What each site's nodes have, while a fleet runs: the version they are given, how good it is, what waits.

A site is a broker with the gateways and nodes that are there. Its version is read from the broker, as a node
reads it; without an uplink it is another one than the aggregator's newest.
"""

from statistics import fmean

from hedgerow.core import names
from hedgerow.core.downlink import unit_values
from hedgerow.core.inline import inline_units
from hedgerow.core.messages import BlobPart, Descriptor
from hedgerow.core.units import Vector
from hedgerow.core.versions import is_provisional
from sims.broker import Broker
from sims.clock import SECOND_US
from sims.fleet import Fleet
from sims.host import GatewayHost, NodeHost
from sims.result import SiteCurve, SitePoint

_Values = tuple[float, float]


class SiteMeter:
    """Looks at every site at each point of a grid in virtual time; `metric` names the values."""

    def __init__(self, fleet: Fleet, metric: str, every_us: int) -> None:
        self.curves = [SiteCurve(site=broker.name, points=[]) for broker in fleet.brokers]
        self._fleet = fleet
        self._metric = metric
        self._every_us = every_us
        self._seen: dict[str, tuple[list[str], _Values]] = {}

    def begin(self) -> None:
        """Look for the first time after one step of the grid."""
        self._fleet.loop.after_us(self._every_us, self._look)

    def _look(self) -> None:
        for broker, curve in zip(self._fleet.brokers, self.curves, strict=True):
            point = self._point(broker)
            if point is not None:
                curve.points.append(point)
        self.begin()

    def _point(self, broker: Broker) -> SitePoint | None:
        fleet = self._fleet
        gateways = [host for host in fleet.gateways if host.attachment.broker is broker]
        nodes = [host for host in fleet.nodes if host.attachment.broker is broker]
        descriptor = self._served(broker, gateways)
        if descriptor is None:
            return None
        value, own = self._values(broker, descriptor, nodes)
        return SitePoint(
            t_s=fleet.loop.now_us / SECOND_US,
            version=descriptor.version,
            provisional=is_provisional(descriptor.version),
            value=value,
            own=own,
            in_outboxes=sum(len(node.disk.outbox) for node in nodes),
            spooled=sum(len(gateway.disk.updates) for gateway in gateways),
        )

    def _served(self, broker: Broker, gateways: list[GatewayHost]) -> Descriptor | None:
        """Return the version that the first gateway with one announces."""
        for gateway in gateways:
            channel = names.descriptor_channel(
                names.peer_id(gateway.process.name), self._fleet.config.fleet.model
            )
            entry = broker.retained.get(gateway.attachment.session.topics.channel(channel))
            if entry is not None and isinstance(entry.message, Descriptor):
                return entry.message
        return None

    def _values(self, broker: Broker, descriptor: Descriptor, nodes: list[NodeHost]) -> _Values:
        """Return the metric on the evaluation set, and the mean over the nodes' own examples."""
        digests = [unit.digest for unit in descriptor.units.values()]
        seen = self._seen.get(broker.name)
        if seen is not None and seen[0] == digests:
            return seen[1]
        params = self._params(broker, descriptor)
        if params is None:
            # A unit is on its way to the broker: the nodes still have what they had.
            return seen[1] if seen is not None else (float("nan"), float("nan"))
        world = self._fleet.compute
        whole = float(world.evaluate(params)[self._metric])
        own = fmean(
            float(world.evaluate_node(node.device.index, params)[self._metric]) for node in nodes
        )
        self._seen[broker.name] = (digests, (whole, own))
        return whole, own

    def _params(self, broker: Broker, descriptor: Descriptor) -> Vector | None:
        carried = inline_units(descriptor)
        values = {}
        for name, unit in descriptor.units.items():
            body = carried.get(unit.digest) or self._blob(broker, descriptor.model, unit.digest)
            if body is None:
                return None
            values[name] = unit_values(body, descriptor.downlink)
        return self._fleet.compute.manifest.join(values)

    def _blob(self, broker: Broker, model: str, digest: str) -> bytes | None:
        """Return a unit's bytes, joined from the pieces that the broker keeps; None where one is missing."""
        topics = self._fleet.gateways[0].attachment.session.topics
        pieces: list[bytes] = []
        count = 1
        while len(pieces) < count:
            topic = topics.channel(names.blob_channel(model, digest, len(pieces)))
            entry = broker.retained.get(topic)
            if entry is None or not isinstance(entry.message, BlobPart):
                return None
            pieces.append(entry.message.body)
            count = entry.message.count
        return b"".join(pieces)
