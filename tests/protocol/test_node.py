"""The rules of the node: gateways, versions and training."""

from typing import Any

import msgspec
import numpy as np
import pytest

from edge_node.rows import KeepUnit, PutUpdate
from hedgerow.core import names
from hedgerow.core.chunks import chunk_blob
from hedgerow.core.codec import decode
from hedgerow.core.effects import (
    Follow,
    JobFailed,
    LinkDown,
    LinkUp,
    Saved,
    Unfollow,
)
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BlobsWanted,
    NodeState,
    Offer,
    Receipt,
    Receipts,
    Update,
)
from hedgerow.core.quantize import decode_delta, norm
from tests.protocol.node_bench import (
    LINEAGE,
    Bench,
    descriptor,
    followed,
    gateway_state,
    issued_one,
    parts,
    trains,
)
from tests.protocol.scenarios import (
    CHUNK_BYTES,
    PLAN,
    SECOND_US,
    announced,
    delta_of,
    make_books,
    params_of,
    recorded,
    saved_rows,
    saves,
    sent,
    timers,
)

# Birth and gateways.


def test_it_announces_its_birth_with_its_epoch_when_the_link_comes_up() -> None:
    bench = Bench(make_books(epoch=42))
    assert Follow("gw/+/state") in bench.effects
    assert announced(bench.effects, NodeState) == []
    (state,) = announced(bench.hear(names.BROKER, LinkUp()), NodeState)
    assert (state.node, state.epoch, state.state) == ("node-1", 42, "ready")


def test_it_homes_at_a_ready_gateway_and_announces_it() -> None:
    bench = Bench().online()
    assert Follow("gw/gw-1/plan/model") in bench.effects
    (state,) = announced(bench.effects, NodeState)
    assert state.gateway == "gw-1"
    assert state.counters["mqtt_bytes_up"] == 5


def test_the_configured_home_wins_while_it_lives() -> None:
    bench = Bench(home="gw-2").online("gw-1")
    effects = bench.hear("gw/gw-2", gateway_state("gw-2"))
    assert Follow("gw/gw-2/plan/model") in effects
    assert Unfollow("gw/gw-1/plan/model") in effects


def test_it_rehomes_when_its_gateway_dies_and_offers_there_what_it_holds() -> None:
    bench, update_id = issued_one(home="gw-1")
    bench.hear("gw/gw-2", gateway_state("gw-2"))
    effects = bench.hear("gw/gw-1", gateway_state("gw-1", state="lost"))
    assert Unfollow("gw/gw-1/plan/model") in effects
    (offer,) = sent(effects, Offer, "gw/gw-2")
    assert offer.ids == [update_id]
    assert announced(effects, NodeState)[-1].gateway == "gw-2"
    assert recorded(effects, "rehomed")


def test_with_no_other_gateway_it_waits_for_its_own() -> None:
    bench, _ = issued_one()
    effects = bench.hear("gw/gw-1", gateway_state("gw-1", state="lost"))
    assert not [e for e in effects if isinstance(e, Unfollow)]


def test_a_restarted_gateway_is_offered_everything_again() -> None:
    bench, update_id = issued_one()
    bench.hear("gw", Receipts(receipts=[Receipt(update_id, "admitted")]))
    assert sent(bench.hear("gw/gw-1", gateway_state("gw-1")), Offer) == []
    (offer,) = sent(bench.hear("gw/gw-1", gateway_state("gw-1", boot=2)), Offer)
    assert offer.ids == [update_id]


# Versions.


def test_only_missing_units_are_followed_and_the_version_is_adopted_whole() -> None:
    bench, _ = issued_one()
    effects = bench.hear("gw/gw-1", descriptor(1))
    changed = {LINEAGE.descriptor(1).units[name].digest for name in PLAN.names}
    assert followed(effects) == {f"blob/model/{digest}/+" for digest in changed}
    wanted = [part for part in parts(1) if part.digest in changed]
    for part in wanted[:-1]:
        bench.hear("blob", part)
        assert not recorded(bench.effects, "version_adopted")
    effects = bench.hear("blob", wanted[-1])
    assert recorded(effects, "version_adopted")[0].fields == {"version": 1}
    assert any(isinstance(e, Unfollow) for e in effects)


def test_what_is_adopted_is_what_was_published() -> None:
    bench = Bench().online()
    (job,) = trains(bench.fetch(2))
    assert job.params.tobytes() == params_of(2).tobytes()
    assert job.plan.names == PLAN.names


def test_units_outside_the_plan_are_kept_for_the_next_start() -> None:
    bench = Bench().online()
    rows = saved_rows(bench.fetch(0), KeepUnit)
    assert [row.unit for row in rows] == ["body.weight"]
    again = Bench(make_books(units={row.unit: row.body for row in rows})).online()
    effects = again.hear("gw/gw-1", descriptor(0))
    unit = LINEAGE.descriptor(0).units["body.weight"].digest
    assert Follow(f"blob/model/{unit}/+") not in effects
    assert len([e for e in effects if isinstance(e, Follow)]) == 3


def test_a_damaged_kept_unit_is_fetched_again() -> None:
    body = np.ones(12, np.float32).tobytes()
    bench = Bench(make_books(units={"body.weight": body, "gone": b"x"})).online()
    effects = bench.hear("gw/gw-1", descriptor(0))
    assert len([e for e in effects if isinstance(e, Follow)]) == 4


def test_units_that_do_not_come_are_asked_for_until_they_do() -> None:
    bench = Bench().online()
    assert "fetch" in timers(bench.hear("gw/gw-1", descriptor(0)))
    effects = bench.timer("fetch")
    (wanted,) = sent(effects, BlobsWanted, "gw/gw-1")
    assert len(wanted.digests) == 4
    assert "fetch" in timers(effects)
    bench.hear(names.BROKER, LinkDown())
    effects = bench.timer("fetch")
    assert sent(effects, BlobsWanted) == []
    assert "fetch" in timers(effects)
    for part in parts(0):
        bench.hear("blob", part)
    assert "fetch" not in timers(bench.timer("fetch"))


def test_whoever_waits_for_units_asks_later_and_later() -> None:
    bench = Bench().online()
    waits = [timers(bench.hear("gw/gw-1", descriptor(0)))["fetch"]]
    waits += [timers(bench.timer("fetch"))["fetch"] for _ in range(12)]
    assert waits[:4] == [5 * SECOND_US, 10 * SECOND_US, 20 * SECOND_US, 40 * SECOND_US]
    assert waits[-1] == 3600 * SECOND_US
    assert timers(bench.hear("blob", parts(0)[0]))["fetch"] == waits[-1]


def test_an_older_version_and_a_stranger_s_descriptor_are_ignored() -> None:
    bench = Bench().online()
    bench.fetch(1)
    assert not [e for e in bench.hear("gw/gw-1", descriptor(0)) if isinstance(e, Follow)]
    assert not [e for e in bench.hear("gw/gw-9", descriptor(2)) if isinstance(e, Follow)]


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("wrong-model", {"model": "other"}),
        ("unknown-plan", {"plan_id": "0" * 32}),
        ("unknown-plan", {"plan": ["nothing"]}),
        ("shape", {"units": {"other": LINEAGE.current.units["head.bias"]}}),
    ],
)
def test_a_descriptor_that_does_not_fit_is_refused(reason: str, changes: dict[str, Any]) -> None:
    bench = Bench().online()
    with pytest.raises(PeerError) as caught:
        bench.hear("gw/gw-1", descriptor(0, **changes))
    assert caught.value.reason == reason


def test_a_damaged_piece_is_refused_and_the_unit_can_still_be_fetched() -> None:
    bench = Bench().online()
    bench.hear("gw/gw-1", descriptor(0))
    good = parts(0)[0]
    for bad in (
        msgspec.structs.replace(good, count=1, body=b"wrong"),
        msgspec.structs.replace(good, count=2, body=b"x" * 999),
        msgspec.structs.replace(good, count=3, index=3),
    ):
        with pytest.raises(PeerError):
            bench.hear("blob", bad)
    assert trains([e for part in parts(0) for e in bench.hear("blob", part)])


def test_a_unit_of_another_length_is_refused_whatever_its_digest() -> None:
    bench = Bench().online()
    body = b"\0" * 40
    units = dict(LINEAGE.descriptor(0).units)
    wrong = chunk_blob(body, CHUNK_BYTES)[0]
    units["body.weight"] = msgspec.structs.replace(units["body.weight"], digest=wrong.digest)
    bench.hear("gw/gw-1", descriptor(0, units=units))
    *others, last = [part for part in parts(0) if part.digest in {u.digest for u in units.values()}]
    for part in [wrong, *others]:
        bench.hear("blob", part)
    with pytest.raises(PeerError, match="shape"):
        bench.hear("blob", last)
    assert trains(bench.fetch(1))


# Training.


def test_at_most_one_update_per_version_while_online() -> None:
    bench, _ = issued_one()
    assert trains(bench.timer("resend")) == []
    assert trains(bench.hear("gw/gw-1", descriptor(0, term=9))) == []
    assert len(trains(bench.fetch(1))) == 1


def test_a_restart_does_not_train_the_same_version_again() -> None:
    bench = Bench(make_books(issued=1, last_base_version=0)).online()
    assert trains(bench.fetch(0)) == []
    assert len(trains(bench.fetch(1))) == 1


def test_offline_it_goes_on_from_its_own_result_up_to_the_bound() -> None:
    bench, _ = issued_one(offline_updates=2)
    (second,) = trains(bench.hear(names.BROKER, LinkDown()))
    assert second.offset is not None
    assert np.array_equal(second.offset, delta_of())
    (third,) = trains(bench.issue(second))
    assert third.offset is not None
    assert np.array_equal(third.offset, 2 * delta_of())
    assert second.seed != third.seed
    assert trains(bench.issue(third)) == []


def test_a_flapping_link_does_not_renew_the_offline_bound() -> None:
    bench, _ = issued_one(offline_updates=1)
    (second,) = trains(bench.hear(names.BROKER, LinkDown()))
    bench.issue(second)
    bench.hear(names.BROKER, LinkUp())
    bench.hear("gw/gw-1", descriptor(0, term=2))
    assert trains(bench.hear(names.BROKER, LinkDown())) == []


def test_a_new_version_ends_the_drift() -> None:
    bench, _ = issued_one(offline_updates=1)
    (alone,) = trains(bench.hear(names.BROKER, LinkDown()))
    bench.issue(alone)
    bench.hear(names.BROKER, LinkUp())
    (fresh,) = trains(bench.fetch(1))
    assert fresh.offset is None
    bench.issue(fresh)
    assert len(trains(bench.hear(names.BROKER, LinkDown()))) == 1


def test_it_rests_between_two_trainings() -> None:
    bench = Bench(sleep_s=30.0).online()
    (job,) = trains(bench.fetch(0))
    effects = bench.issue(job)
    assert timers(effects)["rest"] == 30 * SECOND_US
    assert announced(bench.timer("presence"), NodeState)[-1].state == "sleeping"
    assert trains(bench.fetch(1)) == []
    assert trains(bench.timer("rest"))


def test_it_pays_for_no_version_that_it_will_not_train_from() -> None:
    bench = Bench(sleep_s=30.0).online()
    (job,) = trains(bench.fetch(0))
    on_their_way = [descriptor(1), descriptor(2)]
    busy = bench.hear("gw/gw-1", on_their_way[0]) + bench.issue(job)
    resting = bench.hear("gw/gw-1", on_their_way[1])
    assert followed(busy + resting) == set()
    newest = {LINEAGE.descriptor(2).units[name].digest for name in PLAN.names}
    units = {f"blob/model/{digest}/+" for digest in newest}
    assert followed(bench.timer("rest")) == {"gw/gw-1/plan/model", *units}


def test_it_announces_training_at_once_and_its_usual_time_later() -> None:
    bench = Bench().online()
    effects = bench.fetch(0)
    assert announced(effects, NodeState)[-1].state == "training"
    finished = bench.trained(trains(effects)[0])
    assert announced(finished, NodeState) == [], "it is busy until its update is on its way"
    effects = bench.done(Saved(saves(finished)[0].job))
    assert announced(effects, NodeState) == []
    assert timers(effects)["presence"] == 2 * SECOND_US
    (state,) = announced(bench.timer("presence"), NodeState)
    assert (state.state, state.usual_us, state.peak_bytes) == ("ready", SECOND_US, 100)


def test_a_closed_model_is_not_trained() -> None:
    bench = Bench().online()
    bench.hear("gw/gw-1", descriptor(0, training_open=False))
    assert trains([e for part in parts(0) for e in bench.hear("blob", part)]) == []


def test_a_long_delta_is_clipped_and_the_clip_counted() -> None:
    bench = Bench().online()
    (job,) = trains(bench.fetch(0))
    effects = bench.trained(job, delta_of(1000.0))
    assert recorded(effects, "clipped")
    update = decode(saved_rows(effects, PutUpdate)[0].body)
    assert isinstance(update, Update)
    assert norm(decode_delta(update, PLAN)) == pytest.approx(10.0)


def test_a_failed_training_is_tried_again_after_a_while() -> None:
    bench = Bench().online()
    (job,) = trains(bench.fetch(0))
    effects = bench.done(JobFailed(job.job, "out of memory"))
    assert recorded(effects, "training_failed")
    assert trains(effects) == []
    assert timers(effects)["rest"] == 10 * SECOND_US
    bench.now_us += 10 * SECOND_US
    (again,) = trains(bench.timer("rest"))
    assert again.seed == job.seed


def test_a_failed_offline_training_does_not_permit_a_second_update_online() -> None:
    bench, _ = issued_one(offline_updates=2)
    (alone,) = trains(bench.hear(names.BROKER, LinkDown()))
    bench.done(JobFailed(alone.job, "out of memory"))
    bench.now_us += 20 * SECOND_US
    assert trains(bench.hear(names.BROKER, LinkUp())) == []
