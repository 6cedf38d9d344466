"""The ledger: what was saved is found again, nothing counts twice, and a crash leaves a prefix."""

import asyncio
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from aggregator.ledger import Ledger
from aggregator.rows import AcceptPartial, CommitVersion, DropPartials, SaveMetrics
from hedgerow.core.errors import ConfigError
from hedgerow.core.messages import UnitVersion
from hedgerow.runtime.ports import StoreError
from tests.contract.ledger_site import (
    MANIFEST,
    commit_of,
    descriptor_of,
    files,
    grow,
    header_of,
    params_of,
    partial_of,
)

_ROOT = Path(__file__).parents[2]
_OTHER_8 = replace(partial_of(8), at_version=1)


async def test_what_was_saved_is_found_again_under_a_new_term(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    assert await ledger.load() is None
    await ledger.save((commit_of(0),))
    for number in (9, 2, 5, 7):
        await ledger.save((AcceptPartial(partial_of(number)),))
    await ledger.save((commit_of(1, (5, 9)), SaveMetrics(1, {"accuracy": 0.5, "loss": math.nan})))
    await ledger.close()

    for term in (1, 2):
        again = await Ledger.open(tmp_path, "m")
        snapshot = await again.load()
        assert snapshot is not None
        assert snapshot.term == term
        assert snapshot.descriptors == (commit_of(0).descriptor, commit_of(1).descriptor)
        assert snapshot.params.tobytes() == params_of(1).tobytes()
        assert snapshot.waiting == (partial_of(2), partial_of(7))
        assert [(row.header, row.version) for row in snapshot.ledger] == [
            (header_of(5), 1),
            (header_of(9), 1),
        ]
        assert snapshot.metrics[1]["accuracy"] == 0.5
        assert math.isnan(snapshot.metrics[1]["loss"])
        assert await again.merge_inputs(1) == (partial_of(5), partial_of(9))
        await again.close()


async def test_terms_begin_with_the_first_version(tmp_path: Path) -> None:
    for _ in range(3):
        ledger = await Ledger.open(tmp_path, "m")
        assert await ledger.load() is None
        assert (await ledger.counts())["term"] == 0
        await ledger.close()
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((commit_of(0),))
    snapshot = await ledger.load()
    assert snapshot is not None
    assert snapshot.term == 1
    await ledger.close()


async def test_a_kappa_that_says_nothing_is_kept_as_such(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    row = commit_of(0)
    headers = (header_of(1, math.nan), header_of(2, math.inf))
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
        ((commit_of(2, (1,)),), r"'node-1', 3, 1\) is in the ledger already"),
        (
            (commit_of(2), AcceptPartial(partial_of(8)), AcceptPartial(_OTHER_8)),
            "'p8' is waiting already",
        ),
        ((commit_of(1),), "version 1 exists already"),
        ((commit_of(1, (1,), same=True),), "version 1 exists already"),
        ((commit_of(2, (77,)),), "merges partial 'p77', which is not waiting"),
    ],
)
async def test_nothing_counts_twice_and_a_refused_save_leaves_no_trace(
    tmp_path: Path, rows: tuple[object, ...], text: str
) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    await grow(ledger, range(2))
    before, kept = await ledger.counts(), files(tmp_path)
    with pytest.raises(StoreError, match=text):
        await ledger.save((AcceptPartial(partial_of(50)), *rows))
    await ledger.save((SaveMetrics(1, {"accuracy": 0.6}),))
    after = await ledger.counts()
    await ledger.close()
    rows_only = {"model_files": 0, "model_bytes": 0}
    assert before | rows_only == after | rows_only
    again = await Ledger.open(tmp_path, "m")
    assert files(tmp_path) == kept
    await again.close()


async def test_units_of_the_last_three_versions_and_the_checkpoint_are_served(
    tmp_path: Path,
) -> None:
    ledger = await Ledger.open(tmp_path, "m", checkpoint_versions=4)
    await grow(ledger, range(8))
    kept = {4, 5, 6, 7}
    for version in range(8):
        for name, piece in MANIFEST.split(params_of(version)).items():
            found = await ledger.blob(commit_of(version).descriptor.units[name].digest)
            assert found == (piece.tobytes() if version in kept else None)
        params = await ledger.params(version)
        assert (params is not None) == (version in kept)
        if params is not None:
            assert params.tobytes() == params_of(version).tobytes()
    assert len(files(tmp_path)) == len(kept)
    assert await ledger.blob("f" * 32) is None
    await ledger.close()
    again = await Ledger.open(tmp_path, "m", checkpoint_versions=4)
    assert await again.blob(commit_of(7).descriptor.units["l1.bias"].digest) is not None
    await again.close()


async def test_units_are_served_as_published_and_parameters_kept_as_they_are(
    tmp_path: Path,
) -> None:
    params = params_of(0)
    digests = MANIFEST.digests(params, "fp16")
    exact = descriptor_of(0, params)
    units = {name: UnitVersion(digests[name], 0, unit.shape) for name, unit in exact.units.items()}
    descriptor = replace(exact, downlink="fp16", units=units)
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((CommitVersion(descriptor, params, (), ()),))
    for name, piece in MANIFEST.split(params).items():
        assert await ledger.blob(digests[name]) == piece.astype("<f2").tobytes()
        assert await ledger.blob(exact.units[name].digest) is None
    snapshot = await ledger.load()
    assert snapshot is not None
    assert snapshot.params.tobytes() == params.tobytes()
    await ledger.close()


async def test_versions_with_equal_parameters_share_a_file_that_stays(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m", checkpoint_versions=1000)
    for version in range(6):
        await ledger.save((commit_of(version, same=True),))
    assert len(files(tmp_path)) == 1
    assert (await ledger.params(5)) is not None
    await ledger.close()


async def test_dropping_merge_inputs_keeps_those_after_the_checkpoint(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m", checkpoint_versions=4)
    for version in range(7):
        if version:
            await ledger.save((AcceptPartial(partial_of(version)),))
        await ledger.save((commit_of(version, (version,) if version else (), tau_max=2),))
    await ledger.save((AcceptPartial(partial_of(90)), DropPartials(4, 2)))
    assert [len(await ledger.merge_inputs(v)) for v in range(1, 7)] == [0, 0, 0, 0, 1, 1]
    snapshot = await ledger.load()
    assert snapshot is not None
    assert [d.version for d in snapshot.descriptors] == [2, 3, 4, 5, 6]
    assert snapshot.waiting == (partial_of(90),)
    counts = await ledger.counts()
    assert counts["settled_updates"] == 6
    assert counts["versions"] == 5
    await ledger.close()


async def test_another_models_folder_is_refused(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((commit_of(0),))
    await ledger.close()
    with pytest.raises(ConfigError, match=r"fleet.model: 'other', but .* holds model 'm'"):
        await Ledger.open(tmp_path, "other")


async def test_an_orphan_file_is_removed_and_a_damaged_one_refused(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((commit_of(0),))
    await ledger.close()
    good = files(tmp_path)
    for name in (f"{'a' * 32}.safetensors", f"{'b' * 32}.safetensors.tmp"):
        (tmp_path / "models" / name).write_bytes(b"left by a crash")
    ledger = await Ledger.open(tmp_path, "m")
    assert files(tmp_path) == good
    path = tmp_path / "models" / good.pop()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreError, match="damaged"):
        await ledger.load()
    with pytest.raises(StoreError, match="damaged"):
        await ledger.blob(commit_of(0).descriptor.units["l2.weight"].digest)
    await ledger.close()


async def test_a_damaged_ledger_is_set_aside_with_its_models(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((commit_of(0),))
    await ledger.close()
    models = files(tmp_path)
    (tmp_path / "ledger.sqlite3").write_bytes(b"not a database, for sure" * 500)
    again = await Ledger.open(tmp_path, "m")
    assert again.quarantined == tmp_path / "ledger.sqlite3.corrupt-1"
    assert {path.name for path in (tmp_path / "models.corrupt-1").iterdir()} == models
    assert await again.load() is None
    await again.close()


async def test_a_full_ledger_acknowledges_nothing_it_does_not_keep(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m", max_bytes=1 << 17)
    await ledger.save((commit_of(0),))
    saved = 0

    async def fill() -> None:
        nonlocal saved
        for number in range(1, 4000):
            await ledger.save((AcceptPartial(partial_of(number)),))
            saved = number

    with pytest.raises(StoreError, match="full"):
        await fill()
    with pytest.raises(StoreError, match="full"):
        await ledger.save((commit_of(1, tuple(range(1, saved + 1))),))
    snapshot = await ledger.load()
    assert snapshot is not None
    assert snapshot.waiting == tuple(partial_of(number) for number in range(1, saved + 1))
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
        missing = [AcceptPartial(partial_of(n)) for n in numbers if n not in waiting]
        await asyncio.gather(*(ledger.save((row,)) for row in missing))
        await ledger.save((commit_of(version, numbers[::-1]),))
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
    assert snapshot.params.tobytes() == params_of(newest).tobytes()
    settled = [(row.header.id.seq, row.version) for row in snapshot.ledger]
    expected = [(n, v) for v in range(1, newest + 1) for n in (2 * v + 1, 2 * v)]
    assert settled == expected
    merged = [part.id for v in range(1, newest + 1) for part in await ledger.merge_inputs(v)]
    assert merged == [f"p{number}" for number, _ in expected]
    assert {part.id for part in snapshot.waiting} <= {f"p{2 * newest + 2}", f"p{2 * newest + 3}"}
    kept = {newest, newest - 1, newest - 2, newest - newest % 5} & set(range(newest + 1))
    assert len(files(folder)) == len(kept)
    await ledger.close()
    return newest
