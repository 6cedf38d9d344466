"""Laws of staleness: s(0) = 1, never rising, nothing beyond tau_max, and gamma's powers multiply."""

from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.core.config import StalenessConfig
from hedgerow.core.staleness import MIN_HALF_LIFE_VERSIONS, StalenessLaw, law_of
from tests.unit.strategies import LAW

positive = st.floats(0, exclude_min=True, allow_infinity=False)
every_law = st.builds(
    StalenessLaw,
    kind=st.sampled_from(["exponential", "polynomial", "hinge", "constant"]),
    gamma=st.floats(0, 1, exclude_min=True),
    exponent=positive,
    hinge_after=st.integers(0, 60),
    hinge_slope=positive,
    tau_max=st.integers(1, 60),
)


@LAW
@given(every_law)
def test_every_law_starts_at_1_never_rises_and_ends_at_tau_max(law: StalenessLaw) -> None:
    weights = [law.weight(tau) for tau in range(law.tau_max + 3)]
    assert weights[0] == 1
    assert all(0 <= later <= earlier for earlier, later in pairwise(weights))
    assert weights[law.tau_max + 1 :] == [0, 0]


@LAW
@given(every_law, st.integers(-100, -1))
def test_an_update_from_the_future_has_no_weight(law: StalenessLaw, staleness: int) -> None:
    with pytest.raises(ValueError, match=f"got {staleness}"):
        law.weight(staleness)


@LAW
@given(st.floats(0.1, 1), st.integers(0, 25), st.integers(0, 25))
def test_an_exponential_age_may_be_cut_in_two(gamma: float, a: int, b: int) -> None:
    law = StalenessLaw(gamma=gamma)
    assert law.weight(a + b) == pytest.approx(law.weight(a) * law.weight(b), rel=1e-12)


@LAW
@given(every_law, st.floats(0.1, 1), st.integers(0, 60))
def test_a_partial_names_its_own_gamma(law: StalenessLaw, gamma: float, tau: int) -> None:
    own = gamma**tau if law.kind == "exponential" else law.weight(tau)
    assert law.weight(tau, gamma) == (own if tau <= law.tau_max else 0)


@pytest.mark.parametrize(
    ("law", "weights"),
    [
        (StalenessLaw(kind="exponential", gamma=0.8), {1: 0.8, 2: 0.64, 50: 0.8**50, 51: 0}),
        (StalenessLaw(kind="polynomial"), {1: 2**-0.5, 3: 0.5, 8: 1 / 3}),
        (StalenessLaw(kind="polynomial", exponent=1.0), {1: 0.5, 9: 0.1}),
        (StalenessLaw(kind="hinge"), {4: 1, 5: 1 / 1.5, 6: 0.5, 10: 0.25}),
        (StalenessLaw(kind="hinge", hinge_after=0, hinge_slope=1.0), {1: 0.5, 3: 0.25}),
        (StalenessLaw(kind="constant", tau_max=7), {7: 1, 8: 0}),
    ],
)
def test_laws_by_hand(law: StalenessLaw, weights: dict[int, float]) -> None:
    assert {tau: law.weight(tau) for tau in weights} == pytest.approx(weights)


def test_only_the_exponential_law_decays_at_the_gateway() -> None:
    assert StalenessLaw().decays_at_gateway
    assert not StalenessLaw(kind="polynomial").decays_at_gateway
    assert not StalenessLaw(kind="hinge").decays_at_gateway
    assert not StalenessLaw(kind="constant").decays_at_gateway


@LAW
@given(st.floats(0, allow_infinity=False), st.floats(0, 1e6))
def test_the_published_law_is_one_that_receivers_accept(half_life: float, mean: float) -> None:
    law = law_of(StalenessConfig(half_life=half_life), mean)
    assert msgspec.convert(msgspec.to_builtins(law), StalenessLaw) == law


@LAW
@given(st.floats(0.5, 1000), st.floats(0, 100))
def test_a_weight_halves_within_its_half_life(half_life: float, mean: float) -> None:
    set_by_hand = law_of(StalenessConfig(half_life=half_life), mean)
    assert set_by_hand.gamma**half_life == pytest.approx(0.5)
    automatic = law_of(StalenessConfig(), mean)
    assert automatic.gamma ** max(MIN_HALF_LIFE_VERSIONS, mean) == pytest.approx(0.5)


def test_the_published_law_has_every_setting() -> None:
    config = StalenessConfig(
        law="hinge", exponent=2.0, hinge_after=7, hinge_slope=3.0, tau_max=9, half_life=1.0
    )
    assert law_of(config, 0.0) == StalenessLaw(
        kind="hinge", gamma=0.5, exponent=2.0, hinge_after=7, hinge_slope=3.0, tau_max=9
    )
