"""One trial: a small fleet lives through the storms of its seed, and the promises are checked.

Used by the tests, for some seeds, and by `python -m tests.simulation.seeds`, for as many as one likes.
"""

from collections.abc import Callable, Collection

from sims.checks import ViolationError
from tests.simulation import oracle
from tests.simulation.fleets import SmallFleet
from tests.simulation.mutants import SOUND
from tests.simulation.storms import Storms

LAWS = ("exponential", "polynomial")
STORM_S, FEWEST_STORMS, MOST_STORMS = 10, 4, 16
ENOUGH_APPLIED = 100
DRAIN_BOUND_S = 300
PROBE_BOUND_S = 120

Check = Callable[[SmallFleet], None]


def make_fleet(seed: int, law: str) -> SmallFleet:
    """Return a fleet at one broker; at every fourth seed nodes move between two brokers."""
    return SmallFleet(seed, law, parts=SOUND, brokers=2 if seed % 4 == 3 else 1)


def weather_the_storm(
    fleet: SmallFleet, check: Check = oracle.check, *, spared: Collection[str] = ()
) -> Storms:
    """Let faults rage but for those `spared`, then end them; the promises hold all the time."""
    storms = Storms(fleet, check, spared=spared)
    fleet.start()
    fleet.run(5)
    for count in range(1, MOST_STORMS + 1):
        storms.rage(STORM_S)
        if count >= FEWEST_STORMS and len(fleet.ledger.ledger) >= ENOUGH_APPLIED:
            break
    storms.calm()
    fleet.run(20)
    return storms


def drain(fleet: SmallFleet) -> None:
    """C5: without new trainings every outbox drains in bounded time."""
    fleet.trainings.paused = True
    for _ in range(DRAIN_BOUND_S // 10):
        fleet.run(10)
        if not any(node.disk.outbox for node in fleet.nodes):
            break
    left = {n.disk.node: sorted(n.disk.outbox) for n in fleet.nodes if n.disk.outbox}
    if left:
        raise ViolationError(f"C5: outboxes do not drain: {left}")


def probe(fleet: SmallFleet) -> None:
    """C5: an update made now lands."""
    before = len(fleet.ledger.ledger)
    fleet.trainings.release()
    # A training fails now and then even in calm weather, and is tried again after ten seconds.
    for _ in range(PROBE_BOUND_S // 10):
        fleet.run(10)
        if len(fleet.ledger.ledger) > before:
            break
    if len(fleet.ledger.ledger) == before:
        raise ViolationError("C5: a fresh update does not land")


def live_through(fleet: SmallFleet, check: Check = oracle.check) -> Storms:
    storms = weather_the_storm(fleet, check)
    check(fleet)
    drain(fleet)
    check(fleet)
    probe(fleet)
    check(fleet)
    return storms


def ask_oracle(fleet: SmallFleet) -> None:
    oracle.check_replay(fleet)
    oracle.check_ledger_rows(fleet)


def ask_watch(fleet: SmallFleet) -> None:
    assert fleet.replay is not None
    fleet.replay.verify()
    fleet.watch.balance(node.disk for node in fleet.nodes)


def settle(fleet: SmallFleet) -> None:
    """End the run: everything drains, a fresh update lands, and the oracle agrees."""
    oracle.check(fleet)
    drain(fleet)
    probe(fleet)
    oracle.check(fleet)
    ask_oracle(fleet)
    ask_watch(fleet)


def unseen(fleet: SmallFleet, storms: Storms) -> list[str]:
    """Return what a run did not see although it is about it: a run that saw no trouble proves nothing."""
    posts = fleet.uplinks.seen
    inputs = oracle.ledger_of(fleet).inputs.values()
    kinds = {bool(partial.sums) for partials in inputs for partial in partials}
    seen = {
        "enough applied updates": len(fleet.ledger.ledger) >= ENOUGH_APPLIED,
        "a repeated partial": posts["answer known"] + posts["answer overlap"] >= 1,
        "a repeated message": sum(broker.seen["repeated"] for broker in fleet.brokers) >= 1,
        "a lost message": sum(broker.seen["lost"] for broker in fleet.brokers) >= 1,
        "a lost post": posts["lost"] >= 1,
        "a repeated post": posts["repeated"] >= 1,
        "sums and single updates": kinds == {True, False},
    }
    for tier in ("node", "gateway", "aggregator"):
        seen[f"a killed {tier}"] = storms.crashes[tier] >= 1
    return [what for what, was_seen in seen.items() if not was_seen]


def undergo(seed: int, law: str) -> tuple[SmallFleet, Storms]:
    """Live through a seed and ask the oracle and the watch; raises ViolationError."""
    fleet = make_fleet(seed, law)
    try:
        storms = live_through(fleet)
        ask_oracle(fleet)
        ask_watch(fleet)
    except ViolationError as violation:
        raise ViolationError(
            f"law {law}, seed {seed}, at {fleet.loop.now_us} us: {violation};"
            f" to replay: python -m tests.simulation.seeds --law {law} --replay {seed}"
        ) from violation
    return fleet, storms
