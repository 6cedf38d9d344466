"""F12 to F16: updates that must not count, garbage, bombs, and what was sent before."""

import gzip
import http.client
import math
import random
import time
import zlib
from collections.abc import Callable

import msgpack
import numpy as np

from hedgerow.core.codec import encode
from hedgerow.core.messages import Chunk, UpdateId
from tests.faults.fault import Fault
from tests.faults.fleet import AGGREGATOR, Fleet
from tests.faults.sender import Sender, changed

_GROWTH_BYTES = 96 << 20
"""How much a process may grow while bombs arrive; one that unpacked them would need gigabytes."""

_BOMB_BYTES = 60 << 20
_PACKERS: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}


def poisoned(fleet: Fleet, run: int) -> str:
    """F12, F13: each wrong update is refused with its reason, and its node hears it."""
    with Sender(fleet, f"node-9{run % 10}") as sender:
        sound = sender.update(1)
        nan = np.full(sender.plan.size, math.nan, "<f4").tobytes()
        huge = np.full(sender.plan.size, 1e30, "<f4").tobytes()
        bad = {
            "not-finite": changed(sound, payload=nan),
            "norm": changed(sound, payload=huge),
            "shape": changed(sound, payload=sound.payload[:-8]),
            "unknown-plan": changed(sound, plan_id="0" * 32),
            "wrong-model": changed(sound, model="another"),
            "future-version": changed(sound, base_version=sound.base_version + 10_000_000),
        }
        heard = {}
        for seq, (reason, update) in enumerate(bad.items(), 2):
            update_id = UpdateId(sender.name, 1 + run, seq)
            heard[reason] = sender.answer(changed(update, id=update_id)).reason
    assert heard == {reason: reason for reason in bad}, heard
    assert not fleet.applied(sender.name), "a poisoned update counts"
    metrics = fleet.status()["curve"][-1]["metrics"]
    assert all(math.isfinite(value) for value in metrics.values()), metrics
    return f"refused: {', '.join(heard.values())}"


def bombs(fleet: Fleet, run: int) -> str:
    """F14, F15: garbage and bombs on the topics and in HTTP bodies; memory stays bounded."""
    gateway, aggregator = fleet[fleet.gateways[0]], fleet[AGGREGATOR]
    before = (gateway.rss_bytes, aggregator.rss_bytes)
    faults = gateway.events("peer_fault")
    corpus = _corpus(random.Random(run))
    with Sender(fleet) as sender:
        for payload in corpus:
            sender.publish(sender.topic, payload)
        sender.publish(sender.topic.replace("/up/", "/down/"), b"x")
    statuses = [_post(fleet, body, kind) for body in corpus for kind in ("", "gzip", "deflate")]
    assert {200, 204}.isdisjoint(statuses), statuses
    fleet.until(
        lambda: gateway.events("peer_fault") >= faults + len(corpus), 20, "each of them is counted"
    )
    grown = [
        role.rss_bytes - size for role, size in zip((gateway, aggregator), before, strict=True)
    ]
    assert max(grown) < _GROWTH_BYTES, f"grown by {grown} bytes"
    return f"{len(corpus)} bodies each way refused, grown by {max(grown) >> 10} KiB at most"


def _corpus(rng: random.Random) -> list[bytes]:
    """Bodies of at most the packet's limit that claim, nest or inflate to far more."""
    chunk = Chunk(
        id=UpdateId("node-99", 1, 1),
        model="digits",
        base_version=0,
        plan_id="",
        index=0,
        count=1,
        total_bytes=(1 << 31) - 1,
        crc32=zlib.crc32(b"x"),
        body=b"x",
        digest="",
    )
    return [
        b"\x91" * 500_000,  # arrays in arrays
        b"\x81\xa1a" * 200_000,  # maps in maps
        b"\xdd\xff\xff\xff\xff",  # an array of four thousand million items
        b"\xc6\xff\xff\xff\xff",  # four gigabytes of bytes
        msgpack.packb({"t": "offer", "ids": [["n", 1, 1]] * 60_000}),
        msgpack.packb({"t": "update", "id": ["x" * 900_000, 0, 0]}),
        encode(chunk)[:-3],
        rng.randbytes(500_000),
        rng.randbytes(20),
    ]


def _post(fleet: Fleet, body: bytes, coding: str) -> int:
    """Post a body to the aggregator; compressed it is a bomb of sixty megabytes behind it."""
    data = _PACKERS[coding](body + bytes(_BOMB_BYTES)) if coding else body
    connection = http.client.HTTPConnection("127.0.0.1", fleet.http_port, timeout=20)
    headers = {"Content-Encoding": coding} if coding else {}
    try:
        connection.request("POST", "/v1/partials?gateway=gw-1", body=data, headers=headers)
        return connection.getresponse().status
    except (ConnectionError, http.client.HTTPException):
        return 0  # refused without an answer
    finally:
        connection.close()


def replay_recorded(fleet: Fleet, run: int) -> str:
    """F16: everything that nodes said is said again, byte for byte."""
    recorded = [one for node in fleet.nodes for one in fleet.links[node].tap.recorded]
    assert recorded, "nothing was recorded"
    before = len(fleet.ledger())
    with Sender(fleet) as sender:
        for publish in recorded:
            sender.publish(publish.topic, publish.payload)
    time.sleep(1.0)
    assert len(fleet.ledger()) >= before
    return f"{len(recorded)} recorded messages came again"


def forged(fleet: Fleet, run: int) -> str:
    """F16: the id of an update that counts comes again with other content: refused, with an alarm."""
    node = fleet.nodes[run % len(fleet.nodes)]
    epoch, seq = max(fleet.applied(node))
    alarms = _alarms(fleet)
    with Sender(fleet, node) as sender:
        answer = sender.answer(sender.update(seq, epoch=epoch))
        assert (answer.status, answer.reason) == ("rejected", "fork"), answer
    assert _alarms(fleet) > alarms, "no alarm was raised"
    return f"{node}: refused as a fork, {_alarms(fleet) - alarms} alarms"


def _alarms(fleet: Fleet) -> int:
    return sum(fleet[name].events("fork_alarm") for name in (*fleet.gateways, AGGREGATOR))


FAULTS = [
    Fault("F12-F13", "poisoned updates", poisoned),
    Fault("F14-F15", "garbage and bombs", bombs),
    Fault("F16", "recorded messages again", replay_recorded),
    Fault("F16", "same id, other content", forged),
]
