"""The rules of the gateway: the way to the aggregator through its peers."""

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from hedgerow.core import names
from hedgerow.core.chunks import chunk_blob
from hedgerow.core.codec import encode
from hedgerow.core.effects import (
    Announce,
    CancelTimer,
    Effect,
    Follow,
    LinkDown,
    LinkUp,
    Send,
    Undelivered,
    Unfollow,
)
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    NO_ROUTE,
    BlobPart,
    BlobsWanted,
    Bundle,
    Descriptor,
    GatewayState,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
)
from tests.protocol.gateway_bench import LINEAGE, Bench, receipts, settled
from tests.protocol.scenarios import (
    CHUNK_BYTES,
    MANIFEST,
    MODEL,
    PLAN,
    SECOND_US,
    announced,
    make_partial,
    make_update,
    newest,
    params_of,
    recorded,
    sent,
    timers,
)


def cut_off(**config: Any) -> Bench:
    """Return a gateway that has a version, and had an uplink."""
    bench = Bench(**{"flush_count": 1, **config}).ready()
    bench.above(LinkDown())
    bench.now_us += 10 * SECOND_US
    bench.timer("announce")
    bench.now_us += 10 * SECOND_US
    return bench


def route_of(effects: list[Effect]) -> tuple[int, str]:
    state = announced(effects, GatewayState)[-1]
    return state.hops, state.via


def bundle(*partials: Partial, via: str = "gw-2", path: list[str] | None = None) -> Bundle:
    """Return what a peer hands over: its own partials unless `path` says otherwise."""
    return Bundle(gateway=via, path=path or [via], partials=list(partials))


def foreign(seq: int = 1, gateway: str = "gw-2", **changes: Any) -> Partial:
    """Return another gateway's partial of one update."""
    update = make_update(seq, node="node-7")
    name = f"{gateway}-1-{seq}"
    made = make_partial([update], LINEAGE, partial_id=name, gateway=gateway, raw=True)
    return msgspec.structs.replace(made, **changes)


# The way.


def test_it_follows_its_peers_and_says_how_far_the_aggregator_is() -> None:
    bench = Bench()
    assert Follow("gw/+/state") in bench.effects
    assert route_of(bench.effects) == (NO_ROUTE, "")
    assert route_of(bench.above(LinkUp())) == (0, "")
    bench.above(LinkDown())
    bench.now_us += SECOND_US
    assert route_of(bench.peer("gw-2")) == (1, "gw-2")
    bench.now_us += SECOND_US
    assert route_of(bench.peer("gw-2", uplink=False, hops=3, via="gw-3")) == (4, "gw-2")
    bench.now_us += SECOND_US
    assert route_of(bench.peer("gw-2", state="lost")) == (NO_ROUTE, "")


@pytest.mark.parametrize(
    "state",
    [
        {"hops": NO_ROUTE, "uplink": False},
        {"hops": 8, "uplink": False, "via": "gw-3"},
        {"hops": 1, "uplink": False, "via": "gw-1"},
        {"state": "lost"},
    ],
    ids=["none itself", "too far", "through me", "lost"],
)
def test_a_peer_without_a_way_of_its_own_is_none(state: dict[str, Any]) -> None:
    bench = cut_off()
    bench.peer("gw-2", **state)
    assert sent(bench.update(make_update()), Bundle) == []


def test_only_named_peers_are_on_its_way() -> None:
    bench = cut_off(peers=["gw-3"])
    bench.peer("gw-2")
    assert sent(bench.update(make_update()), Bundle) == []
    assert sent(bench.peer("gw-3"), Bundle, "gw/gw-3")


def test_the_nearest_then_the_emptiest_then_the_first_name_wins() -> None:
    bench = cut_off()
    bench.peer("gw-9", hops=2, uplink=False, load=0.0)
    bench.peer("gw-4", load=0.5)
    bench.now_us += SECOND_US
    assert route_of(bench.timer("announce")) == (1, "gw-4")
    for gateway, load, chosen in (
        ("gw-3", 0.5, "gw-4"),
        ("gw-2", 0.375, "gw-4"),
        ("gw-5", 0.125, "gw-5"),
    ):
        bench.now_us += SECOND_US
        bench.peer(gateway, load=load)
        assert bench.gateway._parts.way.route.via == chosen, (gateway, load)


def test_changes_of_the_way_are_announced_at_once_but_not_too_often() -> None:
    bench = cut_off()
    assert route_of(bench.peer("gw-2")) == (1, "gw-2")
    effects = bench.peer("gw-2", hops=2, uplink=False)
    assert announced(effects, GatewayState) == []
    assert timers(effects)["announce"] == SECOND_US
    effects = bench.peer("gw-2", hops=3, uplink=False)
    assert announced(effects, GatewayState) == []
    bench.now_us += SECOND_US
    assert route_of(bench.timer("announce")) == (4, "gw-2")


def test_its_load_is_the_share_of_its_buffer_in_eighths() -> None:
    bench = Bench(held_updates=10, flush_count=99).ready().expect("node-9")
    for seq in range(3):
        bench.update(make_update(seq))
    assert [state.load for state in announced(bench.timer("report"), GatewayState)] == [0.25]
    bench.update(make_update(9))
    bench.now_us += SECOND_US
    assert [s.load for s in announced(bench.timer("report"), GatewayState)] == [0.375]


def test_a_late_last_will_of_a_peer_buries_nobody_born_again() -> None:
    bench = cut_off()
    bench.peer("gw-2", boot=2)
    bench.peer("gw-2", boot=1, state="lost")
    assert sent(bench.update(make_update()), Bundle, "gw/gw-2")


def test_its_own_last_will_is_contradicted_once_in_a_while() -> None:
    bench = Bench().ready()
    bench.timer("announce")
    bench.now_us += 10 * SECOND_US
    effects = bench.peer("gw-1", boot=10, state="lost")
    assert timers(effects)["announce"] == SECOND_US
    assert announced(effects, GatewayState) == []
    assert announced(bench.timer("announce"), GatewayState)[0].uplink
    mine = announced(bench.effects, GatewayState)[0]
    assert timers(bench.hear("gw/gw-1", mine)) == {}


def test_without_its_broker_it_has_no_peers_and_forgets_the_silent_ones() -> None:
    bench = cut_off()
    bench.peer("gw-2")
    bench.peer("gw-3", hops=1, uplink=False)
    bench.now_us += SECOND_US
    assert route_of(bench.hear(names.BROKER, LinkDown())) == (NO_ROUTE, "")
    bench.now_us += SECOND_US
    assert timers(bench.hear(names.BROKER, LinkUp()))["peers"] > SECOND_US
    bench.peer("gw-3", hops=1, uplink=False)
    effects = bench.timer("peers")
    assert [e.fields["peer"] for e in recorded(effects, "peer_forgotten")] == ["gw-2"]
    assert sent(bench.update(make_update()), Bundle, "gw/gw-3")


def test_nobody_announces_another_gateway() -> None:
    with pytest.raises(PeerError, match="wrong-source"):
        Bench().hear("gw/gw-2", GatewayState(gateway="gw-3", boot=1, state="ready"))


# Own partials.


def test_without_an_uplink_partials_go_to_the_next_peer_and_replies_come_back() -> None:
    bench = cut_off()
    bench.peer("gw-2")
    effects = bench.update(make_update())
    (handed,) = sent(effects, Bundle, "gw/gw-2")
    assert (handed.gateway, handed.path) == ("gw-1", ["gw-1"])
    (partial,) = handed.partials
    reply = PartialReply(partial_id=partial.id, status="accepted")
    effects = bench.hear("gw/gw-2", reply)
    assert CancelTimer(f"reply/{partial.id}") in effects
    assert receipts(bench.hear("gw/gw-2", settled(make_update()))) == [
        Receipt(make_update().id, "settled")
    ]


def test_an_unanswered_partial_is_handed_over_again_later_and_later() -> None:
    bench = cut_off()
    bench.peer("gw-2")
    (handed,) = sent(bench.update(make_update()), Bundle)
    waits = [timers(bench.effects)[f"reply/{handed.partials[0].id}"]]
    for _ in range(8):
        effects = bench.timer(f"reply/{handed.partials[0].id}")
        assert recorded(effects, "partial_unanswered")
        (handed,) = sent(effects, Bundle, "gw/gw-2")
        waits.append(timers(effects)[f"reply/{handed.partials[0].id}"])
    assert waits[0] <= 5 * SECOND_US
    assert 150 * SECOND_US <= waits[-1] <= 300 * SECOND_US
    late = PartialReply(partial_id="gw-1-a-1", status="accepted")
    bench.hear("gw/gw-2", late)
    assert sent(bench.timer(f"reply/{handed.partials[0].id}"), Bundle), "an old answer is none"


def test_what_a_peer_has_is_posted_anew_when_the_uplink_is_back() -> None:
    bench = cut_off()
    bench.peer("gw-2")
    (handed,) = sent(bench.update(make_update()), Bundle)
    (partial,) = sent(bench.above(LinkUp()), Partial, names.AGGREGATOR)
    assert partial.headers == handed.partials[0].headers
    assert sent(bench.timer(f"reply/{handed.partials[0].id}"), Partial) == []


def test_a_way_that_is_lost_and_found_again_does_not_repeat_what_is_on_it() -> None:
    bench = cut_off()
    bench.peer("gw-2")
    assert sent(bench.update(make_update()), Bundle)
    bench.peer("gw-2", state="lost")
    assert sent(bench.peer("gw-2"), Bundle) == []
    bench.peer("gw-2", state="lost")
    assert sent(bench.peer("gw-3"), Bundle, "gw/gw-3")


def test_many_small_partials_share_a_bundle_within_bounds() -> None:
    bench = cut_off(flush_count=40)
    bench.take_version(short_counts())
    bench.expect("node-9")
    bench.peer("gw-2")
    out = [e for seq in range(40) for e in bench.update(make_update(seq))]
    bundles = sent(out, Bundle, "gw/gw-2")
    assert [len(b.partials) for b in bundles] == [16, 4]
    assert all(len(encode(b)) < 64 << 10 for b in bundles)


def short_counts() -> Descriptor:
    """Return a version whose partials have two updates at most."""
    descriptor = LINEAGE.descriptor(0)
    rules = msgspec.structs.replace(descriptor.rules, count_max=2)
    return msgspec.structs.replace(descriptor, rules=rules)


def test_partials_are_cut_to_the_size_of_a_packet_and_a_larger_update_stays() -> None:
    bench = cut_off(packet_bytes=2048 + 700, flush_count=9)
    bench.take_version(
        newest(LINEAGE, version=0, units=LINEAGE.descriptor(0).units, individual=True)
    )
    bench.expect("node-9")
    bench.peer("gw-2")
    out = [e for seq in range(9) for e in bench.update(make_update(seq))]
    partials = [p for b in sent(out, Bundle) for p in b.partials]
    assert sorted(h.id.seq for p in partials for h in p.headers) == list(range(9))
    assert len(partials) > 2
    assert max(len(encode(p)) for p in partials) <= 700

    narrow = cut_off(packet_bytes=2048 + 100)
    narrow.peer("gw-2")
    effects = narrow.update(make_update())
    assert sent(effects, Bundle) == []
    assert recorded(effects, "partial_held_back")
    assert recorded(narrow.timer("report"), "partial_held_back") == []
    assert sent(narrow.above(LinkUp()), Partial, names.AGGREGATOR)


# Other gateways' partials.


def test_a_relay_passes_partials_on_unchanged_one_by_one() -> None:
    bench = Bench().ready()
    one, two = foreign(1), foreign(2)
    effects = bench.hear("gw/gw-2", bundle(one, two))
    onward = sent(effects, Bundle, names.AGGREGATOR)
    assert [b.partials for b in onward] == [[one], [two]]
    assert {(b.gateway, tuple(b.path)) for b in onward} == {("gw-1", ("gw-2", "gw-1"))}


def test_a_relay_without_an_uplink_passes_them_to_the_next_peer_but_never_back() -> None:
    bench = cut_off()
    bench.peer("gw-2")
    assert sent(bench.hear("gw/gw-2", bundle(foreign())), Bundle) == []
    effects = bench.peer("gw-3", hops=1, uplink=False, via="gw-4")
    assert sent(effects, Bundle) == [], "the nearest peer is the one it came from"
    effects = bench.peer("gw-2", state="lost")
    (onward,) = sent(effects, Bundle, "gw/gw-3")
    assert (onward.path, onward.partials) == (["gw-2", "gw-1"], [foreign()])


def test_what_there_is_no_way_for_is_held_until_there_is_one() -> None:
    bench = cut_off()
    effects = bench.hear("gw/gw-2", bundle(foreign()))
    assert sent(effects, Bundle) == []
    assert recorded(effects, "partial_taken_over")
    (onward,) = sent(bench.above(LinkUp()), Bundle, names.AGGREGATOR)
    assert onward.partials == [foreign()]


def test_replies_and_receipts_go_back_to_whom_they_came_from() -> None:
    bench = Bench().ready()
    partial = foreign()
    bench.hear("gw/gw-3", bundle(partial, via="gw-3", path=["gw-2", "gw-3"]))
    reply = PartialReply(partial_id=partial.id, status="accepted")
    effects = bench.above(reply)
    assert sent(effects, PartialReply, "gw/gw-3") == [reply]
    assert CancelTimer(f"carry/{partial.id}") in effects
    final = [Receipt(partial.headers[0].id, "settled"), Receipt(make_update().id, "settled")]
    effects = bench.above(Receipts(receipts=final, version=1))
    assert [r.receipts for r in sent(effects, Receipts, "gw/gw-3")] == [final[:1]]
    assert sent(effects, Receipts, "node/node-7") == []
    assert receipts(effects) == final[1:]


def test_an_update_held_here_and_carried_for_another_is_told_to_both() -> None:
    bench = Bench().ready().expect("node-9")
    update = make_update(node="node-7")
    bench.update(update)
    bench.hear("gw/gw-2", bundle(foreign()))
    effects = bench.above(settled(update))
    assert sent(effects, Receipts, "gw/gw-2")
    assert receipts(effects, "node-7") == [Receipt(update.id, "settled")]
    assert sent(bench.timer("flush"), Partial) == []


def test_a_carried_partial_is_handed_on_again_until_it_is_answered() -> None:
    bench = cut_off()
    bench.peer("gw-3")
    effects = bench.hear("gw/gw-2", bundle(foreign()))
    name = f"carry/{foreign().id}"
    waits = [timers(effects)[name]]
    for _ in range(8):
        effects = bench.timer(name)
        assert [b.partials for b in sent(effects, Bundle, "gw/gw-3")] == [[foreign()]]
        waits.append(timers(effects)[name])
    assert waits[0] < 5 * SECOND_US < 150 * SECOND_US < waits[-1]
    bench.hear("gw/gw-3", PartialReply(partial_id=foreign().id, status="known"))
    assert sent(bench.timer(name), Bundle) == []


def test_a_post_that_a_slow_link_still_carries_is_not_posted_beside_it() -> None:
    bench = Bench().ready()
    effects = bench.hear("gw/gw-2", bundle(foreign()))
    (onward,) = sent(effects, Bundle, names.AGGREGATOR)
    assert not [name for name in timers(effects) if name.startswith("carry/")]
    bench.above(Undelivered(onward, "no answer in time"))
    again = sent(bench.timer(f"carry/{foreign().id}"), Bundle, names.AGGREGATOR)
    assert again == [onward]


def test_an_undelivered_bundle_waits_as_long_as_the_aggregator_asks() -> None:
    bench = Bench().ready()
    (onward,) = sent(bench.hear("gw/gw-2", bundle(foreign())), Bundle)
    effects = bench.above(Undelivered(onward, "busy", 90 * SECOND_US))
    assert timers(effects)[f"carry/{foreign().id}"] == 90 * SECOND_US
    assert "flush" not in timers(effects), "its own partials are not held up by another's"


def test_a_full_relay_drops_the_oldest_and_counts_it() -> None:
    size = len(encode(foreign()))
    bench = cut_off(relay_bytes=2 * size)
    effects = [
        effect for seq in (1, 2, 3) for effect in bench.hear("gw/gw-2", bundle(foreign(seq)))
    ]
    assert [e.fields["reason"] for e in recorded(effects, "carried_dropped")] == ["relay-full"]
    onward = sent(bench.above(LinkUp()), Bundle, names.AGGREGATOR)
    assert [b.partials[0].id for b in onward] == ["gw-2-1-2", "gw-2-1-3"]
    small = cut_off(relay_bytes=size - 1)
    effects = small.hear("gw/gw-2", bundle(foreign()))
    assert [e.fields["reason"] for e in recorded(effects, "carried_dropped")] == ["too-large"]


def test_a_newer_partial_replaces_those_whose_updates_it_has() -> None:
    bench = cut_off()
    bench.hear("gw/gw-2", bundle(foreign(1), foreign(2)))
    both = foreign(3, headers=[*foreign(1).headers, *foreign(3).headers])
    effects = bench.hear("gw/gw-2", bundle(both))
    assert [e.fields["reason"] for e in recorded(effects, "carried_dropped")] == ["replaced"]
    onward = sent(bench.above(LinkUp()), Bundle, names.AGGREGATOR)
    assert [b.partials[0].id for b in onward] == ["gw-2-1-2", "gw-2-1-3"]


@pytest.mark.parametrize(
    ("reason", "peer", "message"),
    [
        ("wrong-source", "gw/gw-3", bundle(foreign())),
        ("wrong-source", "gw/gw-3", bundle(foreign(), via="gw-3", path=["gw-2"])),
        ("wrong-source", "gw/gw-2", bundle(foreign(gateway="gw-4"))),
        ("wrong-source", "gw/gw-2", bundle(foreign(id="gw-1-a-1"))),
        ("inconsistent", "gw/gw-2", bundle(foreign(), path=["gw-1", "gw-2"])),
        ("inconsistent", "gw/gw-2", bundle(foreign(), path=["gw-2", "gw-3", "gw-2"])),
        ("too-large", "gw/gw-2", bundle(foreign(), path=[*(f"gw-1{n}" for n in range(8)), "gw-2"])),
        ("wrong-model", "gw/gw-2", bundle(foreign(model="other"))),
    ],
)
def test_a_bundle_that_must_not_be_passed_on_is_refused(
    reason: str, peer: str, message: Bundle
) -> None:
    bench = cut_off()
    with pytest.raises(PeerError, match=reason):
        bench.hear(peer, message)
    assert sent(bench.above(LinkUp()), Bundle) == []


# Versions.


def follows(effects: list[Effect], kind: type[Follow | Unfollow]) -> set[str]:
    return {effect.channel for effect in effects if isinstance(effect, kind)}


def pieces(version: int) -> list[BlobPart]:
    parts = MANIFEST.split(params_of(version)).values()
    return [piece for part in parts for piece in chunk_blob(part.tobytes(), CHUNK_BYTES // 4)]


def test_without_an_uplink_versions_come_from_the_next_peer() -> None:
    bench = cut_off()
    assert follows(bench.peer("gw-2"), Follow) == {f"gw/gw-2/plan/{MODEL}"}
    effects = bench.hear("gw/gw-2", LINEAGE.descriptor(1))
    assert sent(effects, BlobsWanted) == []
    wanted = {LINEAGE.descriptor(1).units[name].digest for name in PLAN.names}
    assert follows(effects, Follow) == {f"blob/{MODEL}/{digest}/+" for digest in wanted}
    out = [e for piece in pieces(1) for e in bench.hear("blob", piece)]
    assert [d.version for d in announced(out, Descriptor)] == [1]
    assert follows(out, Unfollow) == follows(effects, Follow)
    last = [e for e in out if isinstance(e, Announce)][-1]
    assert last.channel == f"gw/gw-1/plan/{MODEL}"
    assert recorded(bench.update(make_update(base=1)), "update_admitted")


def test_units_that_do_not_come_are_asked_for_later_and_later() -> None:
    bench = cut_off()
    bench.peer("gw-2")
    effects = bench.hear("gw/gw-2", LINEAGE.descriptor(1))
    waits = [timers(effects)["units"]]
    for _ in range(8):
        effects = bench.timer("units")
        assert len(sent(effects, BlobsWanted, "gw/gw-2")[0].digests) == 3
        waits.append(timers(effects)["units"])
    assert waits[0] == 5 * SECOND_US
    assert waits[-1] == 300 * SECOND_US
    for piece in pieces(1):
        bench.hear("blob", piece)
    assert sent(bench.timer("units"), BlobsWanted) == []


def test_a_peer_that_lacks_units_gets_them_announced_again() -> None:
    bench = Bench().ready()
    digest = LINEAGE.descriptor(0).units["body.weight"].digest
    effects = bench.hear("gw/gw-2", BlobsWanted(model=MODEL, digests=[digest]))
    assert {part.digest for part in announced(effects, BlobPart)} == {digest}


def test_with_an_uplink_again_it_follows_nobody_and_asks_the_aggregator() -> None:
    bench = cut_off()
    bench.peer("gw-2")
    effects = bench.hear("gw/gw-2", LINEAGE.descriptor(1))
    followed = follows(effects, Follow)
    effects = bench.above(LinkUp())
    assert follows(effects, Unfollow) == followed | {f"gw/gw-2/plan/{MODEL}"}
    assert len(sent(effects, BlobsWanted, names.AGGREGATOR)) == 1
    assert sent(bench.hear("gw/gw-2", LINEAGE.descriptor(2)), BlobsWanted) == []


def test_a_new_term_that_a_peer_tells_of_posts_again_what_was_accepted() -> None:
    bench = cut_off()
    bench.peer("gw-2")
    (handed,) = sent(bench.update(make_update()), Bundle)
    bench.hear("gw/gw-2", PartialReply(partial_id=handed.partials[0].id, status="accepted"))
    renewed = newest(LINEAGE, version=0, units=LINEAGE.descriptor(0).units, term=2)
    (again,) = sent(bench.hear("gw/gw-2", renewed), Bundle, "gw/gw-2")
    assert again.partials[0].headers == handed.partials[0].headers


@pytest.mark.parametrize(
    ("reason", "spoil"),
    [
        ("checksum", lambda piece: msgspec.structs.replace(piece, body=bytes(len(piece.body)))),
        ("inconsistent", lambda piece: msgspec.structs.replace(piece, count=piece.count + 1)),
        ("too-large", lambda piece: msgspec.structs.replace(piece, body=bytes(1000))),
    ],
)
def test_a_damaged_unit_is_refused_and_a_sound_one_taken(
    reason: str, spoil: Callable[[BlobPart], BlobPart]
) -> None:
    bench = cut_off()
    bench.peer("gw-2")
    bench.hear("gw/gw-2", LINEAGE.descriptor(1))
    digest = LINEAGE.descriptor(1).units["head.weight"].digest
    first, *rest = [piece for piece in pieces(1) if piece.digest == digest]
    if reason == "inconsistent":
        bench.hear("blob", rest[0])
    with pytest.raises(PeerError, match=reason):  # noqa: PT012 - which piece shows it differs
        for piece in (spoil(first), *rest):
            bench.hear("blob", piece)
    out = [e for piece in pieces(1) for e in bench.hear("blob", piece)]
    assert [d.version for d in announced(out, Descriptor)] == [1]


def test_a_version_of_a_peer_that_is_not_the_next_one_is_not_taken() -> None:
    bench = cut_off()
    bench.peer("gw-2")
    assert bench.hear("gw/gw-3", LINEAGE.descriptor(1)) == []
    assert not [e for e in bench.effects if isinstance(e, Send)]
