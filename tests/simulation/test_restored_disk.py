"""A node whose disk is put back to an older copy: it takes a new epoch, and nothing counts twice."""

import pytest

from sims.clock import SECOND_US
from sims.faults import Faults
from sims.host import NodeHost
from tests.simulation.fleets import SmallFleet
from tests.simulation.trials import drain

SEEDS = range(4)


def restore(fleet: SmallFleet, node: NodeHost, image: dict[str, object]) -> None:
    """Kill a node, put its disk back, and start it two seconds later, after its will."""
    Faults(fleet).crash(node, 2 * SECOND_US)
    node.disk.put_back(image)
    fleet.watch.put_back(node.disk)


def check(fleet: SmallFleet) -> None:
    """Let outboxes drain; the watch has objected to nothing, and the books of all epochs balance."""
    drain(fleet)
    assert fleet.replay is not None
    fleet.replay.verify()
    fleet.watch.balance(node.disk for node in fleet.nodes)
    assert len(fleet.ledger.ledger) == len(fleet.watch.applied)


def reasons(node: NodeHost) -> list[str]:
    return [reason for reason in node.disk.epochs.values() if reason]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_disk_put_back_from_before_its_last_start_is_recognised_at_once(seed: int) -> None:
    fleet = SmallFleet(seed)
    node = fleet.nodes[0]
    fleet.start()
    fleet.run(15)
    image, known = node.disk.image(), node.disk.issued
    fleet.run(10)
    Faults(fleet).crash(node, SECOND_US)
    fleet.run(15)
    assert node.disk.issued > known
    restore(fleet, node, image)
    fleet.run(30)
    assert reasons(node) == ["restored-disk"]
    assert node.disk.issued > known
    assert fleet.watch.forgotten.base_versions.keys() & fleet.watch.issued.keys() == set()
    check(fleet)
    assert fleet.events("restored_disk") == 1


def test_a_disk_put_back_within_a_life_is_found_out_by_its_updates() -> None:
    forks = [forks_of_a_life(seed) for seed in SEEDS]
    assert sum(forks) >= len(forks) - 1, "nearly always the ledger has what the disk forgot"


def forks_of_a_life(seed: int) -> bool:
    """Put a disk back to a copy made in the same life, of which its last will does not tell."""
    fleet = SmallFleet(seed)
    node = fleet.nodes[0]
    fleet.start()
    fleet.run(15)
    image = node.disk.image()
    fleet.run(15)
    restore(fleet, node, image)
    forgotten = fleet.watch.forgotten
    fleet.run(60)
    twins = forgotten.base_versions.keys() & fleet.watch.issued.keys()
    assert twins, "its will did not tell, so it issued under an id that was taken"
    check(fleet)
    forked = sum(n for end, n in node.disk.ends.items() if end[2] == "fork")
    # Without a fork, whatever was forgotten had been rejected: then nobody has it.
    assert reasons(node) == (["fork"] if forked else [])
    assert forked <= len(twins)
    assert forked or not forgotten.applied & twins
    return forked > 0
