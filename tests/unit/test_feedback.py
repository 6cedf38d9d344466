"""Laws of error feedback: nothing is lost whatever becomes of updates, and nothing grows without end."""

from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.feedback import Residuals
from edge_node.rows import KeepResidual
from hedgerow.core.codec import decode, encode
from hedgerow.core.effects import Record
from hedgerow.core.encodings import FED_BACK
from hedgerow.core.messages import Encoding, Update
from hedgerow.core.outlet import Outlet
from hedgerow.core.plan import Plan
from hedgerow.core.quantize import Encoded, decode_delta, norm
from hedgerow.core.units import Manifest, Vector
from tests.unit.strategies import LAW, deltas, manifests, plans, update_of

FAR = 1e6
"""A clip norm that cuts nothing."""

MANIFEST = Manifest.of({"a": (4,), "b": (3,), "c": (2,)})
LEFT, RIGHT = Plan.of(MANIFEST, ["a", "b"]), Plan.of(MANIFEST, ["b", "c"])

encodings = st.sampled_from(sorted(FED_BACK))


def sent(plan: Plan, encoding: Encoding, encoded: Encoded) -> bytes:
    return encode(update_of(plan, encoding, encoded))


def content(body: bytes, plan: Plan) -> Vector:
    update = decode(body)
    assert isinstance(update, Update)
    return decode_delta(update, plan).astype(np.float64)


class Node:
    """Residuals with the disk and the rounding that a node gives them."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.disk: dict[str, bytes] = {}
        self.outlet = Outlet()
        self.residuals = Residuals(manifest, self.disk, self.outlet)
        self.rng = np.random.default_rng(1)

    def send(
        self, delta: Vector, plan: Plan, encoding: Encoding, clip_norm: float = FAR, k: int = 0
    ) -> bytes:
        encoded = self.residuals.encode(delta, plan, encoding, clip_norm, self.rng, k)
        return sent(plan, encoding, encoded)

    def write(self, rows: Iterable[KeepResidual]) -> None:
        for row in rows:
            if row.body is None:
                self.disk.pop(row.unit, None)
            else:
                self.disk[row.unit] = row.body

    def restart(self) -> None:
        self.write(self.residuals.changed_rows())
        self.residuals = Residuals(self.manifest, self.disk, self.outlet)

    def dropped(self) -> list[tuple[int, str]]:
        """Return how many residuals were dropped and why, since the last call."""
        return [
            (effect.amount, str(effect.fields["reason"]))
            for effect in self.outlet.drain()
            if isinstance(effect, Record) and effect.event == "residual_dropped"
        ]


@LAW
@given(st.data())
def test_whatever_becomes_of_updates_nothing_is_lost(data: st.DataObject) -> None:
    """Sum of what was applied, of what waits and of the residual is the sum of the deltas."""
    plan = data.draw(manifests().flatmap(plans), label="plan")
    node = Node(plan.manifest)
    wanted = np.zeros(plan.size)
    arrived = np.zeros(plan.size)
    waiting: list[bytes] = []
    for _ in range(data.draw(st.integers(1, 12), label="steps")):
        match data.draw(st.sampled_from(["train", "train", "apply", "reject", "restart"])):
            case "train":
                delta = data.draw(deltas(plan.size))
                k = data.draw(st.integers(0, plan.size))
                waiting.append(node.send(delta, plan, data.draw(encodings), k=k))
                wanted += delta
            case "apply" if waiting:
                arrived += content(waiting.pop(0), plan)
            case "reject" if waiting:
                node.residuals.give_back(waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
            case "restart":
                node.restart()
    under_way = sum((content(body, plan) for body in waiting), np.zeros(plan.size))
    found = arrived + under_way + node.residuals.of(plan)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    assert node.dropped() == []


@LAW
@given(encodings, st.integers(1, 30), st.floats(0.1, 10))
def test_what_clipping_cuts_is_not_fed_back(encoding: Encoding, rounds: int, clip: float) -> None:
    """A node whose deltas are far too long has a residual of a few clip norms, however long that lasts."""
    node = Node(MANIFEST)
    for at in range(rounds):
        delta = np.random.default_rng([7, at]).standard_normal(LEFT.size).astype(np.float32)
        body = node.send(delta * np.float32(1e4), LEFT, encoding, clip)
        assert norm(content(body, LEFT)) <= clip * (1 + 1e-5)
        # Each leaves out some share of its content; the least is sent by topk, one value of seven.
        assert norm(node.residuals.of(LEFT)) <= 2 * LEFT.size * clip


@LAW
@given(encodings, st.data())
def test_in_the_long_run_a_steady_delta_arrives_whole(
    encoding: Encoding, data: st.DataObject
) -> None:
    delta = data.draw(deltas(LEFT.size))
    node, rounds = Node(MANIFEST), 60
    arrived = sum(content(node.send(delta, LEFT, encoding), LEFT) for _ in range(rounds))
    error = np.abs(arrived - rounds * delta.astype(np.float64))
    # What is still owed is bounded, so its share falls with the number of rounds.
    assert np.max(error) <= 2 * LEFT.size * float(np.max(np.abs(delta))) + 1e-3


def test_a_cut_is_told() -> None:
    residuals = Node(MANIFEST).residuals
    delta = np.ones(LEFT.size, np.float32)
    assert residuals.encode(delta, LEFT, "sign", 1.0).clipped
    assert not residuals.encode(delta * 0, LEFT, "sign", 100.0).clipped


def test_a_unit_that_leaves_the_plan_loses_its_residual_and_is_counted() -> None:
    node = Node(MANIFEST)
    node.send(np.arange(7, dtype=np.float32), LEFT, "topk", k=1)
    node.write(node.residuals.changed_rows())
    kept = node.residuals.of(LEFT)[4:]
    assert kept.any()
    assert node.dropped() == []
    body = node.send(np.zeros(RIGHT.size, np.float32), RIGHT, "topk", k=RIGHT.size)
    assert node.dropped() == [(1, "left-plan")]
    now = content(body, RIGHT) + node.residuals.of(RIGHT)
    np.testing.assert_allclose(now, [*kept, 0, 0], atol=1e-6)
    node.restart()
    assert sorted(node.disk) == ["b", "c"]
    assert node.residuals.plan == RIGHT


def test_of_a_former_plans_update_comes_back_what_is_still_trained() -> None:
    node = Node(MANIFEST)
    delta = np.arange(1, 8, dtype=np.float32)
    body = node.send(delta, LEFT, "topk", k=7)
    node.send(np.zeros(RIGHT.size, np.float32), RIGHT, "topk")
    node.dropped()
    node.residuals.give_back(body)
    assert node.dropped() == [(1, "left-plan")]
    total = node.residuals.of(RIGHT)
    np.testing.assert_allclose(total[:3], delta[4:], atol=0.1)


def test_a_plan_that_is_taken_up_again_is_not_the_first_forgotten() -> None:
    manifest = Manifest.of({f"u{n}": (1,) for n in range(10)})
    node = Node(manifest)
    first = Plan.of(manifest, ["u0"])
    others = [Plan.of(manifest, ["u0", f"u{n}"]) for n in range(1, 9)]
    for plan in (first, *others[:7]):
        node.send(np.ones(plan.size, np.float32), plan, "sign")
    body = node.send(np.ones(1, np.float32), first, "sign")
    node.send(np.ones(2, np.float32), others[7], "sign")
    node.dropped()
    before = node.residuals.of(first)
    node.residuals.give_back(body)
    assert node.dropped() == []
    np.testing.assert_allclose(node.residuals.of(first), before + content(body, first))


def test_what_cannot_come_back_is_counted() -> None:
    node = Node(MANIFEST)
    body = node.send(np.ones(7, np.float32), LEFT, "sign")
    stranger = Node(MANIFEST)
    stranger.residuals.give_back(body)
    assert stranger.dropped() == [(1, "unknown-plan")]
    assert stranger.residuals.changed_rows() == []
    # The same names, other shapes: another model now.
    grown = Manifest.of({"a": (8,), "b": (3,), "c": (2,)})
    other = Node(grown)
    other.send(np.ones(11, np.float32), Plan.of(grown, ["a", "b"]), "sign")
    other.residuals.give_back(body)
    assert other.dropped() == [(1, "shape")]


def test_a_finer_encoding_takes_the_residual_along() -> None:
    node = Node(MANIFEST)
    delta = np.arange(7, dtype=np.float32)
    body = node.send(delta, LEFT, "topk", k=1)
    node.write(node.residuals.changed_rows())
    assert node.disk
    whole = node.residuals.taken_along(np.zeros(7, np.float32), LEFT)
    np.testing.assert_allclose(whole + content(body, LEFT), delta, atol=1e-5)
    assert node.residuals.taken_along(delta, LEFT) is delta
    node.restart()
    assert node.disk == {}
    assert node.residuals.plan is None


def test_rows_come_once() -> None:
    node = Node(MANIFEST)
    assert node.residuals.changed_rows() == []
    node.send(np.ones(7, np.float32), LEFT, "sign")
    assert [row.unit for row in node.residuals.changed_rows()] == ["a", "b"]
    assert node.residuals.changed_rows() == []


@pytest.mark.parametrize(
    "kept", [{"a": bytes(12)}, {"gone": bytes(16)}, {"a": b"", "gone": b"", "b": bytes(13)}]
)
def test_residuals_of_another_model_are_dropped_and_counted(kept: dict[str, bytes]) -> None:
    outlet = Outlet()
    residuals = Residuals(MANIFEST, kept, outlet)
    assert residuals.plan is None
    (record,) = outlet.drain()
    assert isinstance(record, Record)
    assert (record.event, record.amount) == ("residual_dropped", len(kept))
    rows = residuals.changed_rows()
    assert sorted(row.unit for row in rows) == sorted(kept)
    assert all(row.body is None for row in rows)
