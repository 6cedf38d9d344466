"""F1, F2, F6 and F7: processes that die, nodes that move, a gateway whose disk is gone."""

import random
import shutil
import signal
import time

from tests.faults.fault import Fault
from tests.faults.fleet import AGGREGATOR, BROKER, Fleet, NotHereError, Setup

_SYNCS = "fdatasync,fsync"
_REACHED_S = 60.0
"""A process that has not synced once more within this time does so only now and then."""


def tracer(inject: str, calls: str = _SYNCS) -> list[str]:
    """Return the strace command that injects something into these system calls of what follows it."""
    program = shutil.which("strace")
    if program is None:
        raise NotHereError("strace is not installed")
    options = ["-D", "-f", "-qq", "-o", "/dev/null"]
    return [program, *options, "-e", f"trace={calls}", "-e", f"inject={calls}:{inject}"]


def kill_at_sync(fleet: Fleet, name: str, nth: int) -> bool:
    """Run a process until its `nth` sync kills it; False when it does not come to that."""
    role = fleet[name]
    role.kill()
    role.start(prefix=tracer(f"signal=KILL:when={nth}"))
    if role.wait(_REACHED_S) is None:
        role.kill()
        return False
    assert role.exit_code == -signal.SIGKILL, f"{name} ended by itself:\n{role.tail()}"
    return True


def kill_at_syncs(fleet: Fleet, run: int) -> str:
    """F1 at a barrier: a node and the aggregator die at sync number `run` + 1 of a life."""
    reached = {}
    for name in (fleet.nodes[0], AGGREGATOR):
        reached[name] = kill_at_sync(fleet, name, run + 1)
        fleet[name].start()
    assert any(reached.values()), f"no process came to sync {run + 1}"
    names = ", ".join(name for name, hit in reached.items() if hit)
    return f"killed at sync {run + 1}: {names}"


def kill_anywhere(fleet: Fleet, run: int) -> str:
    """F1 anywhere: each role dies at a random instant of its life, the gateway while it holds updates."""
    rng = random.Random(run)
    victims = [rng.choice(fleet.nodes), rng.choice(fleet.gateways), AGGREGATOR]
    rng.shuffle(victims)
    for name in victims:
        fleet[name].kill()
        assert fleet[name].exit_code == -signal.SIGKILL
        time.sleep(rng.uniform(0, 0.3))
        fleet[name].start()
        time.sleep(rng.uniform(0, 2.5))
    return f"killed {', '.join(victims)}"


def kill_broker(fleet: Fleet, run: int) -> str:
    """F2: the broker dies with all it had in memory, on odd runs while no gateway has an uplink."""
    clients = (*fleet.nodes, *fleet.gateways)
    before = {name: fleet[name].events("mqtt_reconnects") for name in clients}
    if run % 2:
        for link in fleet.uplinks.values():
            link.cut()
        time.sleep(0.5)
    fleet[BROKER].kill()
    time.sleep(0.5)
    fleet[BROKER].start()
    fleet.until(
        lambda: all(fleet[name].events("mqtt_reconnects") > before[name] for name in clients),
        20,
        "all clients are back",
    )
    return "all clients lost their sessions and came back"


def roam(fleet: Fleet, run: int) -> str:
    """F6: a node's gateway goes away, or its link does; the node moves to the other one and goes on."""
    node = fleet[fleet.nodes[0]]
    before = node.events("rehomed")
    landed = len(fleet.applied(node.name))
    gone = fleet.gateways[run % 2]
    if run % 4 < 2:
        fleet[gone].kill()
    else:
        fleet.links[gone].cut()
    # It may have been at the other one already; then it goes on there.
    fleet.until(
        lambda: len(fleet.applied(node.name)) > landed + 1, 20, "applied without one gateway"
    )
    fleet.heal()
    other = fleet.gateways[1 - run % 2]
    fleet[other].kill()
    fleet.until(lambda: node.events("rehomed") > before, 20, "the node has moved")
    return f"moved {node.events('rehomed') - before} times"


def lose_disk(fleet: Fleet, run: int) -> str:
    """F7: a gateway dies while it alone holds updates, and its disk is gone."""
    gateway = fleet.gateways[0]
    fleet.uplinks[gateway].cut()
    admitted = fleet[gateway].events("update_admitted")
    fleet.until(lambda: any(fleet.mark(node).held for node in fleet.nodes), 20, "updates wait")
    # Longer than gateway.spool_after_s: what it holds is on its disk by now.
    time.sleep(2.0)
    held = {node: len(fleet.mark(node).held) for node in fleet.nodes}
    fleet[gateway].kill()
    shutil.rmtree(fleet[gateway].folder, ignore_errors=True)
    admitted = fleet[gateway].events("update_admitted") - admitted
    assert sum(held.values()), "the gateway held nothing"
    return f"{sum(held.values())} updates were at the gateway, {admitted} of them new"


FAULTS = [
    Fault("F1", "kill -9 at a sync", kill_at_syncs),
    Fault("F1", "kill -9 at any instant", kill_anywhere),
    Fault("F2", "broker killed, sessions lost", kill_broker),
    Fault("F6", "node roams", roam, Setup(gateways=2)),
    Fault("F7", "gateway's disk lost", lose_disk),
]
