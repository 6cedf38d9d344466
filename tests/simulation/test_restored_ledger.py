"""An aggregator whose ledger is put back to an older copy: no number is used again, and the fleet goes on."""

import pytest

from hedgerow.core.versions import LIFE_VERSIONS
from sims.checks import Watch
from sims.clock import SECOND_US
from sims.faults import Faults
from tests.simulation.fleets import SmallFleet


@pytest.mark.parametrize("told", ["", "restore"])
@pytest.mark.parametrize("seed", range(3))
def test_the_fleet_goes_on_in_a_new_life_and_drains(seed: int, told: str) -> None:
    watch = Watch(strict=False)
    fleet = SmallFleet(seed, watch=watch, replay=False)
    fleet.start()
    fleet.run(15)
    image, old = fleet.ledger.image(), fleet.ledger.version
    fleet.run(15)
    lost = fleet.ledger.version
    assert lost > old + 2
    Faults(fleet).crash(None, 2 * SECOND_US)
    fleet.ledger.put_back(image, restored=told)
    fleet.run(60)
    assert fleet.events(f"restored_backup {told or 'gateway-ahead'}") == 1
    newest = fleet.ledger.version
    assert newest > LIFE_VERSIONS + old + 10
    first = min(version for version in watch.versions if version > lost)
    assert first == LIFE_VERSIONS + old + 1
    assert not [text for text in watch.violations if "given out twice" in text]
    applied = [row for row in fleet.ledger.ledger.values() if row.version > first]
    assert len(applied) > 20
    assert {row.header.id.node for row in applied} == {node.disk.node for node in fleet.nodes}
    assert min(row.header.base_version for row in applied[10:]) >= first
    fleet.trainings.paused = True
    fleet.run(60)
    assert [node.disk.outbox for node in fleet.nodes] == [{} for _ in fleet.nodes]


def test_what_was_settled_in_the_lost_ledger_shows_in_the_account() -> None:
    fleet = SmallFleet(1, watch=Watch(strict=False), replay=False)
    fleet.start()
    fleet.run(5)
    image = fleet.ledger.image()
    fleet.run(60)
    Faults(fleet).crash(None, 2 * SECOND_US)
    fleet.ledger.put_back(image)
    fleet.run(20)
    process = fleet.aggregator
    assert process.driver is not None
    status = process.driver._protocol.status(fleet.loop.now_us)  # type: ignore[attr-defined]
    assert status.restored == "gateway-ahead"
    assert status.account.applied > status.account.ledger_applied
    assert status.account.contradicted
