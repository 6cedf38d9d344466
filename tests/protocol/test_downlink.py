"""Versions that travel as float16: what is published is rounded, what is kept is not."""

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.lineage import Lineage
from edge_node.rows import KeepUnit
from hedgerow.core.chunks import chunk_blob
from hedgerow.core.downlink import downlink_for, unit_values, value_bytes
from hedgerow.core.effects import Effect
from hedgerow.core.errors import PeerError
from hedgerow.core.inline import carried, inline_units
from hedgerow.core.messages import Descriptor
from hedgerow.core.units import Vector, digest, unit_bytes
from sims.disks import LedgerDisk
from tests.protocol.node_bench import Bench, followed, trains
from tests.protocol.scenarios import (
    CHUNK_BYTES,
    MANIFEST,
    PLAN,
    first_params,
    make_books,
    make_config,
    params_of,
    saved_rows,
)
from tests.unit.strategies import LAW, deltas

HALF = make_config(training={"downlink": "fp16"})
THIRDS = first_params() / np.float32(3)
"""Parameters that float16 cannot hold exactly."""


def rounded(params: Vector) -> Vector:
    return params.astype(np.float16).astype(np.float32)


def published(params: Vector, *, inline: bool = False) -> Descriptor:
    made = Lineage(HALF, PLAN).first(params, 1)
    return made if inline else msgspec.structs.replace(made, inline=b"")


def give(bench: Bench, version: Descriptor, params: Vector) -> list[Effect]:
    """Give a node a version and the units it follows, as the ledger serves them."""
    disk = LedgerDisk(version, params, MANIFEST)
    out = bench.hear("gw/gw-1", version)
    wanted = {channel.split("/")[-2] for channel in followed(out)}
    for unit in version.units.values():
        body = disk.blob(unit.digest)
        assert body is not None
        if unit.digest in wanted:
            for part in chunk_blob(body, CHUNK_BYTES):
                out = out + bench.hear("blob", part)
    return out


@LAW
@given(deltas(8, 7e4))
def test_published_values_are_the_nearest_of_their_format(values: Vector) -> None:
    kind = downlink_for(values, "fp16")
    body = unit_bytes(values, kind)
    assert len(body) == value_bytes(kind) * values.size
    back = unit_values(body, kind)
    assert np.isfinite(back).all()
    if kind == "fp32":
        assert np.abs(values).max() >= 65520
        assert back.tobytes() == values.tobytes()
    else:
        assert np.abs(values).max() < 65520
        error = np.abs(back.astype(np.float64) - values)
        assert np.all(error <= np.maximum(np.abs(values) * 2.0**-11, 2.0**-25))


@given(st.sampled_from([65504.0, -65519.0, 65520.0, -1e30]))
def test_a_version_beyond_the_range_of_float16_is_published_whole(value: float) -> None:
    params = first_params()
    params[3] = value
    version = published(params, inline=True)
    assert version.downlink == ("fp16" if abs(value) < 65520 else "fp32")
    assert {n: u.digest for n, u in version.units.items()} == MANIFEST.digests(
        params, version.downlink
    )


def test_a_descriptor_names_carries_and_measures_rounded_units() -> None:
    version = published(THIRDS, inline=True)
    assert version.downlink == "fp16"
    assert len(version.inline) == 2 * PLAN.size
    units = inline_units(version)
    assert units.keys() == carried(version)
    for name in PLAN.names:
        body = units[version.units[name].digest]
        assert digest(body) == version.units[name].digest
        where = MANIFEST.slices[name]
        assert unit_values(body, "fp16").tobytes() == rounded(THIRDS)[where].tobytes()


@pytest.mark.parametrize("inline", [True, False], ids=["inline", "blobs"])
def test_a_node_trains_from_the_rounded_values(inline: bool) -> None:  # noqa: FBT001
    bench = Bench().online()
    (job,) = trains(give(bench, published(THIRDS, inline=inline), THIRDS))
    assert job.params.tobytes() == rounded(THIRDS).tobytes()


def test_a_node_follows_when_the_format_changes() -> None:
    bench = Bench().online()
    (job,) = trains(bench.fetch(0))
    assert job.params.tobytes() == params_of(0).tobytes()
    bench.issue(job)
    version = msgspec.structs.replace(published(THIRDS), version=1)
    (job,) = trains(give(bench, version, THIRDS))
    assert job.params.tobytes() == rounded(THIRDS).tobytes()


def test_units_kept_as_float16_need_not_be_fetched_again() -> None:
    bench = Bench().online()
    version = published(THIRDS, inline=True)
    rows = saved_rows(give(bench, version, THIRDS), KeepUnit)
    kept = {row.unit: row.body for row in rows}
    assert kept.keys() == {"body.weight"}
    again = Bench(make_books(units=kept)).online()
    effects = again.hear("gw/gw-1", version)
    assert not [channel for channel in followed(effects) if channel.startswith("blob/")]
    (job,) = trains(effects)
    assert job.params.tobytes() == rounded(THIRDS).tobytes()


def test_units_in_another_format_than_the_descriptors_are_refused() -> None:
    lying = msgspec.structs.replace(published(THIRDS), downlink="fp32")
    disk = LedgerDisk(published(THIRDS), THIRDS, MANIFEST)
    bench = Bench().online()
    bench.hear("gw/gw-1", lying)
    *most, last = [disk.blob(unit.digest) or b"" for unit in lying.units.values()]
    for body in most:
        for part in chunk_blob(body, CHUNK_BYTES):
            bench.hear("blob", part)
    (part,) = chunk_blob(last, CHUNK_BYTES)
    with pytest.raises(PeerError, match=r"unit body\.weight has 24 bytes"):
        bench.node.receive("blob", part, bench.now_us)


def test_carried_units_in_another_format_are_refused() -> None:
    version = published(THIRDS, inline=True)
    with pytest.raises(PeerError, match="inline"):
        inline_units(msgspec.structs.replace(version, downlink="fp32"))
