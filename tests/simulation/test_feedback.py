"""What thin encodings leave out survives crashes, full disks, lost messages and rejections.

The law of error feedback, for each node, from the disks alone: what was applied, what waits and the residual
are the sum of what the durable updates were trained to.
"""

import zlib

import numpy as np
import pytest
from numpy.typing import NDArray

from hedgerow.core.codec import decode
from hedgerow.core.messages import Update
from hedgerow.core.quantize import decode_delta
from tests.protocol.scenarios import PLAN
from tests.simulation import oracle
from tests.simulation.fleets import SmallFleet
from tests.simulation.mutants import SOUND
from tests.simulation.trials import drain, weather_the_storm

Exact = NDArray[np.float64]

UNCUT = 1000.0
"""A clip norm that cuts nothing: what is cut is not fed back."""


def content(body: bytes) -> tuple[Update, Exact]:
    update = decode(body)
    assert isinstance(update, Update)
    return update, decode_delta(update, PLAN).astype(np.float64)


def owed(fleet: SmallFleet, seed: int, disk: oracle.KeptNodeDisk) -> tuple[Exact, Exact]:
    """Return what a node's durable updates were trained to, and what became of it."""
    wanted, found = np.zeros(PLAN.size), np.zeros(PLAN.size)
    for update_id, body in disk.kept.items():
        update, delta = content(body)
        text = f"{seed}:{disk.node}:{update.base_version}:{update_id.seq}"
        wanted += fleet.world.deltas[zlib.crc32(text.encode())]
        closed = disk.closed.get(update_id)
        if closed is None or closed.outcome == "applied":
            found += delta
    for name, residual in disk.residuals.items():
        found[PLAN.slices[name]] += np.frombuffer(residual, "<f4")
    return wanted, found


@pytest.mark.parametrize(("seed", "encoding"), [(1, "sign"), (2, "topk"), (3, "sign")])
def test_nothing_is_lost_in_a_storm(seed: int, encoding: str) -> None:
    training = {"encoding": encoding, "clip_norm": UNCUT, "downlink": "fp16"}
    fleet = SmallFleet(seed, parts=SOUND, training=training)
    weather_the_storm(fleet, spared=["put back"])
    drain(fleet)
    oracle.check(fleet)
    ended = 0
    for disk in oracle.node_disks(fleet):
        wanted, found = owed(fleet, seed, disk)
        assert np.abs(wanted).max() > 1
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-3)
        ended += sum(row.outcome != "applied" for row in disk.closed.values())
    assert ended > 0, "no update was given back, so nothing is shown"
