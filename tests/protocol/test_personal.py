"""Personal units: trained with the plan, durable with its update, taken up again, and never sent."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.lineage import Lineage
from edge_node.rows import KeepPersonal, PutUpdate
from hedgerow.core import names
from hedgerow.core.codec import decode
from hedgerow.core.config import PlanConfig
from hedgerow.core.effects import Effect, JobFailed, LinkDown, Save, Saved, Train
from hedgerow.core.errors import ConfigError, PeerError
from hedgerow.core.messages import Chunk, Descriptor, Update
from hedgerow.core.quantize import decode_delta
from hedgerow.core.search import first_plan
from hedgerow.core.units import Vector
from tests.protocol.node_bench import Bench, descriptor, parts, trains
from tests.protocol.scenarios import (
    MANIFEST,
    PLAN,
    WHOLE,
    first_params,
    make_books,
    make_config,
    make_lineage,
    make_snapshot,
    params_of,
    recorded,
    saved_rows,
    saves,
    sent,
)

OWN = "body.weight"
"""The personal unit here; the plan has all the others."""

HERE, SHARED = MANIFEST.slices[OWN], np.concatenate([np.arange(12, MANIFEST.size)])


def version(number: int, **changes: Any) -> Descriptor:
    return descriptor(number, personal=[OWN], **changes)


def begin(number: int, bench: Bench) -> Train:
    """Give the node a version; return the training that it begins."""
    out = bench.hear("gw/gw-1", version(number))
    for part in parts(number):
        out = out + bench.hear("blob", part)
    (job,) = trains(out)
    return job


def delta(own: float = 0.5, shared: float = 0.25) -> Vector:
    """Return a delta of all units, `own` in the personal one."""
    out = np.full(WHOLE.size, shared, np.float32)
    out[HERE] = own
    return out


def kept(effects: list[Effect]) -> Vector:
    (row,) = saved_rows(effects, KeepPersonal)
    assert row.unit == OWN
    return np.frombuffer(row.body, "<f4")


def update_in(effects: list[Effect]) -> Update:
    (row,) = saved_rows(effects, PutUpdate)
    update = decode(row.body)
    assert isinstance(update, Update)
    return update


def test_personal_units_are_trained_beside_the_plan_from_the_versions_values() -> None:
    job = begin(0, Bench().online())
    assert job.plan == WHOLE
    np.testing.assert_array_equal(job.params, first_params())


def test_only_the_shared_part_is_sent_and_the_rest_is_kept_in_the_same_transaction() -> None:
    bench = Bench().online()
    effects = bench.trained(begin(0, bench), delta())
    (save,) = saves(effects)
    assert {type(row) for row in save.rows} == {PutUpdate, KeepPersonal}
    update = update_in(effects)
    assert update.plan_id == PLAN.plan_id
    np.testing.assert_allclose(decode_delta(update, PLAN), np.full(PLAN.size, 0.25), rtol=1e-6)
    np.testing.assert_array_equal(kept(effects), first_params()[HERE] + np.float32(0.5))
    chunks = sent(bench.done(Saved(save.job)), Chunk)
    assert b"".join(chunk.body for chunk in chunks) == saved_rows(effects, PutUpdate)[0].body


def test_the_update_does_not_depend_on_how_far_the_personal_units_went() -> None:
    payloads = []
    for own in (0.0, 1000.0):
        bench = Bench().online()
        update = update_in(bench.trained(begin(0, bench), delta(own)))
        payloads.append((update.payload, update.scales))
    assert payloads[0] == payloads[1]


def test_the_next_training_takes_up_the_nodes_own_values_in_the_new_version() -> None:
    bench = Bench().online()
    bench.issue(begin(0, bench), delta())
    job = begin(1, bench)
    np.testing.assert_array_equal(job.params[HERE], params_of(1)[HERE] + np.float32(0.5))
    np.testing.assert_array_equal(job.params[SHARED], params_of(1)[SHARED])


def test_a_restart_finds_the_nodes_own_values() -> None:
    own = np.arange(12, dtype="<f4")
    bench = Bench(make_books(personal={OWN: own.tobytes()})).online()
    job = begin(0, bench)
    np.testing.assert_array_equal(job.params[HERE], own)


def test_values_of_another_model_are_not_used_and_counted() -> None:
    bench = Bench(make_books(personal={OWN: b"1234", "gone": b""}))
    (record,) = recorded(bench.effects, "personal_dropped")
    assert (record.amount, record.fields["reason"]) == (2, "shape")
    np.testing.assert_array_equal(begin(0, bench.online()).params, first_params())


def test_own_values_of_a_unit_that_is_shared_now_are_left_out() -> None:
    own = np.arange(12, dtype="<f4").tobytes()
    (job,) = trains(Bench(make_books(personal={OWN: own})).online().fetch(0))
    assert job.plan == PLAN
    np.testing.assert_array_equal(job.params, first_params())


def test_a_failed_save_is_tried_again_with_both() -> None:
    bench = Bench().online()
    (save,) = saves(bench.trained(begin(0, bench), delta()))
    bench.done(JobFailed(save.job, "no space"))
    (again,) = [e for e in bench.timer("save") if isinstance(e, Save)]
    assert again.rows == save.rows


def test_offline_the_drift_is_of_shared_units_only() -> None:
    bench = Bench(offline_updates=3).online()
    bench.issue(begin(0, bench), delta())
    (job,) = trains(bench.hear(names.BROKER, LinkDown()))
    assert job.offset is not None
    np.testing.assert_array_equal(job.offset, delta(own=0.0))
    np.testing.assert_array_equal(job.params[HERE], first_params()[HERE] + np.float32(0.5))
    np.testing.assert_array_equal(job.params[SHARED], first_params()[SHARED])
    (next_job,) = trains(bench.issue(job, delta()))
    assert next_job.offset is not None
    np.testing.assert_array_equal(next_job.offset, delta(own=0.0, shared=0.5))
    np.testing.assert_array_equal(next_job.params[HERE], first_params()[HERE] + np.float32(1.0))


@given(steps=st.lists(st.integers(-64, 64), min_size=1, max_size=4))
def test_own_values_are_the_sum_of_what_trainings_did_to_them(steps: list[int]) -> None:
    bench = Bench().online()
    for number, step in enumerate(steps):
        effects = bench.trained(begin(number, bench), delta(own=step / 8))
        np.testing.assert_allclose(
            kept(effects), first_params()[HERE] + sum(steps[: number + 1]) / 8, atol=1e-5
        )
        bench.done(Saved(saves(effects)[0].job))


@pytest.mark.parametrize(
    ("personal", "why"), [(["head.bias"], "in the plan"), (["tail"], "tail is no unit")]
)
def test_a_version_that_would_share_personal_units_is_refused(
    personal: list[str], why: str
) -> None:
    bench = Bench().online()
    with pytest.raises(PeerError, match=why):
        bench.hear("gw/gw-1", descriptor(0, personal=personal))


def test_the_first_plan_leaves_personal_units_out() -> None:
    plan = first_plan(MANIFEST, PlanConfig(preset="all", personal=[OWN]))
    assert plan == PLAN
    head = first_plan(MANIFEST, PlanConfig(preset="all", personal=["head"]))
    assert head.names == ("body.weight", "body.bias")


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (PlanConfig(last_layers=1, personal=["head"]), "plan.personal.*share nothing"),
        (PlanConfig(preset="all", personal=["tail"]), "plan.personal.*no unit 'tail'"),
    ],
)
def test_a_wrong_choice_of_personal_units_names_its_key(config: PlanConfig, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        first_plan(MANIFEST, config)


def test_versions_name_the_personal_units_and_keep_their_first_values() -> None:
    config = make_config(plan={"personal": ["body.weight"]})
    lineage = make_lineage(3, config)
    assert lineage.current.personal == [OWN]
    assert lineage.current.units[OWN].changed == 0
    assert OWN not in lineage.current.plan


def test_a_plan_that_becomes_personal_under_a_new_configuration_begins_anew() -> None:
    config = make_config(plan={"preset": "", "budget_bytes": 1000, "personal": ["head.bias"]})
    plan = PLAN.without(["head.bias"])
    lineage = Lineage(config, plan)
    lineage.restore(make_snapshot(make_lineage(3)))
    assert lineage.planned.widest == plan
    following = lineage.next(params_of(3), term=2)
    assert (following.plan, following.personal) == (list(plan.names), ["head.bias"])
    lineage.add(following)
    assert lineage.plan == plan
