"""Energy is conserved: what a battery holds is what it had, plus what came, minus what went."""

import math
import random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedgerow.core.errors import ConfigError
from sims.power import Power
from sims.scenario import PowerTable
from sims.traces import Traces

SECOND_US = 1_000_000
HOUR_US = 3600 * SECOND_US
DAY_US = 24 * HOUR_US
Keys = dict[str, Any]


def power(**keys: object) -> Power:
    return Power(msgspec.convert(keys, PowerTable), random.Random(1), Traces(None))


@st.composite
def tables(draw: st.DrawFn) -> Keys:
    keys: Keys = {
        "battery_j": draw(st.floats(10, 1e5)),
        "start_share": draw(st.floats(0, 1)),
        "restart_share": draw(st.floats(0.01, 1)),
        "idle_w": draw(st.floats(0, 2)),
        "solar_w": draw(st.just(0.0) | st.floats(0.01, 5)),
    }
    if draw(st.booleans()):
        begin, end = draw(st.integers(0, 23)), draw(st.integers(0, 24))
        if begin != end:
            keys |= {"charge_w": draw(st.floats(0.1, 5)), "charge_hours": [begin, end]}
    return keys


times = st.integers(0, 3 * DAY_US)


def incoming_w(keys: Keys, second: float) -> float:
    hour = second / 3600 % 24
    gained = keys["solar_w"] * max(0.0, math.sin(math.pi * (hour - 6) / 12))
    if "charge_hours" in keys:
        begin, end = keys["charge_hours"]
        inside = begin <= hour < end if begin < end else hour >= begin or hour < end
        gained += keys["charge_w"] * inside
    return float(gained)


def test_the_default_counts_without_a_battery() -> None:
    counted = Power(None, random.Random(1), Traces(None))
    assert counted.training_j(500) == pytest.approx(1.0)
    assert counted.up_j(1000) == pytest.approx(5e-3)
    assert counted.down_j(1000) == pytest.approx(2e-3)
    counted.spend(5, 10.0)
    counted.spend(6, 2.5)
    assert counted.spent_j == 12.5
    assert counted.level_share(DAY_US) is None
    assert not counted.is_empty(DAY_US)
    assert counted.empty_at_us(DAY_US, 1000.0) is None
    assert counted.back_at_us(DAY_US) is None


def test_idling_is_counted_only_while_on() -> None:
    device = power(battery_j=1000, idle_w=0.1)
    device.switch(1000 * SECOND_US, on=False)
    device.switch(5000 * SECOND_US, on=True)
    assert device.level_share(6000 * SECOND_US) == pytest.approx(0.8)
    assert device.idle_j == pytest.approx(200.0)
    assert device.spent_j == 0


def test_a_day_of_sun_brings_its_integral() -> None:
    device = power(battery_j=1e6, start_share=0.0, solar_w=2.0)
    assert device.level_share(6 * HOUR_US) == 0
    morning = 2.0 * 6 * 3600 * 2 / math.pi
    assert device.level_share(12 * HOUR_US) == pytest.approx(morning / 1e6)
    assert device.level_share(18 * HOUR_US) == pytest.approx(2 * morning / 1e6)
    assert device.level_share(DAY_US) == pytest.approx(2 * morning / 1e6)


def test_a_charger_works_over_midnight() -> None:
    device = power(battery_j=1e6, start_share=0.0, charge_w=1.0, charge_hours=[22, 6])
    assert device.level_share(DAY_US) == pytest.approx(8 * 3600 / 1e6)


def test_a_battery_is_never_more_than_full_nor_less_than_empty() -> None:
    device = power(battery_j=100, solar_w=50.0)
    assert device.level_share(DAY_US) == 1
    device.spend(DAY_US, 1000.0)
    assert device.level_share(DAY_US) == 0
    assert device.is_empty(DAY_US)
    assert device.spent_j == 1000


@settings(max_examples=40)
@given(tables(), st.floats(0, 24), st.booleans())
def test_the_level_is_what_small_steps_give(keys: Keys, begin_h: float, on: bool) -> None:  # noqa: FBT001
    """Clamped Euler steps of 10 seconds are the oracle; they are off by at most a step at each clamp."""
    device = power(**keys)
    device.switch(0, on=on)
    level, battery = keys["battery_j"] * keys["start_share"], keys["battery_j"]
    checks = [round(begin_h * 360) + k for k in (0, 1000, 8000, 9000)]
    for step in range(checks[-1] + 1):
        if step in checks:
            share = device.level_share(step * 10 * SECOND_US)
            assert share is not None
            assert share * battery == pytest.approx(level, abs=10 * 12 * 2)
        net_w = incoming_w(keys, step * 10 + 5) - (keys["idle_w"] if on else 0.0)
        level = min(battery, max(0.0, level + net_w * 10))


@given(tables(), st.lists(st.tuples(times, st.floats(0, 1)), min_size=1, max_size=8))
def test_energy_is_conserved_while_neither_full_nor_empty(
    keys: Keys, spendings: list[tuple[int, float]]
) -> None:
    keys |= {"battery_j": 1e7, "start_share": 0.5}
    device, charger = power(**keys), power(**(keys | {"start_share": 0.0, "idle_w": 0.0}))
    for at, joule in sorted(spendings):
        device.spend(at, joule)
    end = max(at for at, _ in spendings)
    level, charged = device.level_share(end), charger.level_share(end)
    assert level is not None
    assert charged is not None
    expected = 0.5e7 + charged * 1e7 - device.spent_j - device.idle_j
    assert level * 1e7 == pytest.approx(expected, rel=1e-9)


@given(tables(), st.lists(times, max_size=10), times)
def test_looking_more_often_changes_nothing(keys: Keys, looks: list[int], end: int) -> None:
    often, once = power(**keys), power(**keys)
    for at in sorted(look for look in looks if look < end):
        often.is_empty(at)
    share = once.level_share(end)
    assert often.level_share(end) == pytest.approx(share, abs=1e-9)
    assert often.idle_j == pytest.approx(once.idle_j)


@given(tables(), times, st.floats(0, 1e5), st.floats(0, 1))
def test_spending_in_two_steps_equals_one(keys: Keys, at: int, joule: float, part: float) -> None:
    one, two = power(**keys), power(**keys)
    one.spend(at, joule)
    two.spend(at, joule * part)
    two.spend(at, joule - joule * part)
    assert two.spent_j == pytest.approx(one.spent_j)
    assert two.level_share(at) == pytest.approx(one.level_share(at), abs=1e-9)


@given(tables(), times, st.floats(0, 20))
def test_a_battery_is_empty_when_it_was_foretold(keys: Keys, now: int, watts: float) -> None:
    """The load is an idling of its own here; a moment before, the battery still holds something."""
    device = power(**keys)
    foretold = device.empty_at_us(now, watts)
    loaded = power(**(keys | {"idle_w": keys["idle_w"] + watts}))
    loaded._level_j = device._level_j
    loaded._now_us = now
    if device.is_empty(now):
        assert foretold == now
    elif foretold is None:
        for hours in range(49):
            assert not loaded.is_empty(now + hours * HOUR_US)
    else:
        assert now <= foretold <= now + 2 * DAY_US + 1
        assert (loaded.level_share(max(now, foretold - SECOND_US)) or 0) > 0
        assert loaded.is_empty(foretold)


@given(tables(), times, st.floats(0.1, 20))
def test_paying_for_the_load_at_the_end_empties_it_too(keys: Keys, now: int, watts: float) -> None:
    device = power(**keys)
    foretold = device.empty_at_us(now, watts)
    if foretold is not None:
        device.spend(foretold, watts * (foretold - now) / SECOND_US)
        assert device.is_empty(foretold)


def test_a_linear_battery_ends_when_it_should() -> None:
    device = power(battery_j=100, idle_w=0.5)
    assert device.empty_at_us(0, 0.5) == 100 * SECOND_US
    assert device.empty_at_us(0, 0.0) == 200 * SECOND_US
    device.switch(50 * SECOND_US, on=False)
    assert device.empty_at_us(50 * SECOND_US, 0.0) is None
    assert power(battery_j=1e9, idle_w=0.5).empty_at_us(0, 1.0) is None


@given(tables(), times)
def test_an_empty_device_is_back_at_its_share_and_not_before(keys: Keys, now: int) -> None:
    device = power(**keys)
    device.spend(now, 2e5)
    device.switch(now, on=False)
    back = device.back_at_us(now)
    if back is None:
        assert keys["solar_w"] + keys.get("charge_w", 0.0) == 0
        return
    before = device.level_share(back - 2 * SECOND_US) if back - 2 * SECOND_US > now else 0.0
    assert before is not None
    after = device.level_share(back)
    assert after is not None
    # The time is rounded up to a microsecond, in which 10 W bring at most 1e-6 of 10 J.
    assert after == pytest.approx(keys["restart_share"], rel=1e-9, abs=1e-6)
    assert before <= keys["restart_share"] * (1 + 1e-9)


def test_slow_charging_takes_its_days() -> None:
    device = power(battery_j=1e6, start_share=0.0, charge_w=1.0, charge_hours=[0, 1])
    device.switch(0, on=False)
    # 200,000 J at 3,600 J a night: 55 nights and 2,000 seconds.
    assert device.back_at_us(0) == 55 * DAY_US + 2000 * SECOND_US


def test_without_any_source_a_device_never_comes_back() -> None:
    device = power(battery_j=100, start_share=0.0)
    assert device.is_empty(0)
    assert device.back_at_us(0) is None
    assert power(battery_j=100, start_share=0.5).back_at_us(7) == 7


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"battery_j": -1}, "battery_j: -1 is below 0"),
        ({"start_share": 1.5}, "start_share: 1.5 is no share"),
        ({"battery_j": 1, "restart_share": 0}, "restart_share: 0 would revive"),
        ({"charge_w": 5}, "charge_hours: None does not go with charge_w 5"),
        ({"charge_hours": [1, 2]}, "does not go with charge_w 0"),
        ({"charge_w": 5, "charge_hours": [3, 3]}, r"charge_hours: \[3, 3\] is no stretch"),
        ({"solar_w": {"uniform": [-2, -1]}}, "solar_w: -.* is below 0"),
    ],
)
def test_what_cannot_be_is_refused_by_name(keys: Keys, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        power(**keys)
