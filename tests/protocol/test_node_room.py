"""No room: in the outbox, on the disk, at the gateway."""

import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.backoff import Backoff
from edge_node.coalescing import can_coalesce, coalesce
from edge_node.rows import CloseUpdate, PutUpdate
from hedgerow.core import names
from hedgerow.core.codec import decode
from hedgerow.core.effects import Effect, JobFailed, LinkDown, LinkUp, Saved, Train
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Chunk, NodeState, Offer, Receipt, Receipts, Update, UpdateId
from hedgerow.core.quantize import decode_delta, encode_delta, norm
from tests.protocol.node_bench import Bench, descriptor, gateway_state, issued_one, parts, trains
from tests.protocol.scenarios import (
    PLAN,
    SECOND_US,
    announced,
    delta_of,
    make_update,
    recorded,
    saved_rows,
    saves,
    sent,
    timers,
)

# The outbox is full.


def alone(held: int, **config: object) -> tuple[Bench, Train]:
    """Return a node that went offline with one offered update, and fills its outbox of `held`."""
    settings = {"offline_updates": 9, "outbox_updates": held, **config}
    bench, _ = issued_one(**settings)
    (job,) = trains(bench.hear(names.BROKER, LinkDown()))
    for number in range(held - 2):
        (job,) = trains(bench.issue(job, delta_of(0.25 * (number + 1))))
    return bench, job


def own(seq: int) -> UpdateId:
    return UpdateId("node-1", 7, seq)


def counters(bench: Bench) -> dict[str, int]:
    """Return the books as the node announces them."""
    bench.hear(names.BROKER, LinkUp())
    bench.hear("gw/gw-1", gateway_state())
    bench.timer("presence")
    bench.node._presence.forget()
    said = announced(bench.hear(names.BROKER, LinkUp()), NodeState)
    return dict(said[-1].counters)


def balances(figures: dict[str, int]) -> bool:
    ended = sum(figures[n] for n in ("applied", "rejected", "expired", "coalesced"))
    return figures["issued"] == ended + figures["outbox"]


def test_when_full_the_two_oldest_that_were_never_offered_are_added_up() -> None:
    bench, job = alone(4)
    effects = bench.issue(job, delta_of(1.0))
    (save,) = saves(effects)
    assert save.rows[:2] == (CloseUpdate(own(2), "coalesced"), CloseUpdate(own(3), "coalesced"))
    row = save.rows[2]
    assert (row.id, row.base_version) == (own(5), 0)
    total = decode(row.body)
    assert isinstance(total, Update)
    assert np.allclose(decode_delta(total, PLAN), delta_of(0.75), atol=0.01)
    assert (total.id, total.examples) == (own(5), 16)
    assert len(trains(effects)) == 1
    bench.done(Saved(save.job))
    figures = counters(bench)
    assert (figures["issued"], figures["coalesced"], figures["outbox"]) == (5, 2, 3)
    assert balances(figures)


def test_a_sum_is_offered_like_any_other_and_its_parts_never() -> None:
    bench, job = alone(4)
    bench.done(Saved(saves(bench.issue(job))[0].job))
    (offer,) = sent(bench.hear(names.BROKER, LinkUp()), Offer)
    assert [update_id.seq for update_id in offer.ids] == [1, 4, 5]
    assert 0 not in offer.hashes


def test_a_sum_that_cannot_be_saved_ends_nothing_on_the_disk() -> None:
    bench, job = alone(4)
    (save,) = saves(bench.issue(job))
    bench.done(JobFailed(save.job, "input/output error"))
    (again,) = saves(bench.timer("save"))
    assert again.rows == save.rows


def test_no_number_comes_to_the_disk_before_that_of_a_sum_below_it() -> None:
    bench, job = alone(4)
    effects = bench.issue(job)
    (save,), (job,) = saves(effects), trains(effects)
    assert saves(bench.trained(job)) == []
    bench.done(JobFailed(save.job, "input/output error"))
    (again,) = saves(bench.timer("save"))
    (last,) = saves(bench.done(Saved(again.job)))
    assert [row.id.seq for row in (*again.rows, *last.rows) if isinstance(row, PutUpdate)] == [5, 6]


def test_one_update_alone_expires() -> None:
    bench, job = alone(2)
    effects = bench.issue(job)
    assert saved_rows(effects, CloseUpdate) == [CloseUpdate(own(2), "expired", "outbox-full")]
    assert saved_rows(effects, PutUpdate) == []


def test_updates_of_other_versions_have_no_sum() -> None:
    bench, update_id = issued_one(outbox_updates=3)
    effects = bench.fetch(1)
    for version in (2, 3):
        (job,) = trains(effects)
        bench.hear("gw", busy(update_id))
        bench.issue(job)
        bench.fetch(version)
        bench.now_us += 600 * SECOND_US
        effects = bench.timer("rest")
    assert len(trains(effects)) == 1
    assert saved_rows(effects, CloseUpdate) == [CloseUpdate(own(2), "expired", "outbox-full")]


def test_what_feeds_back_expires() -> None:
    bench = Bench(offline_updates=9, outbox_updates=2)
    bench.hear(names.BROKER, LinkUp())
    bench.hear("gw/gw-1", gateway_state())
    bench.hear("gw/gw-1", descriptor(0, encoding="sign"))
    bench.hear(names.BROKER, LinkDown())
    effects: list[Effect] = []
    for part in parts(0):
        effects += bench.hear("blob", part)
    for _ in range(2):
        (job,) = trains(effects)
        effects = bench.issue(job)
    assert [row.outcome for row in saved_rows(effects, CloseUpdate)] == ["expired"]


def test_a_delta_that_is_not_finite_expires() -> None:
    bench, job = alone(3)
    effects = bench.issue(job, delta_of(math.nan))
    assert saved_rows(effects, PutUpdate) == []
    assert saved_rows(effects, CloseUpdate) == [CloseUpdate(own(2), "expired", "outbox-full")]


def test_nothing_goes_before_its_room_is_needed() -> None:
    bench, _ = issued_one(offline_updates=3, outbox_updates=2, sleep_s=5.0)
    bench.hear(names.BROKER, LinkDown())
    bench.now_us += 5 * SECOND_US
    (second,) = trains(bench.timer("rest"))
    effects = bench.issue(second)
    assert saved_rows(effects, CloseUpdate) == []
    assert trains(effects) == []
    bench.now_us += 5 * SECOND_US
    assert saved_rows(bench.timer("rest"), CloseUpdate)


# Sums.


@given(
    st.floats(-1, 1, width=32),
    st.floats(-1, 1, width=32),
    st.sampled_from(["int8", "fp32"]),
    st.floats(0.1, 5),
)
def test_a_sum_is_the_sum_within_the_clip_norm(
    one: float, other: float, encoding: str, clip_norm: float
) -> None:
    first, second = update_of(1, one, encoding), update_of(2, other, encoding)
    assert can_coalesce(first, second)
    total = coalesce(first, second, PLAN, clip_norm, lambda: own(3))
    wanted = decode_delta(first, PLAN) + decode_delta(second, PLAN)
    found = decode_delta(total, PLAN)
    factor = min(1.0, clip_norm / norm(wanted)) if norm(wanted) else 1.0
    assert norm(found) <= clip_norm * 1.001
    assert np.allclose(found, wanted * factor, atol=2 * abs(wanted * factor).max() / 127 + 1e-6)


def update_of(seq: int, value: float, encoding: str) -> Update:
    made = encode_delta(delta_of(value), PLAN, encoding, 10.0)
    return make_update(seq, encoding=encoding, scales=made.scales, payload=made.payload)


@pytest.mark.parametrize(
    ("kappas", "mean"),
    [((1.0, 3.0), 2.0), ((math.nan, 3.0), 3.0), ((0.0, 3.0), 3.0), ((-1.0, math.inf), 0.0)],
)
def test_a_sum_s_kappa_is_the_mean_of_those_that_say_something(
    kappas: tuple[float, float], mean: float
) -> None:
    one, other = (make_update(n, kappa=kappa) for n, kappa in enumerate(kappas, 1))
    total = coalesce(one, other, PLAN, 10.0, lambda: own(3))
    assert total.kappa == mean


@pytest.mark.parametrize(
    "changes", [{"base_version": 1}, {"plan_id": "0" * 32}, {"encoding": "fp32"}]
)
def test_only_updates_of_one_kind_have_a_sum(changes: dict[str, Any]) -> None:
    assert can_coalesce(make_update(1), make_update(2))
    assert not can_coalesce(make_update(1), make_update(2, **changes))


def test_no_id_is_taken_for_a_sum_that_is_none() -> None:
    broken = make_update(1, scales=b"\0\0\xc0\x7f" * len(PLAN.names))
    taken: list[int] = []

    def take() -> UpdateId:
        taken.append(1)
        return own(3)

    with pytest.raises(PeerError):
        coalesce(broken, make_update(2), PLAN, 10.0, take)
    assert not taken


# The disk is full.


def test_a_disk_that_stays_full_makes_room_of_what_was_never_offered() -> None:
    bench, job = alone(6)
    save = saves(bench.trained(job))[0]
    for failure in range(3):
        effects = bench.done(JobFailed(save.job, "database or disk is full"))
        if failure < 2:
            assert saves(effects) == []
            (save,) = saves(bench.timer("save"))
    (room,) = saves(effects)
    assert [type(row) for row in room.rows] == [CloseUpdate, CloseUpdate, PutUpdate]
    bench.done(Saved(room.job))
    (again,) = saves(bench.timer("save"))
    assert again.rows == save.rows
    bench.done(Saved(again.job))
    assert balances(counters(bench))


def test_while_the_disk_is_full_a_node_says_so_and_drains() -> None:
    bench, update_id = issued_one()
    (job,) = trains(bench.fetch(1))
    save = saves(bench.trained(job))[0]
    effects = bench.done(JobFailed(save.job, "database or disk is full"))
    assert trains(effects) == []
    assert announced(bench.timer("presence"), NodeState)[-1].counters["disk_full"] == 1
    effects = bench.hear("gw", Receipts(receipts=[Receipt(update_id, "settled")]))
    (closing,) = saves(effects + bench.timer("close"))
    assert closing.rows == (CloseUpdate(update_id, "applied"),)
    bench.done(Saved(closing.job))
    (again,) = saves(bench.timer("save"))
    assert again.rows == save.rows
    assert sent(bench.done(Saved(again.job)), Chunk)
    assert announced(bench.timer("presence"), NodeState)[-1].counters["disk_full"] == 0


# The gateway has no room.


def busy(update_id: UpdateId, reason: str = "buffer-full") -> Receipts:
    return Receipts(receipts=[Receipt(update_id, "busy", reason)])


def test_a_busy_gateway_makes_a_node_rest_and_offer_later() -> None:
    bench, update_id = issued_one()
    effects = bench.hear("gw", busy(update_id))
    assert recorded(effects, "held_back")
    assert 5 * SECOND_US <= timers(effects)["rest"] <= 10 * SECOND_US
    assert trains(bench.fetch(1)) == []
    assert sent(bench.timer("resend"), Offer) == []
    bench.now_us += 10 * SECOND_US
    effects = bench.timer("resend")
    assert sent(effects, Offer)
    assert trains(effects)
    # The timer of the rest that was cut short says nothing of the training.
    bench.timer("rest")
    bench.timer("presence")
    bench.hear(names.BROKER, LinkUp())
    assert {state.state for state in announced(bench.effects, NodeState)} == {"training"}


def test_an_update_s_own_fault_is_no_pressure() -> None:
    bench, update_id = issued_one()
    bench.hear("gw", busy(update_id, "future-version"))
    assert trains(bench.fetch(1))


def test_room_ends_the_pause() -> None:
    bench, update_id = issued_one()
    bench.hear("gw", busy(update_id))
    bench.hear("gw", Receipts(receipts=[Receipt(update_id, "settled")]))
    assert trains(bench.fetch(1))


def test_another_gateway_is_not_held_responsible() -> None:
    bench, update_id = issued_one(home="gw-1")
    bench.hear("gw", busy(update_id))
    bench.hear("gw/gw-2", gateway_state("gw-2"))
    effects = bench.hear("gw/gw-1", gateway_state("gw-1", state="lost"))
    assert sent(effects, Offer, "gw/gw-2")


def test_a_full_gateway_holds_its_nodes_back_until_its_load_falls() -> None:
    bench, _ = issued_one()
    effects = bench.hear("gw/gw-1", gateway_state(load=0.9))
    assert "rest" in timers(effects)
    assert trains(bench.fetch(1)) == []
    assert trains(bench.hear("gw/gw-1", gateway_state(load=0.5)))


def test_what_is_made_during_the_pause_is_held_unoffered() -> None:
    bench, update_id = issued_one()
    (job,) = trains(bench.fetch(1))
    bench.hear("gw", busy(update_id))
    assert sent(bench.issue(job), Chunk) == []
    assert bench.node._courier.outbox.never_offered() == [own(2)]


def test_pauses_double_to_ten_minutes_and_differ() -> None:
    backoff, now_us, pauses = Backoff(random.Random(1)), 0, []
    for _ in range(10):
        backoff.refused(now_us)
        backoff.refused(now_us)
        pauses.append(backoff.pause_us(now_us) / SECOND_US)
        now_us += backoff.pause_us(now_us)
        assert backoff.pause_us(now_us) == 0
    longest = [min(10 * 2**n, 600) for n in range(10)]
    assert all(most / 2 <= pause <= most for pause, most in zip(pauses, longest, strict=True))
    assert len(set(pauses)) == 10
    backoff.eased()
    backoff.refused(now_us)
    assert backoff.pause_us(now_us) <= 10 * SECOND_US
