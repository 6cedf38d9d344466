"""How good the model is on each node's own examples, as it is published and with the node's own units."""

from edge_node.personal import PersonalUnits
from hedgerow.core.outlet import Outlet
from sims.fleet import Fleet
from sims.world import FleetWorld


def node_values(fleet: Fleet, world: FleetWorld, metric: str) -> list[float]:
    """Return the newest version's metric on each node's own examples."""
    params = fleet.ledger.params[fleet.ledger.version]
    return [float(metrics[metric]) for metrics in world.evaluate_nodes(params)]


def personal_values(fleet: Fleet, world: FleetWorld, metric: str) -> list[float]:
    """Return the same with each node's durable personal units; nothing where there are none."""
    version, manifest = fleet.ledger.version, world.manifest
    base, params = fleet.ledger.descriptors[version], fleet.ledger.params[version]
    if not base.personal:
        return []
    values = []
    for node in fleet.nodes:
        own = PersonalUnits(manifest, node.disk.personal, Outlet())
        tested = own.laid_over(params, base, manifest)
        values.append(float(world.evaluate_node(node.device.index, tested)[metric]))
    return values
