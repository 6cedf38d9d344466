"""The ledger: what was saved is found again, nothing counts twice, and a crash leaves a prefix."""

import asyncio
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from aggregator.ledger import Ledger
from aggregator.rows import AcceptPartial, CommitVersion, DropPartials, SaveMetrics
from hedgerow.core.errors import ConfigError
from hedgerow.core.messages import Descriptor, Header, Partial, UnitVersion, UpdateId
from hedgerow.core.rules import LocalTraining, Rules
from hedgerow.core.staleness import StalenessLaw
from hedgerow.core.units import Manifest, Vector, digest
from hedgerow.runtime.ports import StoreError

_MANIFEST = Manifest.of({"l1.weight": (3, 4), "l1.bias": (3,), "l2.weight": (2, 3)})
_ROOT = Path(__file__).parents[2]


def _params(version: int) -> Vector:
    return np.random.default_rng(version).normal(size=_MANIFEST.size).astype(np.float32)


def _descriptor(version: int, params: Vector, tau_max: int = 50) -> Descriptor:
    pieces = _MANIFEST.split(params)
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


def _header(seq: int, kappa: float = 1.5) -> Header:
    return Header(UpdateId("node-1", 3, seq), 0, 10, kappa)


def _partial(number: int) -> Partial:
    headers = [_header(number, math.inf)]
    return Partial(id=f"p{number}", gateway="gw-1", model="m", at_version=0, headers=headers)


def _commit(
    version: int, partials: tuple[int, ...] = (), *, same: bool = False, tau_max: int = 50
) -> CommitVersion:
    params = _params(0 if same else version)
    return CommitVersion(
        _descriptor(version, params, tau_max),
        params,
        tuple(f"p{number}" for number in partials),
        tuple(_header(number) for number in partials),
    )


async def _grow(ledger: Ledger, versions: range) -> None:
    """Accept one partial per version after version 0 and merge it."""
    for version in versions:
        numbers = (version,) if version else ()
        for number in numbers:
            await ledger.save((AcceptPartial(_partial(number)),))
        await ledger.save((_commit(version, numbers), SaveMetrics(version, {"accuracy": 0.5})))


def _files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "models").iterdir()}


async def test_what_was_saved_is_found_again_under_a_new_term(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    assert await ledger.load() is None
    await ledger.save((_commit(0),))
    for number in (9, 2, 5, 7):
        await ledger.save((AcceptPartial(_partial(number)),))
    await ledger.save((_commit(1, (5, 9)), SaveMetrics(1, {"accuracy": 0.5, "loss": math.nan})))
    await ledger.close()

    for term in (1, 2):
        again = await Ledger.open(tmp_path, "m")
        snapshot = await again.load()
        assert snapshot is not None
        assert snapshot.term == term
        assert snapshot.descriptors == (_commit(0).descriptor, _commit(1).descriptor)
        assert snapshot.params.tobytes() == _params(1).tobytes()
        assert snapshot.waiting == (_partial(2), _partial(7))
        assert [(row.header, row.version) for row in snapshot.ledger] == [
            (_header(5), 1),
            (_header(9), 1),
        ]
        assert snapshot.metrics[1]["accuracy"] == 0.5
        assert math.isnan(snapshot.metrics[1]["loss"])
        assert await again.merge_inputs(1) == (_partial(5), _partial(9))
        await again.close()


async def test_terms_begin_with_the_first_version(tmp_path: Path) -> None:
    for _ in range(3):
        ledger = await Ledger.open(tmp_path, "m")
        assert await ledger.load() is None
        assert (await ledger.counts())["term"] == 0
        await ledger.close()
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((_commit(0),))
    snapshot = await ledger.load()
    assert snapshot is not None
    assert snapshot.term == 1
    await ledger.close()


async def test_a_kappa_that_says_nothing_is_kept_as_such(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    row = _commit(0)
    headers = (_header(1, math.nan), _header(2, math.inf))
    await ledger.save((CommitVersion(row.descriptor, row.params, (), headers),))
    snapshot = await ledger.load()
    assert snapshot is not None
    kappas = [row.header.kappa for row in snapshot.ledger]
    assert math.isnan(kappas[0])
    assert kappas[1] == math.inf
    await ledger.close()


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ((_commit(2, (1,)),), r"'node-1', 3, 1\) is in the ledger already"),
        (
            (_commit(2), AcceptPartial(_partial(8)), AcceptPartial(_partial(8))),
            "'p8' is waiting already",
        ),
        ((_commit(1),), "version 1 exists already"),
        ((_commit(2, (77,)),), "merges partial 'p77', which is not waiting"),
    ],
)
async def test_nothing_counts_twice_and_a_refused_save_leaves_no_trace(
    tmp_path: Path, rows: tuple[object, ...], text: str
) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    await _grow(ledger, range(2))
    before, files = await ledger.counts(), _files(tmp_path)
    with pytest.raises(StoreError, match=text):
        await ledger.save((AcceptPartial(_partial(50)), *rows))
    await ledger.save((SaveMetrics(1, {"accuracy": 0.6}),))
    after = await ledger.counts()
    await ledger.close()
    rows_only = {"model_files": 0, "model_bytes": 0}
    assert before | rows_only == after | rows_only
    again = await Ledger.open(tmp_path, "m")
    assert _files(tmp_path) == files
    await again.close()


async def test_units_of_the_last_three_versions_and_the_checkpoint_are_served(
    tmp_path: Path,
) -> None:
    ledger = await Ledger.open(tmp_path, "m", checkpoint_versions=4)
    await _grow(ledger, range(8))
    kept = {4, 5, 6, 7}
    for version in range(8):
        for name, piece in _MANIFEST.split(_params(version)).items():
            found = await ledger.blob(_commit(version).descriptor.units[name].digest)
            assert found == (piece.tobytes() if version in kept else None)
        params = await ledger.params(version)
        assert (params is not None) == (version in kept)
        if params is not None:
            assert params.tobytes() == _params(version).tobytes()
    assert len(_files(tmp_path)) == len(kept)
    assert await ledger.blob("f" * 32) is None
    await ledger.close()
    again = await Ledger.open(tmp_path, "m", checkpoint_versions=4)
    assert await again.blob(_commit(7).descriptor.units["l1.bias"].digest) is not None
    await again.close()


async def test_units_are_served_as_published_and_parameters_kept_as_they_are(
    tmp_path: Path,
) -> None:
    params = _params(0)
    digests = _MANIFEST.digests(params, "fp16")
    exact = _descriptor(0, params)
    units = {name: UnitVersion(digests[name], 0, unit.shape) for name, unit in exact.units.items()}
    descriptor = replace(exact, downlink="fp16", units=units)
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((CommitVersion(descriptor, params, (), ()),))
    for name, piece in _MANIFEST.split(params).items():
        assert await ledger.blob(digests[name]) == piece.astype("<f2").tobytes()
        assert await ledger.blob(exact.units[name].digest) is None
    snapshot = await ledger.load()
    assert snapshot is not None
    assert snapshot.params.tobytes() == params.tobytes()
    await ledger.close()


async def test_versions_with_equal_parameters_share_a_file_that_stays(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m", checkpoint_versions=1000)
    for version in range(6):
        await ledger.save((_commit(version, same=True),))
    assert len(_files(tmp_path)) == 1
    assert (await ledger.params(5)) is not None
    await ledger.close()


async def test_dropping_merge_inputs_keeps_those_after_the_checkpoint(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m", checkpoint_versions=4)
    for version in range(7):
        if version:
            await ledger.save((AcceptPartial(_partial(version)),))
        await ledger.save((_commit(version, (version,) if version else (), tau_max=2),))
    await ledger.save((AcceptPartial(_partial(90)), DropPartials(4, 2)))
    assert [len(await ledger.merge_inputs(v)) for v in range(1, 7)] == [0, 0, 0, 0, 1, 1]
    snapshot = await ledger.load()
    assert snapshot is not None
    assert [d.version for d in snapshot.descriptors] == [2, 3, 4, 5, 6]
    assert snapshot.waiting == (_partial(90),)
    counts = await ledger.counts()
    assert counts["settled_updates"] == 6
    assert counts["versions"] == 5
    await ledger.close()


async def test_another_models_folder_is_refused(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((_commit(0),))
    await ledger.close()
    with pytest.raises(ConfigError, match=r"fleet.model: 'other', but .* holds model 'm'"):
        await Ledger.open(tmp_path, "other")


async def test_an_orphan_file_is_removed_and_a_damaged_one_refused(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((_commit(0),))
    await ledger.close()
    good = _files(tmp_path)
    for name in (f"{'a' * 32}.safetensors", f"{'b' * 32}.safetensors.tmp"):
        (tmp_path / "models" / name).write_bytes(b"left by a crash")
    ledger = await Ledger.open(tmp_path, "m")
    assert _files(tmp_path) == good
    path = tmp_path / "models" / good.pop()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        await ledger.load()
    with pytest.raises(StoreError, match="damaged"):
        await ledger.blob(_commit(0).descriptor.units["l2.weight"].digest)
    await ledger.close()


async def test_a_damaged_ledger_is_set_aside_with_its_models(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((_commit(0),))
    await ledger.close()
    models = _files(tmp_path)
    (tmp_path / "ledger.sqlite3").write_bytes(b"not a database, for sure" * 500)
    again = await Ledger.open(tmp_path, "m")
    assert again.quarantined == tmp_path / "ledger.sqlite3.corrupt-1"
    assert {path.name for path in (tmp_path / "models.corrupt-1").iterdir()} == models
    assert await again.load() is None
    await again.close()


async def test_a_full_ledger_acknowledges_nothing_it_does_not_keep(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m", max_bytes=1 << 17)
    await ledger.save((_commit(0),))
    saved = 0

    async def fill() -> None:
        nonlocal saved
        for number in range(1, 4000):
            await ledger.save((AcceptPartial(_partial(number)),))
            saved = number

    with pytest.raises(StoreError, match="full"):
        await fill()
    with pytest.raises(StoreError, match="full"):
        await ledger.save((_commit(1, tuple(range(1, saved + 1))),))
    snapshot = await ledger.load()
    assert snapshot is not None
    assert snapshot.waiting == tuple(_partial(number) for number in range(1, saved + 1))
    assert [d.version for d in snapshot.descriptors] == [0]
    assert await ledger.params(1) is None
    await ledger.close()


async def _work_for_ever(folder: Path) -> None:
    """Be the process that is killed: print each version once its save has returned."""
    ledger = await Ledger.open(folder, "m", checkpoint_versions=5)
    snapshot = await ledger.load()
    version = snapshot.descriptors[-1].version + 1 if snapshot else 0
    waiting = {int(part.id[1:]) for part in snapshot.waiting} if snapshot else set()
    while True:
        numbers = (2 * version, 2 * version + 1) if version else ()
        missing = [AcceptPartial(_partial(n)) for n in numbers if n not in waiting]
        await asyncio.gather(*(ledger.save((row,)) for row in missing))
        await ledger.save((_commit(version, numbers[::-1]),))
        print(version, flush=True)  # noqa: T201 - the parent reads it
        version += 1


async def test_killed_at_any_instant_it_finds_a_clean_prefix(tmp_path: Path) -> None:
    newest = -1
    for kill in range(8):
        code = (
            "import asyncio, pathlib, sys; from tests.contract.test_ledger import _work_for_ever;"
            " asyncio.run(_work_for_ever(pathlib.Path(sys.argv[1])))"
        )
        command = [sys.executable, "-c", code, str(tmp_path)]
        with subprocess.Popen(  # noqa: ASYNC220 - nothing else runs on this loop
            command, cwd=_ROOT, stdout=subprocess.PIPE, text=True
        ) as child:
            assert child.stdout is not None
            printed = [int(child.stdout.readline()) for _ in range(3)]
            # Each round dies at another point of a save.
            time.sleep(0.0013 * kill)  # noqa: ASYNC251 - nothing else runs on this loop
            child.send_signal(signal.SIGKILL)
            printed += [int(line) for line in child.stdout]
        assert printed[0] > newest
        newest = await _check_prefix(tmp_path, printed[-1])


async def _check_prefix(folder: Path, printed: int) -> int:
    ledger = await Ledger.open(folder, "m", checkpoint_versions=5)
    snapshot = await ledger.load()
    assert ledger.quarantined is None
    assert snapshot is not None
    newest = snapshot.descriptors[-1].version
    assert newest in (printed, printed + 1)
    assert [d.version for d in snapshot.descriptors] == list(range(max(0, newest - 50), newest + 1))
    assert snapshot.params.tobytes() == _params(newest).tobytes()
    settled = [(row.header.id.seq, row.version) for row in snapshot.ledger]
    expected = [(n, v) for v in range(1, newest + 1) for n in (2 * v + 1, 2 * v)]
    assert settled == expected
    merged = [part.id for v in range(1, newest + 1) for part in await ledger.merge_inputs(v)]
    assert merged == [f"p{number}" for number, _ in expected]
    assert {part.id for part in snapshot.waiting} <= {f"p{2 * newest + 2}", f"p{2 * newest + 3}"}
    kept = {newest, newest - 1, newest - 2, newest - newest % 5} & set(range(newest + 1))
    assert len(_files(folder)) == len(kept)
    await ledger.close()
    return newest
