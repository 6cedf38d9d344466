"""F19 and F20: disks put back to an older state, and a node that is there twice."""

import shutil
import time

from hedgerow.core.versions import LIFE_VERSIONS
from tests.faults.fault import Fault
from tests.faults.fleet import AGGREGATOR, Fleet
from tests.faults.role import Role


def restored_image(fleet: Fleet, run: int) -> str:
    """F19: a node goes on from an older image of its disk; it takes a new epoch."""
    node = fleet[fleet.nodes[0]]
    node.stop()
    image = fleet.keep(node.name)
    node.start()
    _wait_for_updates(fleet, node.name, 4)
    node.stop()
    fleet.ended.append(fleet.keep(node.name))
    epoch = fleet.mark(node.name).epoch
    shutil.rmtree(node.folder)
    shutil.copytree(image, node.folder)
    node.start()
    fleet.until(
        lambda: fleet.mark(node.name).epoch not in (0, epoch), 20, "the node takes a new epoch"
    )
    return f"{node.name}: went on under a new epoch"


def clone(fleet: Fleet, run: int) -> str:
    """F19: a copy of a node's disk runs beside it, under the same name, until it is noticed and ended."""
    node = fleet[fleet.nodes[0]]
    node.stop()
    image = fleet.keep(node.name)
    fleet.ended.append(image)
    epoch = fleet.mark(node.name).epoch
    twin = Role(f"twin-{run}", [*node.command], image, fleet.folder / "twin.log")
    at = twin.command.index("--dir")
    twin.command[at + 1] = str(image)
    node.start()
    twin.start()
    try:
        issued = fleet.mark(node.name).issued
        fleet.until(lambda: twin.events("update_issued") > 1, 30, "the twin trains")
        fleet.until(lambda: fleet.mark(node.name).issued != issued, 30, "the node trains")
        time.sleep(5.0)
    finally:
        twin.kill()
    fleet.until(lambda: _alarms(fleet) > 0, 30, "an alarm")
    changed = fleet.mark(node.name).epoch != epoch
    return (
        f"{_alarms(fleet)} alarms, {node.name} took {'a new epoch' if changed else 'no new epoch'}"
    )


def old_backup(fleet: Fleet, run: int) -> str:
    """F20: the aggregator goes on from an older copy of its folder; no version number comes twice."""
    aggregator = fleet[AGGREGATOR]
    aggregator.stop()
    image = fleet.keep(AGGREGATOR)
    before = max(fleet.versions())
    aggregator.start()
    fleet.until(lambda: max(fleet.versions()) > before + 3, 30, "versions the copy does not have")
    aggregator.stop()
    given_out = fleet.versions()
    shutil.rmtree(aggregator.folder)
    shutil.copytree(image, aggregator.folder)
    aggregator.start()
    newest = max(given_out)
    fleet.until(lambda: max(fleet.versions(), default=0) > newest, 30, "it goes on")
    again = {v for v, told in fleet.versions().items() if given_out.get(v, told) != told}
    assert not again, f"versions {sorted(again)} were given out twice"
    life = max(fleet.versions()) // LIFE_VERSIONS
    assert life > newest // LIFE_VERSIONS, "that the copy is old was not noticed"
    return f"{newest - before} versions forgotten, life {life} began"


def _wait_for_updates(fleet: Fleet, node: str, count: int) -> None:
    goal = len(fleet.applied(node)) + count
    fleet.until(lambda: len(fleet.applied(node)) >= goal, 30, f"{count} more updates of {node}")


def _alarms(fleet: Fleet) -> int:
    return sum(fleet[name].events("fork_alarm") for name in (*fleet.gateways, AGGREGATOR))


FAULTS = [
    Fault("F19", "restored SD image", restored_image),
    Fault("F19", "cloned node", clone),
    Fault("F20", "aggregator from an old backup", old_backup),
]
