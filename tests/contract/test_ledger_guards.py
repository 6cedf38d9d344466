"""A ledger that is damaged, put back, full or of an older release: what is believed, and what is said."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from aggregator.ledger import FILE_NAME, Ledger, read_ledger
from aggregator.rows import AcceptPartial, CommitVersion, DropPartials, SetAside, Snapshot
from hedgerow.core.codec import encode
from hedgerow.core.versions import LIFE_VERSIONS
from hedgerow.runtime.ports import StoreError
from tests.contract.ledger_site import (
    commit_of,
    files,
    flip,
    grow,
    header_of,
    opened_by_hand,
    params_of,
    partial_of,
)

OLD_SCHEMA = """
CREATE TABLE term (only INTEGER PRIMARY KEY CHECK (only = 1), value INTEGER NOT NULL);
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, descriptor BLOB NOT NULL, file TEXT NOT NULL);
CREATE TABLE ledger (
    node TEXT NOT NULL, epoch INTEGER NOT NULL, seq INTEGER NOT NULL,
    base_version INTEGER NOT NULL, examples INTEGER NOT NULL, kappa REAL,
    version INTEGER NOT NULL, PRIMARY KEY (node, epoch, seq));
CREATE TABLE partials (
    position INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL, body BLOB NOT NULL,
    merged_version INTEGER, merge_order INTEGER);
CREATE UNIQUE INDEX waiting ON partials (id) WHERE merged_version IS NULL;
CREATE INDEX merged ON partials (merged_version) WHERE merged_version IS NOT NULL;
CREATE TABLE metrics (version INTEGER PRIMARY KEY, metrics TEXT NOT NULL);
"""
"""What the first release made."""


async def started(folder: Path) -> Snapshot:
    """Return what an aggregator that starts now finds."""
    ledger = await Ledger.open(folder, "m")
    try:
        snapshot = await ledger.load()
        assert snapshot is not None
        return snapshot
    finally:
        await ledger.close()


async def made(folder: Path, versions: int, *waiting: int) -> None:
    """Make a ledger of so many versions after 0, and of partials that wait."""
    ledger = await Ledger.open(folder, "m")
    await grow(ledger, range(versions + 1))
    for number in waiting:
        await ledger.save((AcceptPartial(partial_of(number)),))
    await ledger.close()


def life_of(parent: int, params_version: int) -> CommitVersion:
    """Return the first version of a new life."""
    first = commit_of(params_version)
    version = LIFE_VERSIONS + parent + 1
    descriptor = replace(first.descriptor, version=version, parent=parent)
    return CommitVersion(descriptor, params_of(params_version), (), ())


async def test_hashes_are_kept_with_the_rows(tmp_path: Path) -> None:
    await made(tmp_path, 2)
    snapshot = await started(tmp_path)
    assert [row.header.hash for row in snapshot.ledger] == [1 << 20, 2 << 20]
    assert read_ledger(tmp_path) == snapshot.ledger


async def test_a_ledger_of_the_release_before_is_taken_over(tmp_path: Path) -> None:
    await made(tmp_path / "new", 1)
    (file,) = files(tmp_path / "new") - {
        f"{name}.safetensors" for name in await _file_names(tmp_path / "new", 0)
    }
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / file).write_bytes((tmp_path / "new" / "models" / file).read_bytes())
    with opened_by_hand(tmp_path) as connection:
        connection.executescript(OLD_SCHEMA)
        row = commit_of(1).descriptor
        connection.execute(
            "INSERT INTO versions VALUES (1, ?, ?)",
            (encode(row), file.removesuffix(".safetensors")),
        )
        connection.execute("INSERT INTO ledger VALUES ('node-1', 3, 1, 0, 10, 1.5, 1)")
        for number, merged in ((1, 1), (2, None)):
            connection.execute(
                "INSERT INTO partials (id, body, merged_version, merge_order) VALUES (?, ?, ?, 0)",
                (f"p{number}", encode(partial_of(number)), merged),
            )
        connection.execute("INSERT INTO term VALUES (1, 4)")
    old = read_ledger(tmp_path)
    for term in (5, 6):
        snapshot = await started(tmp_path)
        assert snapshot.term == term
        assert snapshot.ledger == old
        assert [row.header for row in old] == [replace(header_of(1), hash=0)]
        assert snapshot.waiting == (partial_of(2),)
        assert (snapshot.restored, snapshot.damage) == ("", {})
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((AcceptPartial(partial_of(3)), commit_of(2, (2, 3))))
    await ledger.close()
    assert [row.header.hash for row in read_ledger(tmp_path)] == [0, 2 << 20, 3 << 20]


async def _file_names(folder: Path, version: int) -> list[str]:
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection:
        query = "SELECT file FROM versions WHERE version = ?"
        return [name for (name,) in connection.execute(query, (version,))]


async def test_a_ledger_of_a_release_to_come_is_left_alone(tmp_path: Path) -> None:
    await made(tmp_path, 1)
    with opened_by_hand(tmp_path) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StoreError, match="newer release"):
        await Ledger.open(tmp_path, "m")


async def test_a_damaged_partial_is_set_aside_and_the_others_stay(tmp_path: Path) -> None:
    await made(tmp_path, 2, 10, 11, 12)
    with opened_by_hand(tmp_path) as connection:
        flip(connection, "partials", "body", "id = 'p11'")
    snapshot = await started(tmp_path)
    assert snapshot.waiting == (partial_of(10), partial_of(12))
    assert (snapshot.restored, snapshot.damage) == ("", {"partial": 1})
    assert (await started(tmp_path)).damage == {}
    ledger = await Ledger.open(tmp_path, "m")
    assert (await ledger.counts())["damaged_rows"] == 1
    await ledger.save((AcceptPartial(partial_of(11)), commit_of(3, (11,))))
    await ledger.close()


async def test_a_partial_of_no_use_is_set_aside_on_request(tmp_path: Path) -> None:
    await made(tmp_path, 1, 10)
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((SetAside("p10", "stale"),))
    await ledger.close()
    snapshot = await started(tmp_path)
    assert snapshot.waiting == ()
    assert snapshot.damage == {}
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        rows = connection.execute("SELECT kind, name, body, reason FROM damaged").fetchall()
    assert rows == [("partial", "p10", encode(partial_of(10)), "stale")]


async def test_damaged_merge_inputs_are_never_replayed_in_silence(tmp_path: Path) -> None:
    await made(tmp_path, 2)
    with opened_by_hand(tmp_path) as connection:
        flip(connection, "partials", "body", "id = 'p2'")
    ledger = await Ledger.open(tmp_path, "m")
    assert await ledger.merge_inputs(1) == (partial_of(1),)
    with pytest.raises(StoreError, match="p2 is damaged"):
        await ledger.merge_inputs(2)
    await ledger.close()


async def test_a_partial_that_is_gone_is_counted_but_not_one_that_was_dropped(
    tmp_path: Path,
) -> None:
    await made(tmp_path, 3, 10, 11)
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((DropPartials(2, 1),))
    await ledger.close()
    assert (await started(tmp_path)).damage == {}
    with opened_by_hand(tmp_path) as connection:
        connection.execute("DELETE FROM partials WHERE id = 'p10'")
    assert (await started(tmp_path)).damage == {"partial-missing": 1}


async def test_a_damaged_newest_version_begins_a_new_life_with_its_parameters(
    tmp_path: Path,
) -> None:
    await made(tmp_path, 3)
    with opened_by_hand(tmp_path) as connection:
        flip(connection, "versions", "descriptor", "version = 3")
    for damage in ({"version": 1}, {}):
        # It is not forgotten before the new life has begun.
        snapshot = await started(tmp_path)
        assert [d.version for d in snapshot.descriptors] == [0, 1, 2]
        assert snapshot.params.tobytes() == params_of(3).tobytes()
        assert (snapshot.restored, snapshot.newest_seen) == ("damaged-version", 3)
        assert snapshot.damage == damage
        assert len(snapshot.ledger) == 3
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((life_of(2, 3),))
    await ledger.close()
    snapshot = await started(tmp_path)
    assert (snapshot.restored, snapshot.newest_seen) == ("", 0)
    assert snapshot.descriptors[-1].version == LIFE_VERSIONS + 3
    assert snapshot.params.tobytes() == params_of(3).tobytes()


async def test_where_its_parameters_are_gone_too_those_before_serve(tmp_path: Path) -> None:
    await made(tmp_path, 3)
    (file,) = await _file_names(tmp_path, 3)
    (tmp_path / "models" / f"{file}.safetensors").unlink()
    with opened_by_hand(tmp_path) as connection:
        flip(connection, "versions", "descriptor", "version = 3")
    snapshot = await started(tmp_path)
    assert snapshot.params.tobytes() == params_of(2).tobytes()
    assert snapshot.restored == "damaged-version"


async def test_a_damaged_older_version_is_left_out(tmp_path: Path) -> None:
    await made(tmp_path, 3)
    with opened_by_hand(tmp_path) as connection:
        flip(connection, "versions", "descriptor", "version = 1")
    snapshot = await started(tmp_path)
    assert [d.version for d in snapshot.descriptors] == [0, 2, 3]
    assert (snapshot.restored, snapshot.damage) == ("", {"version": 1})
    assert (await started(tmp_path)).damage == {"version-missing": 1}


async def test_with_no_version_left_it_does_not_start(tmp_path: Path) -> None:
    await made(tmp_path, 1)
    with opened_by_hand(tmp_path) as connection:
        for version in (0, 1):
            flip(connection, "versions", "descriptor", f"version = {version}")
    for _ in range(2):
        with pytest.raises(StoreError, match="all versions are damaged"):
            await Ledger.open(tmp_path, "m")


async def test_a_restored_ledger_says_so_until_its_new_life_has_begun(tmp_path: Path) -> None:
    await made(tmp_path, 2)
    with opened_by_hand(tmp_path) as connection:
        connection.execute("INSERT INTO meta VALUES ('restored', '1')")
    for _ in range(2):
        snapshot = await started(tmp_path)
        assert (snapshot.restored, snapshot.newest_seen) == ("restore", 0)
    ledger = await Ledger.open(tmp_path, "m")
    await ledger.save((life_of(2, 2),))
    await ledger.close()
    assert (await started(tmp_path)).restored == ""


async def test_what_the_log_has_lost_begins_a_new_life(tmp_path: Path) -> None:
    folder, copy = tmp_path / "live", tmp_path / "copy"
    ledger = await Ledger.open(folder, "m")
    await grow(ledger, range(4))
    (copy / "models").mkdir(parents=True)
    for name in (FILE_NAME, f"{FILE_NAME}-wal"):
        (copy / name).write_bytes((folder / name).read_bytes())
    for path in (folder / "models").iterdir():
        (copy / "models" / path.name).write_bytes(path.read_bytes())
    await ledger.close()
    log = bytearray((copy / f"{FILE_NAME}-wal").read_bytes())
    log[-12 * 4120] ^= 1
    (copy / f"{FILE_NAME}-wal").write_bytes(log)
    for _ in range(2):
        snapshot = await started(copy)
        assert snapshot.restored == "lost-frames"
        assert snapshot.newest_seen == snapshot.descriptors[-1].version
    assert snapshot.descriptors[-1].version <= 3
    assert (await started(folder)).restored == ""


async def test_a_save_that_was_durable_after_all_may_be_repeated(tmp_path: Path) -> None:
    ledger = await Ledger.open(tmp_path, "m")
    await grow(ledger, range(2))
    for _ in range(2):
        await ledger.save((AcceptPartial(partial_of(2)),))
    for _ in range(2):
        await ledger.save((commit_of(2, (2,)),))
    counts = await ledger.counts()
    assert (counts["settled_updates"], counts["versions"], counts["merged_partials"]) == (2, 3, 2)
    await ledger.close()


async def test_on_a_full_store_what_ends_things_goes_through_and_then_there_is_room(
    tmp_path: Path,
) -> None:
    ledger = await Ledger.open(tmp_path, "m", max_bytes=1 << 17, ballast_bytes=1 << 16)
    await ledger.save((commit_of(0),))
    numbers: list[int] = []

    async def fill() -> None:
        for number in range(1, 4000):
            await ledger.save((AcceptPartial(partial_of(number)),))
            numbers.append(number)
            if number % 20 == 0:
                version = number // 20
                await ledger.save((commit_of(version, tuple(numbers[-20:]), same=True),))

    with pytest.raises(StoreError, match="full"):
        await fill()
    was_full = ledger.full
    assert was_full
    version = len(numbers) // 20 - 1
    await ledger.save((DropPartials(version, version),))
    for number in range(5000, 5010):
        await ledger.save((AcceptPartial(partial_of(number)),))
    assert not ledger.full
    await ledger.close()
