"""The rules of the gateway: what it keeps on disk in an outage, and how it begins from there."""

from typing import Any

import pytest

from gateway.rows import DropSpooled, EmptySpool, Spooled, SpoolUpdate
from hedgerow.core.codec import decode
from hedgerow.core.effects import JobFailed, LinkDown, LinkUp, Saved
from hedgerow.core.messages import Offer, Partial, Receipt, Update
from tests.protocol.gateway_bench import LINEAGE, Bench, receipts, settled
from tests.protocol.scenarios import (
    SECOND_US,
    make_update,
    recorded,
    saved_rows,
    saves,
    scales_of,
    sent,
    timers,
)


def cut_off(**config: Any) -> Bench:
    bench = Bench(**config).ready().expect("node-9")
    bench.above(LinkDown())
    return bench


def outage(*updates: Update, **config: Any) -> Bench:
    """Return a gateway that has been cut off for long, and has spooled updates."""
    bench = cut_off(**config)
    for update in updates:
        bench.update(update)
    bench.timer("spool")
    finish(bench)
    return bench


def finish(bench: Bench) -> None:
    """Let every save succeed."""
    while pending := saves(bench.effects):
        for save in pending:
            bench.do(lambda save=save: bench.gateway.job_done(Saved(save.job), bench.now_us))  # type: ignore[misc]


def spooled_seqs(bench: Bench) -> list[int]:
    return [row.id.seq for row in saved_rows(bench.effects, SpoolUpdate)]


def test_nothing_is_saved_while_there_is_a_way() -> None:
    bench = Bench(flush_count=99).ready().expect("node-9")
    for seq in range(3):
        assert saves(bench.update(make_update(seq))) == []
    assert saves(bench.timer("spool")) == []
    assert saves(bench.above(settled(make_update(1)))) == []


def test_held_updates_are_saved_once_there_has_been_no_way_for_a_while() -> None:
    bench = Bench(spool_after_s=7.0).ready().expect("node-9")
    bench.update(make_update(1))
    assert timers(bench.above(LinkDown()))["spool"] == 7 * SECOND_US
    assert saves(bench.update(make_update(2))) == []
    rows = saved_rows(bench.timer("spool"), SpoolUpdate)
    assert [decode(row.body) for row in rows] == [make_update(1), make_update(2)]
    finish(bench)
    assert recorded(bench.effects, "update_spooled")[0].amount == 2
    assert timers(bench.update(make_update(3)))["spool"] == SECOND_US
    bench.update(make_update(4))
    bench.timer("spool")
    assert spooled_seqs(bench) == [3, 4]


def test_a_peer_is_a_way_too() -> None:
    bench = cut_off()
    assert timers(bench.peer("gw-2"))["spool"] == SECOND_US
    bench.update(make_update(1))
    assert saves(bench.timer("spool")) == []
    assert timers(bench.peer("gw-2", state="lost"))["spool"] == 30 * SECOND_US


def test_many_updates_are_saved_in_batches_one_after_another() -> None:
    bench = cut_off()
    for seq in range(70):
        bench.update(make_update(seq))
    sizes = [len(saved_rows(bench.timer("spool"), SpoolUpdate))]
    assert saves(bench.timer("spool")) == [], "one at a time"
    (save,) = saves(bench.do(lambda: bench.gateway.job_done(Saved(1), 0)))
    sizes.append(len(save.rows))
    assert sizes == [64, 6]


def test_what_is_final_leaves_the_disk_and_at_the_end_everything() -> None:
    bench = outage(make_update(1), make_update(2))
    bench.above(LinkUp())
    bench.timer("flush")
    assert saves(bench.above(settled(make_update(1)))) == []
    assert saved_rows(bench.timer("spool"), DropSpooled) == [DropSpooled((make_update(1).id,))]
    finish(bench)
    bench.above(settled(make_update(2)))
    assert saved_rows(bench.timer("spool"), EmptySpool)
    finish(bench)
    assert timers(bench.update(make_update(3))).keys().isdisjoint({"spool"})


def test_a_disk_that_fails_is_tried_again_and_dropping_goes_first() -> None:
    bench = outage(make_update(1))
    bench.update(make_update(2))
    (save,) = saves(bench.timer("spool"))
    failed = JobFailed(save.job, "disk full")
    effects = bench.do(lambda: bench.gateway.job_done(failed, bench.now_us))
    assert recorded(effects, "save_failed")
    assert timers(effects)["spool"] == 10 * SECOND_US
    bench.hear("gw/gw-2", settled(make_update(1)))
    bench.timer("spool")
    assert saved_rows(bench.effects, DropSpooled) == [DropSpooled((make_update(1).id,))]
    assert spooled_seqs(bench) == []
    (save,) = saves(bench.effects)
    bench.do(lambda: bench.gateway.job_done(Saved(save.job), bench.now_us))
    assert spooled_seqs(bench) == [2]


def test_it_begins_with_what_it_spooled() -> None:
    updates = tuple(make_update(seq) for seq in (1, 2))
    bench = Bench(spooled=Spooled(updates, damaged=3))
    assert recorded(bench.effects, "spool_loaded")[0].amount == 2
    assert recorded(bench.effects, "spool_damaged")[0].amount == 3
    offered = bench.hear("node/node-1", Offer(ids=[u.id for u in updates]))
    assert [receipt.status for receipt in receipts(offered)] == ["admitted", "admitted"]
    bench.above(LinkUp())
    (partial,) = sent(bench.take_version(LINEAGE.descriptor(0)), Partial)
    assert [header.id.seq for header in partial.headers] == [1, 2]
    bench.above(settled(*updates))
    assert saved_rows(bench.timer("spool"), EmptySpool)


def test_what_has_no_room_after_a_start_stays_with_the_nodes() -> None:
    updates = tuple(make_update(seq) for seq in (1, 2, 3))
    bench = Bench(spooled=Spooled(updates), held_updates=2)
    assert recorded(bench.effects, "spool_loaded")[0].amount == 2
    bench.timer("spool")
    assert saved_rows(bench.effects, DropSpooled) == [DropSpooled((updates[2].id,))]


@pytest.mark.parametrize("spoiled", [{"payload": b"123"}, {"scales": scales_of(100.0)}])
def test_what_was_never_checked_is_not_summed(spoiled: dict[str, Any]) -> None:
    bad = make_update(1, **spoiled)
    good = [make_update(seq) for seq in range(2, 6)]
    bench = Bench(spooled=Spooled((bad, *good)))
    bench.above(LinkUp())
    effects = bench.take_version(LINEAGE.descriptor(0))
    partials = sent(effects, Partial)
    assert [(bool(p.sums), len(p.headers)) for p in partials] == [(True, 4), (False, 1)]
    assert partials[1].updates == [bad]
    assert recorded(effects, "update_unfit")
    reply = bench.reply(partials[1], "known", Receipt(bad.id, "rejected", "shape"))
    assert receipts(reply) == [Receipt(bad.id, "rejected", "shape")]
