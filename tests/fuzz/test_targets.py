"""Hypothesis against every reader of foreign bytes: nothing but a refusal, and bounded memory and time."""

import random
import time
import tracemalloc
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.rows import CommitVersion
from hedgerow.core.codec import encode
from hedgerow.core.effects import Train
from hedgerow.core.messages import Partial
from tests.fuzz.mutation import SURPRISES, mutate, mutate_message
from tests.fuzz.samples import conversation, sample_messages, samples
from tests.fuzz.targets import (
    CONVERSATIONS,
    TARGETS,
    framed,
    fuzz_tables,
    talk_to_aggregator,
    talk_to_gateway,
    talk_to_node,
)
from tests.protocol.scenarios import saved_rows, sent

CORPUS = Path(__file__).parent / "corpus"
FUZZ = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
SLOWEST_S = 2.0
MOST_BYTES = 8 << 20
"""What one small input may cost at most, the protocols' own state included."""

names = pytest.mark.parametrize("name", TARGETS)
seeds = st.integers(0, 1 << 32)

nested = st.recursive(
    st.sampled_from(SURPRISES),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@names
def test_a_target_takes_its_samples(name: str) -> None:
    for data in samples(name):
        TARGETS[name](data)


def test_conversations_that_go_well_get_far() -> None:
    assert any(isinstance(effect, Train) for effect in talk_to_node(conversation("node")))
    assert sent(talk_to_gateway(conversation("gateway")), Partial)
    assert saved_rows(talk_to_aggregator(conversation("aggregator")), CommitVersion)


@names
def test_any_bytes(name: str) -> None:
    @FUZZ
    @given(st.binary(max_size=512))
    def law(data: bytes) -> None:
        TARGETS[name](data)

    law()


@names
def test_damaged_samples(name: str) -> None:
    inputs = samples(name)

    @FUZZ
    @given(st.sampled_from(inputs), st.data())
    def law(whole: bytes, data: st.DataObject) -> None:
        damaged = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
        for _ in range(data.draw(st.integers(0, 4))):
            if damaged:
                damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(
                    st.integers(0, 255)
                )
        TARGETS[name](bytes(damaged))

    law()


@pytest.mark.parametrize(
    "name", ["codec", "update", "partial", "descriptor", "node", "gateway", "aggregator"]
)
def test_messages_that_lie(name: str) -> None:
    inputs = samples(name)

    @FUZZ
    @given(st.sampled_from(inputs), seeds, st.integers(1, 4))
    def law(data: bytes, seed: int, times: int) -> None:
        rng = random.Random(seed)
        for _ in range(times):
            data = mutate(name, data, rng)
        TARGETS[name](data)

    law()


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_conversations_out_of_order(name: str) -> None:
    bodies = [encode(message) for message in sample_messages()]
    said = st.tuples(st.integers(0, 7), st.sampled_from(bodies), seeds)

    @FUZZ
    @given(st.lists(said, min_size=1, max_size=24))
    def law(talk: list[tuple[int, bytes, int]]) -> None:
        lies = [
            (peer, mutate_message(body, random.Random(seed)) if seed % 3 == 0 else body)
            for peer, body, seed in talk
        ]
        TARGETS[name](framed(*[(peer, body) for peer, body in lies if len(body) < 1 << 16]))

    law()


@FUZZ
@given(nested)
def test_nested_values(value: Any) -> None:
    try:
        data = msgpack.packb(value)
    except (OverflowError, ValueError):
        return
    TARGETS["codec"](data)


@FUZZ
@given(
    st.sampled_from(["fleet", "broker", "http", "data", "task", "plan", "training", "aggregation"])
    | st.sampled_from(["staleness", "node", "gateway", "island", "storage", "stop", "logs", "x"]),
    st.text(max_size=4) | st.sampled_from(["nodes", "kind", "port", "source", "options", "law"]),
    nested,
)
def test_tables_of_any_types(table: str, key: str, value: Any) -> None:
    fuzz_tables({"data": {"source": "digits"}, table: {key: value}})
    fuzz_tables({"data": {"source": "digits"}, table: value})


BOMBS = {
    "a map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "a list of 4 billion": b"\xdd\xff\xff\xff\xff",
    "bytes of 4 GB": b"\xc6\xff\xff\xff\xff",
    "text of 4 GB": b"\xdb\xff\xff\xff\xff",
    "100,000 lists in one another": b"\x91" * 100_000,
    "100,000 maps in one another": b"\x81\xa1t" * 100_000,
    "a megabyte of nothing": b"\xc0" * (1 << 20),
    "lists of lists that claim much": b"\xdc\xff\xff" * 50_000,
    "an extension of 4 GB": b"\xc9\xff\xff\xff\xff\x01",
}


@pytest.mark.parametrize("name", ["codec", "update", "partial", "descriptor"])
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_costs_little(name: str, bomb: str) -> None:
    data, target = BOMBS[bomb], TARGETS[name]
    target(b"\xc0")
    tracemalloc.start()
    try:
        before = time.process_time()
        target(data)
        took_s = time.process_time() - before
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MOST_BYTES
    assert took_s < SLOWEST_S


def kept_findings() -> list[Path]:
    return sorted(path for path in CORPUS.rglob("*") if path.is_file())


@pytest.mark.parametrize(
    "path", kept_findings(), ids=lambda path: f"{path.parent.name}/{path.name}"
)
def test_what_was_once_found_stays_mended(path: Path) -> None:
    TARGETS[path.parent.name](path.read_bytes())


# -- the fuzzing itself: a fault that is planted must be found -------------------------------------


def found(name: str, times: int = 3000) -> bool:
    """Whether a target fails for one of some samples, each changed a few times."""
    inputs, rng = samples(name), random.Random(1)
    for _ in range(times):
        data = rng.choice(inputs)
        for _ in range(rng.randint(1, 12)):
            data = mutate(name, data, rng) if len(data) < 4096 else data
        try:
            TARGETS[name](data)
        except Exception:  # noqa: BLE001 - whatever it is, it is a finding
            return True
    return False


def believe(*_: Any) -> None:
    """Check nothing, forget nothing."""


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("update", "hedgerow.core.quantize._check_scales"),
        ("chunks", "hedgerow.core.chunks.Reassembler.forget"),
        ("aggregator", "hedgerow.core.quantize._check_scales"),
    ],
)
def test_a_planted_fault_is_found(name: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not found(name, 300)
    monkeypatch.setattr(place, believe)
    assert found(name)
