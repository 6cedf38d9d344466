"""F3 to F5: messages that come twice or in another order, links that are cut, half-open or slow."""

import time

from tests.faults.fault import Fault
from tests.faults.fleet import Fleet
from tests.faults.links import Link


def _mqtt(fleet: Fleet) -> list[Link]:
    return list(fleet.links.values())


def _landed(fleet: Fleet) -> int:
    return len(fleet.ledger())


def repeat_messages(fleet: Fleet, run: int) -> str:
    """F3: half of all messages come twice, on every hop, with the same packet id and no dup flag."""
    before, landed = sum(link.repeated for link in _mqtt(fleet)), _landed(fleet)
    bodies = sum(link.tap.repeats for link in _mqtt(fleet))
    for link in _mqtt(fleet):
        link.repeat = 0.5
    fleet.until(
        lambda: sum(link.tap.repeats for link in _mqtt(fleet)) > bodies + 2, 20, "bodies came twice"
    )
    fleet.until(lambda: _landed(fleet) > landed + 4, 20, "learning goes on")
    return f"{sum(link.repeated for link in _mqtt(fleet)) - before} messages came twice"


def swap_messages(fleet: Fleet, run: int) -> str:
    """F4: half of all messages come after the one that follows them."""
    before, landed = sum(link.swapped for link in _mqtt(fleet)), _landed(fleet)
    for link in _mqtt(fleet):
        link.swap = 0.5
    fleet.until(lambda: _landed(fleet) > landed + 4, 20, "learning goes on")
    swapped = sum(link.swapped for link in _mqtt(fleet)) - before
    assert swapped, "nothing came in another order"
    return f"{swapped} messages were overtaken"


def partition(fleet: Fleet, run: int) -> str:
    """F5: a node's link, a gateway's or an uplink is cut, by turns, for two seconds."""
    node, gateway = fleet.nodes[0], fleet.gateways[0]
    name, link = [
        (node, fleet.links[node]),
        (gateway, fleet.links[gateway]),
        (f"uplink of {gateway}", fleet.uplinks[gateway]),
    ][run % 3]
    before, refused = link.cut_connections, link.refused
    link.cut()
    fleet.until(lambda: link.refused > refused, 20, "it tries again")
    time.sleep(2.0)
    assert link.cut_connections > before, "there was nothing to cut"
    return f"{name} cut, {link.refused - refused} attempts refused"


def half_open(fleet: Fleet, run: int) -> str:
    """F5: nothing passes any more, and no end hears of it."""
    node, gateway = fleet.nodes[0], fleet.gateways[0]
    if run % 2:
        return _stalled_uplink(fleet, gateway)
    before = {name: fleet[name].events("mqtt_disconnects") for name in (node, gateway)}
    for name in before:
        fleet.links[name].stalled = True
    fleet.until(
        lambda: all(fleet[name].events("mqtt_disconnects") > n for name, n in before.items()),
        20,
        "both ends find out by themselves",
    )
    return "node and gateway gave their dead connections up"


def _stalled_uplink(fleet: Fleet, gateway: str) -> str:
    before = fleet[gateway].events("undelivered")
    fleet.uplinks[gateway].stalled = True
    fleet.until(
        lambda: fleet[gateway].events("undelivered") > before, 20, "a post is given up for now"
    )
    return "a post to the aggregator was given up and came again"


def slow(fleet: Fleet, run: int) -> str:
    """F5: every link takes 100 ms and passes 20 KB in a second."""
    landed = _landed(fleet)
    for link in (*_mqtt(fleet), *fleet.uplinks.values()):
        link.delay_s, link.bytes_per_s = 0.1, 20_000.0
    took_s = fleet.until(lambda: _landed(fleet) > landed + 3, 40, "learning goes on, slowly")
    assert took_s > 0.5, "the links were not slow"
    return f"four updates took {took_s:.1f} s"


FAULTS = [
    Fault("F3", "duplicates", repeat_messages),
    Fault("F4", "reordering", swap_messages),
    Fault("F5", "partition and heal", partition),
    Fault("F5", "half-open TCP", half_open),
    Fault("F5", "slow link", slow),
]
