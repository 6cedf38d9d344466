"""Nothing is lost, nothing counts twice, nothing is invented: whole fleets under random faults.

The deployed protocols run under the deployed driver on the simulator's network and disks. C1 to C6 are those
of the oracle, and of the watch that every simulation has. A failure names its law and seed; the same seed
replays it.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sims.checks import ViolationError, Watch
from sims.fleet import Parts
from tests.simulation import oracle
from tests.simulation.fleets import SmallFleet
from tests.simulation.mutants import MUTANTS, SOUND, Mutant
from tests.simulation.trials import (
    LAWS,
    ask_oracle,
    ask_watch,
    live_through,
    make_fleet,
    undergo,
    unseen,
    weather_the_storm,
)

ROOT = Path(__file__).parents[2]
SEEDS = 25
MUTANT_SEEDS, SOUND_SEEDS = 8, 2


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("law", LAWS)
def test_conservation(law: str, seed: int) -> None:
    assert unseen(*undergo(seed, law)) == []


def test_a_seed_replays_to_the_same_bits() -> None:
    digests = []
    for _ in range(2):
        fleet = make_fleet(3, "exponential")
        weather_the_storm(fleet)
        history = oracle.ledger_of(fleet).history.values()
        digests.append((fleet.trace_hash, [params.tobytes() for _, params in history]))
    assert digests[0] == digests[1]
    assert len(digests[0][1]) > 10


def trace_in_another_process(seed: int, hash_seed: str) -> str:
    """Return the trace hash of a storm that another interpreter lived through."""
    command = [sys.executable, "-m", "tests.simulation.storm_trace", str(seed)]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True, timeout=100
    )
    return done.stdout.strip()


def test_the_trace_depends_on_the_seed_and_on_nothing_else() -> None:
    first = trace_in_another_process(5, "1")
    assert len(first) == 32
    assert trace_in_another_process(5, "2") == first
    assert trace_in_another_process(6, "1") != first


# The checks themselves are tested: each mutant breaks one rule and must be caught, by the watch and by the
# oracle, each without the other's help.


class DeafWatch(Watch):
    """Says nothing, so that the oracle alone must find what is wrong."""

    def broken(self, text: str) -> None:
        return


def the_oracle_catches(parts: Parts, seed: int) -> bool:
    fleet = SmallFleet(seed, parts=parts, watch=DeafWatch(), replay=False)
    try:
        live_through(fleet)
        ask_oracle(fleet)
    except ViolationError:
        return True
    except KeyError:
        # An aggregator that lost its way fell over by itself: nobody caught it.
        return False
    return False


def the_watch_catches(parts: Parts, seed: int) -> bool:
    fleet = SmallFleet(seed, parts=parts)
    try:
        live_through(fleet, check=lambda _: None)
        ask_watch(fleet)
    except ViolationError as violation:
        return not isinstance(violation, oracle.OracleError)
    return False


@pytest.mark.parametrize(
    ("mutant", "catches"),
    [
        pytest.param(mutant, catches, id=f"{mutant.name}-{catches.__name__}")
        for mutant in MUTANTS
        for catches in (the_oracle_catches, the_watch_catches)
        if not (mutant.unseen and catches is the_watch_catches)
    ],
)
def test_a_broken_protocol_is_caught(
    mutant: Mutant, catches: Callable[[Parts, int], bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutant.change(monkeypatch)
    caught = any(catches(mutant.parts, seed) for seed in range(MUTANT_SEEDS))
    assert caught, f"{mutant.name} was not caught by {MUTANT_SEEDS} seeds"


@pytest.mark.parametrize("catches", [the_oracle_catches, the_watch_catches])
def test_a_sound_protocol_is_not(catches: Callable[[Parts, int], bool]) -> None:
    assert not any(catches(SOUND, seed) for seed in range(SOUND_SEEDS))
