import numpy as np
import pytest

from hedgerow.core.config import DataConfig
from hedgerow.core.errors import ConfigError
from hedgerow.runtime.data import local_test


def own_rows(rows: int, fraction: float, index: int = 0, seed: int = 1) -> tuple[list[int], ...]:
    """Return the rows of a shard of `rows` examples that are trained on, and those of the test."""
    shard = np.arange(rows)[:, None].astype(np.float32), np.arange(rows)
    config = DataConfig(source="digits", local_test_fraction=fraction)
    cut = local_test(shard, config, index, seed)
    assert all((inputs[:, 0] == targets).all() for inputs, targets in cut)
    return tuple(targets.tolist() for _, targets in cut)


@pytest.mark.parametrize(
    ("rows", "fraction", "tested"), [(20, 0.25, 5), (2, 0.01, 1), (2, 0.99, 1), (9, 0.0, 0)]
)
def test_a_node_tests_on_a_share_of_its_examples_and_trains_on_the_rest(
    rows: int, fraction: float, tested: int
) -> None:
    train, test = own_rows(rows, fraction)
    assert sorted(train + test) == list(range(rows))
    assert len(test) == tested


def test_which_examples_a_node_tests_on_follows_from_seed_and_node() -> None:
    cut = own_rows(40, 0.5)
    assert own_rows(40, 0.5) == cut
    assert own_rows(40, 0.5, index=1) != cut
    assert own_rows(40, 0.5, seed=2) != cut


def test_a_node_with_one_example_cannot_test() -> None:
    with pytest.raises(ConfigError, match=r"data.local_test_fraction: 0.2, but node 3 has 1"):
        own_rows(1, 0.2, index=3)
