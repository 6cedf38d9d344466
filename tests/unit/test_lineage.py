import msgspec
import numpy as np
import pytest

from aggregator.lineage import Lineage
from hedgerow.core.configcheck import parse_config
from hedgerow.core.errors import ConfigError
from hedgerow.core.messages import Header, UpdateId
from hedgerow.core.plan import choose_plan
from hedgerow.core.units import Manifest

MANIFEST = Manifest.of({"body.weight": (4, 4), "head.weight": (2, 4)})
PARAMS = np.zeros(MANIFEST.size, np.float32)


def lineage(**aggregation: object) -> Lineage:
    config = parse_config({"data": {"source": "digits"}, "aggregation": aggregation})
    return Lineage(config, choose_plan(MANIFEST, preset="all"))


def stale(lineage: Lineage, staleness: int, updates: int = 200) -> None:
    header = Header(UpdateId("n", 1, 1), 100 - staleness, 8, 1.0)
    lineage.rulebook.observe([header] * updates, 100)


def published(lineage: Lineage) -> float:
    return lineage.first(PARAMS, term=1).rules.server_learning_rate


def test_a_fresh_fleet_takes_whole_steps_and_a_stale_one_smaller_ones() -> None:
    fleet = lineage()
    assert published(fleet) == 1.0
    stale(fleet, 7)
    assert published(fleet) == pytest.approx(1 / 4.5, rel=1e-3)


def test_each_memory_class_gets_its_own_training() -> None:
    raw = {
        "data": {"source": "digits"},
        "training": {"passes": 3, "memory_classes": {"small": {"batch_size": 4}}},
    }
    fleet = Lineage(parse_config(raw), choose_plan(MANIFEST, preset="all"))
    training = fleet.first(PARAMS, term=1).training
    assert (training["default"].passes, training["small"].passes) == (3, 1)
    assert training["small"].batch_size == 4


def test_a_configured_step_is_taken_whatever_the_staleness() -> None:
    fleet = lineage(learning_rate=0.7)
    stale(fleet, 7)
    assert published(fleet) == 0.7


def test_the_half_life_follows_the_mean_staleness() -> None:
    fleet = lineage()
    stale(fleet, 10)
    law = fleet.first(PARAMS, term=1).rules.staleness
    assert law.weight(10) == pytest.approx(0.5, rel=1e-2)


def test_weights_that_leave_no_precision_are_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="aggregation: fixed point"):
        lineage(example_exponent=1.0, example_cap=1 << 20, count_max=4096)


def test_descriptors_are_forgotten_only_when_no_update_can_need_them() -> None:
    fleet = lineage()
    fleet.add(fleet.first(PARAMS, term=1))
    for version in range(1, 60):
        descriptor = fleet.next(PARAMS, term=1)
        assert descriptor.version == version
        fleet.add(descriptor, needed_from=3 if version < 58 else None)
    assert fleet.oldest == 59 - 50
    assert [d.version for d in fleet.since(57)] == [57, 58, 59]
    assert msgspec.structs.asdict(fleet.current)["parent"] == 58
