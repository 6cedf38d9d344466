"""F17 and F18: floods, consumers that do not read, and little memory."""

import time

import psutil

from hedgerow.core.chunks import chunk_update
from hedgerow.core.codec import encode
from hedgerow.core.messages import UpdateId
from tests.faults.fault import Fault
from tests.faults.fleet import Fleet
from tests.faults.sender import Sender, changed

_FLOOD = 2000
_GROWTH_BYTES = 64 << 20
_SPARE_BYTES = 64 << 20


def _flood(fleet: Fleet, run: int) -> int:
    """Send many sound updates as fast as the broker takes them; returns how many were put off."""
    gateway = fleet[fleet.gateways[0]]
    before = gateway.events("update_refused", "busy")
    admitted = gateway.events("update_admitted")
    with Sender(fleet, f"node-8{run % 10}") as sender:
        sound = sender.update(1, epoch=run + 1)
        for seq in range(1, _FLOOD + 1):
            update = changed(sound, id=UpdateId(sender.name, run + 1, seq))
            for chunk in chunk_update(update, encode(update), 1 << 16):
                sender.publish_later(sender.topic, encode(chunk))
        sender.flush()

    def taken() -> int:
        put_off = gateway.events("update_refused", "busy") - before
        return put_off + gateway.events("update_admitted") - admitted

    fleet.until(lambda: taken() >= _FLOOD or not gateway.running, 60, "the flood has passed")
    return gateway.events("update_refused", "busy") - before


def flood(fleet: Fleet, run: int) -> str:
    """F17: a node sends two thousand updates at once, while the uplink takes only a few."""
    gateway = fleet[fleet.gateways[0]]
    fleet.uplinks[gateway.name].bytes_per_s = 20_000.0
    before = gateway.rss_bytes
    put_off = _flood(fleet, run)
    grown = gateway.rss_bytes - before
    assert put_off > _FLOOD // 2, f"only {put_off} of {_FLOOD} were put off"
    assert grown < _GROWTH_BYTES, f"the gateway grew by {grown} bytes"
    return f"{put_off} of {_FLOOD} put off, grown by {grown >> 10} KiB"


def slow_consumer(fleet: Fleet, run: int) -> str:
    """F17: a node does not read for six seconds, while versions come and go."""
    node = fleet[fleet.nodes[0]]
    other = fleet.nodes[1]
    landed = len(fleet.applied(other))
    node.pause()
    try:
        time.sleep(6.0)
    finally:
        node.go_on()
    fleet.until(lambda: len(fleet.applied(other)) > landed + 2, 20, "the other node goes on")
    return f"{len(fleet.applied(other)) - landed} updates of {other} meanwhile"


def little_memory(fleet: Fleet, run: int) -> str:
    """F18: a flood comes to a gateway whose address space has little room left."""
    gateway = fleet[fleet.gateways[0]]
    size = int(psutil.Process(gateway.pid).memory_info().vms)
    gateway.stop()
    gateway.start(address_bytes=size + _SPARE_BYTES)
    before = len(fleet.ledger())
    fleet.until(lambda: len(fleet.ledger()) > before + 2, 20, "it serves")
    starts = gateway.starts
    put_off = _flood(fleet, run)
    assert put_off, "nothing was put off"
    assert gateway.running, f"no room left:\n{gateway.tail()}"
    return f"{size >> 20} + {_SPARE_BYTES >> 20} MiB, {put_off} put off, {gateway.starts - starts} restarts"


FAULTS = [
    Fault("F17", "flood", flood),
    Fault("F17", "slow consumer", slow_consumer),
    Fault("F18", "little memory", little_memory),
]
