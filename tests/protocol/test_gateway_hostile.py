"""What a peer, a node or an unlucky moment must not do to a gateway: end it, or lead it astray for ever."""

from collections.abc import Callable
from time import process_time
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from hedgerow.core import names
from hedgerow.core.codec import encode
from hedgerow.core.effects import LinkDown, LinkUp
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BlobPart,
    Bundle,
    Descriptor,
    GatewayState,
    IslandStamp,
    Partial,
    Receipt,
    Receipts,
    UnitVersion,
)
from hedgerow.core.units import digest
from hedgerow.core.versions import MOST_TERM, first_of_term
from tests.protocol.gateway_bench import LINEAGE, Bench
from tests.protocol.scenarios import (
    announced,
    make_partial,
    make_update,
    node_state,
    sent,
)

VERSION = LINEAGE.descriptor(2)
ISLANDS = {"enabled": True, "after_s": 600.0, "buffer_size": 2, "deadline_s": 60.0}


def behind_a_peer(**config: Any) -> Bench:
    """Return a gateway that lost its uplink, and follows gw-2."""
    bench = Bench(island=ISLANDS, **{"flush_count": 1, **config})
    bench.hear(names.BROKER, LinkUp())
    bench.ready(2)
    bench.above(LinkDown())
    bench.peer("gw-2")
    return bench


@pytest.mark.parametrize(
    ("reason", "version"),
    [
        ("malformed", replace(VERSION, version=first_of_term(1))),
        ("malformed", replace(VERSION, island=IslandStamp("gw-2", 1, 1))),
        (
            "future-version",
            replace(VERSION, version=1 << 61, island=IslandStamp("gw-2", 1, 1)),
        ),
        ("shape", replace(VERSION, inline=bytes(8))),
        ("not-finite", replace(VERSION, rules=replace(VERSION.rules, clip_norm=1e300))),
        ("not-finite", replace(VERSION, rules=replace(VERSION.rules, clip_norm=5e-324))),
    ],
)
def test_a_version_that_nobody_could_use_is_refused_and_a_sound_one_taken(
    reason: str, version: Descriptor
) -> None:
    bench = behind_a_peer()
    with pytest.raises(PeerError, match=reason):
        bench.hear("gw/gw-2", version)
    bench.timer("announce")
    bench.hear("gw/gw-2", VERSION)
    assert bench.gateway._parts.relay.version == VERSION.version


@pytest.mark.parametrize("body", [b"abc", bytes(4)])
def test_a_unit_with_other_bytes_than_its_shape_asks_for_is_not_served(body: bytes) -> None:
    bench = behind_a_peer()
    name = digest(body)
    units = {u: UnitVersion(name, 2, list(unit.shape)) for u, unit in VERSION.units.items()}
    bench.hear("gw/gw-2", replace(VERSION, units=units, inline=b""))
    with pytest.raises(PeerError, match="shape"):
        bench.hear("blob", BlobPart(digest=name, index=0, count=1, body=body))
    bench.peer("gw-2", state="lost")
    began = announced(bench.timer("island"), Descriptor)
    assert [(d.version, d.parent) for d in began] == [(first_of_term(1), 1)]


@pytest.mark.parametrize(
    ("peer", "word"),
    [
        ("gw/gw-3", GatewayState(gateway="gw-3", boot=1, state="ready", acting=(1 << 62) - 1)),
        ("node/node-1", replace(node_state("ready", "node-1"), version=(1 << 62) - 1)),
    ],
)
def test_nobody_uses_up_the_numbers_of_island_versions(peer: str, word: Any) -> None:
    bench = behind_a_peer()
    with pytest.raises(PeerError, match="future-version"):
        bench.hear(peer, word)
    bench.peer("gw-2", state="lost")
    (began,) = announced(bench.timer("island"), Descriptor)
    assert began.version == first_of_term(1)


def test_after_the_last_term_an_island_still_begins() -> None:
    bench = behind_a_peer()
    bench.peer("gw-3", uplink=False, hops=255, acting=MOST_TERM)
    bench.peer("gw-3", state="lost")
    bench.peer("gw-2", state="lost")
    (began,) = announced(bench.timer("island"), Descriptor)
    assert began.version == first_of_term(MOST_TERM)
    assert len(encode(began)) > 0


def test_a_partial_under_another_gateways_name_does_not_get_its_answer() -> None:
    bench = Bench(flush_count=1).ready()
    update = make_update()
    (own,) = sent(bench.update(update), Partial)
    stolen = make_partial(
        [make_update(7, node="node-7")], LINEAGE, partial_id=own.id, gateway="gw-2", raw=True
    )
    with pytest.raises(PeerError, match="wrong-source"):
        bench.hear("gw/gw-2", Bundle(gateway="gw-2", path=["gw-2"], partials=[stolen]))
    bench.reply(own, "accepted")
    assert bench.gateway._parts.held.in_stage("accepted") == [update.id]


def test_the_last_will_of_a_start_never_seen_is_no_sign_of_life() -> None:
    bench = behind_a_peer()
    bench.hear(names.BROKER, LinkDown())
    bench.hear(names.BROKER, LinkUp())
    # While the broker was away gw-2 started again and died: what the broker keeps is that.
    bench.peer("gw-2", boot=99, state="lost")
    bench.timer("peers")
    assert not bench.gateway._parts.way.route.leads


def test_a_site_with_an_uplink_of_an_older_release_is_not_cut_off() -> None:
    bench = behind_a_peer()
    word = {"t": "gateway-state", "gateway": "gw-2", "boot": 1, "state": "ready", "uplink": True}
    bench.hear("gw/gw-2", msgspec.convert(word, GatewayState))
    assert not bench.gateway._parts.way.route.leads, "it cannot carry for others"
    assert announced(bench.timer("island"), Descriptor) == []


@pytest.mark.parametrize("peer", ["gw/gw-2", names.AGGREGATOR])
@pytest.mark.parametrize("status", ["busy", "admitted"])
def test_only_final_receipts_end_an_update(peer: str, status: Any) -> None:
    bench = behind_a_peer()
    update = make_update()
    bench.update(update)
    word = Receipts(receipts=[Receipt(update.id, status)])
    assert sent(bench.hear(peer, word), Receipts) == []
    assert update.id in bench.gateway._parts.held.buffer


def test_many_empty_pieces_of_a_unit_cost_no_more_than_so_many_messages() -> None:
    bench = behind_a_peer()
    bench.hear("gw/gw-2", VERSION)
    name = VERSION.units["head.weight"].digest
    began_s = process_time()
    for index in range(20_000):
        bench.hear("blob", BlobPart(digest=name, index=index, count=65536, body=b""))
    assert process_time() - began_s < 10


@pytest.mark.parametrize("carried", [False, True])
def test_a_bundle_of_several_fits_one_packet(carried: bool) -> None:  # noqa: FBT001
    packet_bytes = 2048 + 1500
    bench = behind_a_peer(packet_bytes=packet_bytes, flush_count=999)
    bench.peer("gw-2", state="lost")
    fill: Callable[[int], Any] = _carry(bench) if carried else _hold(bench)
    for seq in range(160):
        fill(seq)
    effects = bench.peer("gw-3")
    bundles = sent(effects, Bundle, "gw/gw-3") + sent(bench.timer("flush"), Bundle, "gw/gw-3")
    assert len(bundles) > 1
    assert sum(len(p.headers) for b in bundles for p in b.partials) == 160
    assert max(len(encode(b)) for b in bundles) <= packet_bytes


def _hold(bench: Bench) -> Callable[[int], Any]:
    bench.expect("node-9")
    return lambda seq: bench.update(make_update(seq))


def _carry(bench: Bench) -> Callable[[int], Any]:
    def carry(seq: int) -> Any:
        update = make_update(seq, node="node-7")
        name = f"gw-5-1-{seq}"
        one = make_partial([update], LINEAGE, partial_id=name, gateway="gw-5", raw=True)
        return bench.hear("gw/gw-5", Bundle(gateway="gw-5", path=["gw-5"], partials=[one]))

    return carry
