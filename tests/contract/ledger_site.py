"""Versions, partials and a ledger to keep them, for tests on real files."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from aggregator.ledger import FILE_NAME, Ledger
from aggregator.rows import AcceptPartial, CommitVersion, SaveMetrics
from hedgerow.core.messages import Descriptor, Header, Partial, UnitVersion, UpdateId
from hedgerow.core.rules import LocalTraining, Rules
from hedgerow.core.staleness import StalenessLaw
from hedgerow.core.units import Manifest, Vector, digest

MANIFEST = Manifest.of({"l1.weight": (3, 4), "l1.bias": (3,), "l2.weight": (2, 3)})


def params_of(version: int) -> Vector:
    return np.random.default_rng(version).normal(size=MANIFEST.size).astype(np.float32)


def descriptor_of(version: int, params: Vector, tau_max: int = 50) -> Descriptor:
    pieces = MANIFEST.split(params)
    return Descriptor(
        model="m",
        version=version,
        parent=max(0, version - 1),
        term=1,
        plan_id="0" * 32,
        plan=["l2.weight"],
        units={
            name: UnitVersion(digest(piece.tobytes()), version, list(piece.shape))
            for name, piece in pieces.items()
        },
        rules=Rules(staleness=StalenessLaw(tau_max=tau_max), clip_norm=1.0),
        training={"default": LocalTraining(passes=1, batch_size=1, learning_rate=0.1)},
        encoding="int8",
        deadline_us=60_000_000,
    )


def header_of(seq: int, kappa: float = 1.5) -> Header:
    return Header(UpdateId("node-1", 3, seq), 0, 10, kappa, hash=seq << 20)


def partial_of(number: int) -> Partial:
    headers = [header_of(number, math.inf)]
    return Partial(id=f"p{number}", gateway="gw-1", model="m", at_version=0, headers=headers)


def commit_of(
    version: int, partials: tuple[int, ...] = (), *, same: bool = False, tau_max: int = 50
) -> CommitVersion:
    params = params_of(0 if same else version)
    return CommitVersion(
        descriptor_of(version, params, tau_max),
        params,
        tuple(f"p{number}" for number in partials),
        tuple(header_of(number) for number in partials),
    )


async def grow(ledger: Ledger, versions: range) -> None:
    """Accept one partial per version after version 0 and merge it."""
    for version in versions:
        numbers = (version,) if version else ()
        for number in numbers:
            await ledger.save((AcceptPartial(partial_of(number)),))
        await ledger.save((commit_of(version, numbers), SaveMetrics(version, {"accuracy": 0.5})))


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "models").iterdir()}


@contextmanager
def opened_by_hand(folder: Path) -> Iterator[sqlite3.Connection]:
    """Change a ledger that nobody has open."""
    connection = sqlite3.connect(folder / FILE_NAME)
    try:
        with connection:
            yield connection
    finally:
        connection.close()


def flip(connection: sqlite3.Connection, table: str, column: str, where: str) -> None:
    """Flip one bit in the middle of one row's body."""
    query = f"SELECT {column} FROM {table} WHERE {where}"  # noqa: S608
    body = bytearray(connection.execute(query).fetchone()[0])
    body[len(body) // 2] ^= 1
    change = f"UPDATE {table} SET {column} = ? WHERE {where}"  # noqa: S608
    connection.execute(change, (bytes(body),))
