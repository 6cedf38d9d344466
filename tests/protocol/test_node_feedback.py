"""What a thin encoding leaves out, as the node keeps it: durable with the update, and given back."""

import msgspec
import numpy as np
import pytest

from edge_node.rows import Books, CloseUpdate, KeepResidual, PutUpdate
from hedgerow.core import names
from hedgerow.core.codec import decode
from hedgerow.core.effects import Effect, JobFailed, LinkDown, Probe, Saved, Train
from hedgerow.core.encodings import FINEST_FIRST, encoded_bytes
from hedgerow.core.messages import Encoding, Receipt, Receipts, Update, UpdateId
from hedgerow.core.quantize import decode_delta
from hedgerow.core.rules import ProbeRequest
from hedgerow.core.units import Vector
from tests.protocol.node_bench import Bench, descriptor, parts, trains
from tests.protocol.scenarios import PLAN, make_books, recorded, saved_rows, saves

DELTA = np.linspace(-0.3, 0.5, PLAN.size, dtype=np.float32)


def begin(version: int, bench: Bench, encoding: Encoding = "sign") -> Train:
    """Give the node a version of a fleet that sends in an encoding; return the training it begins."""
    out = bench.hear("gw/gw-1", descriptor(version, encoding=encoding))
    for part in parts(version):
        out = out + bench.hear("blob", part)
    (job,) = trains(out)
    return job


def update_in(effects: list[Effect]) -> Update:
    (row,) = saved_rows(effects, PutUpdate)
    update = decode(row.body)
    assert isinstance(update, Update)
    return update


def residual_in(effects: list[Effect]) -> Vector:
    """Return the residual that one save writes, shape (p,)."""
    bodies = {row.unit: row.body for row in saved_rows(effects, KeepResidual)}
    assert list(bodies) == list(PLAN.names)
    return np.frombuffer(b"".join(body or b"" for body in bodies.values()), "<f4")


def close(status: str) -> Receipts:
    """Return the receipt that ends the node's first update."""
    return Receipts(receipts=[msgspec.convert([["node-1", 7, 1], status, "why"], Receipt)])


def test_a_residual_is_written_with_its_update() -> None:
    bench = Bench().online()
    effects = bench.trained(begin(0, bench), DELTA)
    (save,) = saves(effects)
    assert {type(row) for row in save.rows} == {PutUpdate, KeepResidual}
    update = update_in(effects)
    assert update.encoding == "sign"
    np.testing.assert_allclose(decode_delta(update, PLAN) + residual_in(effects), DELTA, atol=1e-6)


def test_where_nothing_is_left_out_no_residual_is_written() -> None:
    bench = Bench().online()
    effects = bench.trained(begin(0, bench, "int8"), DELTA)
    assert saved_rows(effects, PutUpdate)
    assert saved_rows(effects, KeepResidual) == []


@pytest.mark.parametrize("status", ["settled", "rejected"])
def test_what_was_not_applied_goes_back_with_the_end_of_its_update(status: str) -> None:
    bench = Bench().online()
    effects = bench.trained(begin(0, bench), DELTA)
    before = residual_in(effects)
    content = decode_delta(update_in(effects), PLAN)
    bench.done(Saved(saves(effects)[0].job))
    bench.hear("gw/gw-1", close(status))
    closed = bench.timer("close")
    (save,) = saves(closed)
    assert isinstance(save.rows[0], CloseUpdate)
    if status == "rejected":
        np.testing.assert_allclose(residual_in(closed), before + content, atol=1e-6)
    else:
        assert len(save.rows) == 1


def test_an_update_that_expires_goes_back_too() -> None:
    bench = Bench(outbox_updates=1)
    bench.online()
    job = begin(0, bench)
    bench.hear(names.BROKER, LinkDown())
    effects = bench.trained(job, DELTA)
    first = decode_delta(update_in(effects), PLAN)
    before = residual_in(effects)
    out = bench.done(Saved(saves(effects)[0].job))
    out = out + bench.timer("rest")
    assert recorded(out, "update_expired")
    np.testing.assert_allclose(residual_in(out), before + first, atol=1e-6)


def test_residuals_reach_the_disk_in_their_order() -> None:
    """While one save is tried again the next one waits, or the older residual would come last."""
    bench = Bench().online()
    effects = bench.trained(begin(0, bench), DELTA)
    bench.done(Saved(saves(effects)[0].job))
    job = begin(1, bench)
    bench.hear("gw/gw-1", close("rejected"))
    (first,) = saves(bench.timer("close"))
    bench.done(JobFailed(first.job, "disk full"))
    assert saves(bench.trained(job, DELTA)) == []
    assert trains(bench.fetch(2)) == []
    (again,) = saves(bench.timer("save"))
    assert again.rows == first.rows
    after = bench.done(Saved(again.job))
    assert [row.id.seq for row in saved_rows(after, PutUpdate)] == [2]
    assert saved_rows(after, KeepResidual)


def test_after_a_crash_the_residual_is_that_of_the_durable_updates() -> None:
    bench = Bench().online()
    effects = bench.trained(begin(0, bench), DELTA)
    kept = {row.unit: row.body or b"" for row in saved_rows(effects, KeepResidual)}
    body = saved_rows(effects, PutUpdate)[0].body
    books: Books = make_books(
        issued=1, last_base_version=0, outbox={1: body}, residuals=kept, units={}
    )
    again = Bench(books).online()
    later = again.trained(begin(1, again), DELTA * 0)
    total = decode_delta(update_in(later), PLAN) + residual_in(later)
    np.testing.assert_allclose(total, residual_in(effects), atol=1e-6)
    again.done(Saved(saves(later)[0].job))
    again.hear("gw/gw-1", close("rejected"))
    back = residual_in(again.timer("close"))
    content = decode_delta(update_in(effects), PLAN)
    np.testing.assert_allclose(back, residual_in(later) + content, atol=1e-6)


def test_the_node_takes_the_finest_encoding_that_its_link_allows() -> None:
    for bound in (encoded_bytes(encoding, PLAN) for encoding in FINEST_FIRST):
        bench = Bench(max_update_bytes=bound).online()
        update = update_in(bench.trained(begin(0, bench, "fp32"), DELTA))
        fitting = [e for e in FINEST_FIRST if encoded_bytes(e, PLAN) <= bound]
        assert update.encoding == fitting[0]
        assert len(update.payload) + len(update.scales) <= bound


def test_a_bound_that_nothing_fits_is_told_once_and_the_least_is_sent() -> None:
    bench = Bench(max_update_bytes=5).online()
    effects = bench.trained(begin(0, bench), DELTA)
    assert update_in(effects).encoding == "topk"
    (record,) = recorded(effects, "update_too_large")
    assert "max_update_bytes is 5" in record.fields["detail"]
    bench.done(Saved(saves(effects)[0].job))
    effects = bench.trained(begin(1, bench), DELTA)
    assert update_in(effects).id == UpdateId("node-1", 7, 2)
    assert recorded(effects, "update_too_large") == []


def test_rounding_by_chance_differs_from_update_to_update_and_repeats() -> None:
    payloads = []
    for _ in range(2):
        bench = Bench().online()
        for version in range(2):
            effects = bench.trained(begin(version, bench, "int4"), DELTA)
            payloads.append(update_in(effects).payload)
            bench.done(Saved(saves(effects)[0].job))
    assert payloads[:2] == payloads[2:]
    assert payloads[0] != payloads[1]


@pytest.mark.parametrize(
    ("encoding", "bound"), [("int8", 0), ("int4", 0), ("topk", 0), ("int8", 16), ("sign", 0)]
)
def test_what_updates_leave_out_counts_in_the_nodes_memory(encoding: Encoding, bound: int) -> None:
    bench = Bench(memory_bytes=4096, max_update_bytes=bound).online()
    job = begin(0, bench, encoding)
    thin = update_in(bench.trained(job, DELTA)).encoding in ("sign", "topk")
    assert job.memory_bytes == 4096 - 4 * PLAN.size * thin


def test_a_probe_leaves_room_for_what_updates_left_out() -> None:
    bench = Bench(memory_bytes=4096).online()
    asked = ProbeRequest(round=1, share=1.0)
    out = bench.hear("gw/gw-1", descriptor(0, encoding="sign", probe=asked))
    for part in parts(0):
        out = out + bench.hear("blob", part)
    (probe,) = [effect for effect in out if isinstance(effect, Probe)]
    assert probe.memory_bytes == 4096 - 4 * PLAN.size
