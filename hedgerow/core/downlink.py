"""How a version's units are published: as float32, or rounded to float16 at half the bytes.

Only what travels is rounded: the aggregator keeps, merges and replays float32, and every version is rounded
from its exact parameters, so no error adds up. A descriptor names the one format of all its units.
"""

from typing import Literal

import numpy as np

from hedgerow.core.units import FORMATS, Vector

Downlink = Literal["fp32", "fp16"]


def downlink_for(params: Vector, wanted: Downlink) -> Downlink:
    """Return how parameters of shape (P,) are published; beyond float16's range, 65504, it is "fp32"."""
    if wanted == "fp32":
        return wanted
    with np.errstate(over="ignore"):
        return wanted if np.isfinite(params.astype(FORMATS[wanted])).all() else "fp32"


def value_bytes(downlink: Downlink) -> int:
    """Return how many bytes a value takes."""
    return FORMATS[downlink].itemsize


def unit_values(body: bytes, downlink: Downlink) -> Vector:
    """Return the float32 values in a published unit's bytes."""
    return np.frombuffer(body, FORMATS[downlink]).astype(np.float32)
