"""The durable store: group commit, failures apart, bounds, damage, files written whole."""

import asyncio
import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest

from hedgerow.runtime.files import atomic_write
from hedgerow.runtime.ports import StoreError
from hedgerow.runtime.store import GROUP_RECORDS, Database
from hedgerow.runtime.store_file import Function

_SCHEMA = "CREATE TABLE IF NOT EXISTS t (x INTEGER PRIMARY KEY, body BLOB)"


def _open(path: Path, max_bytes: int = 1 << 24, upgrades: Sequence[str] = ()) -> Database:
    return Database(path, _SCHEMA, synchronous="FULL", max_bytes=max_bytes, upgrades=upgrades)


def _put(x: int, connection: sqlite3.Connection) -> int:
    connection.execute("INSERT INTO t VALUES (?, zeroblob(100))", (x,))
    return x


def _all(connection: sqlite3.Connection) -> list[int]:
    return [x for (x,) in connection.execute("SELECT x FROM t ORDER BY x")]


def _committed(path: Path) -> list[int]:
    """Return what another process would find."""
    connection = sqlite3.connect(path)
    try:
        return _all(connection)
    finally:
        connection.close()


async def test_a_result_means_it_is_committed_and_survives_reopening(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite3"
    database = _open(path)
    assert await database.transact(partial(_put, 7)) == 7
    assert _committed(path) == [7]
    await database.close()
    again = _open(path)
    assert await again.read(_all) == [7]
    assert again.quarantined is None
    await again.close()


async def test_a_burst_shares_commits(tmp_path: Path) -> None:
    database = _open(tmp_path / "a.sqlite3")
    commits: list[str] = []

    def trace(connection: sqlite3.Connection) -> None:
        connection.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)

    await database.read(trace)
    results = await asyncio.gather(*(database.transact(partial(_put, x)) for x in range(25)))
    assert results == list(range(25))
    assert len(commits) == -(-25 // GROUP_RECORDS)
    await database.close()


async def test_one_failing_function_does_not_poison_its_group(tmp_path: Path) -> None:
    database = _open(tmp_path / "a.sqlite3")

    def bad(connection: sqlite3.Connection) -> int:
        _put(100, connection)
        raise ValueError("mine")

    calls: list[Function[int]] = [partial(_put, 1), bad, partial(_put, 1), partial(_put, 2)]
    one, failed, repeated, two = await asyncio.gather(
        *(database.transact(call) for call in calls), return_exceptions=True
    )
    assert [one, two] == [1, 2]
    assert isinstance(failed, ValueError)
    assert isinstance(repeated, StoreError)
    assert "UNIQUE" in str(repeated)
    assert await database.read(_all) == [1, 2]
    await database.close()


async def test_a_full_store_refuses_and_still_lets_go(tmp_path: Path) -> None:
    database = _open(tmp_path / "a.sqlite3", max_bytes=1 << 16)

    def big(x: int, connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (?, zeroblob(9000))", (x,))

    async def fill() -> None:
        for x in range(100):
            await database.transact(partial(big, x))

    with pytest.raises(StoreError, match="full"):
        await fill()
    stored = len(await database.read(_all))
    assert stored > 1
    assert [database.full, await database.has_room()] == [True, False]
    assert await database.read(_all) == list(range(stored))
    delete = lambda connection: connection.execute("DELETE FROM t WHERE x < 2").rowcount  # noqa: E731
    assert await database.transact(delete, grows=False) == 2
    assert [database.full, await database.has_room(), database.full] == [True, True, False]
    await database.transact(partial(big, 500))
    assert await database.read(_all) == [*range(2, stored), 500]
    await database.close()


@pytest.mark.parametrize("damage", ["header", "middle", "truncated"])
async def test_a_damaged_file_is_set_aside_not_wiped(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.sqlite3"
    database = _open(path)
    await database.transact(
        lambda c: c.executemany(
            "INSERT INTO t VALUES (?, zeroblob(3000))", [(x,) for x in range(99)]
        )
    )
    await database.close()
    data = bytearray(path.read_bytes())
    match damage:
        case "header":
            data[:16] = b"x" * 16
        case "middle":
            data[4096:8192] = b"\xa5" * 4096
        case _:
            del data[len(data) // 2 :]
    path.write_bytes(data)
    for number in (1, 2):
        again = _open(path)
        assert again.quarantined == tmp_path / f"a.sqlite3.corrupt-{number}"
        assert again.quarantined.read_bytes() == bytes(data)
        assert await again.transact(partial(_put, 1)) == 1
        await again.close()
        path.write_bytes(data)


async def test_closing_commits_what_waits_and_then_refuses(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite3"
    database = _open(path)
    waiting = [asyncio.ensure_future(database.transact(partial(_put, x))) for x in range(30)]
    await asyncio.sleep(0)
    await database.close()
    assert await asyncio.gather(*waiting) == list(range(30))
    assert _committed(path) == list(range(30))
    with pytest.raises(StoreError, match="closed"):
        await database.transact(partial(_put, 99))
    await database.close()


async def test_a_cancelled_caller_does_not_disturb_the_others(tmp_path: Path) -> None:
    database = _open(tmp_path / "a.sqlite3")
    calls = [asyncio.ensure_future(database.transact(partial(_put, x))) for x in range(3)]
    await asyncio.sleep(0)
    calls[1].cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [results[0], results[2]] == [0, 2]
    await database.close()


def test_a_folder_that_does_not_exist_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cannot be opened"):
        _open(tmp_path / "no" / "a.sqlite3")


async def test_upgrades_run_once_on_old_and_new_files(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    database = _open(old)
    await database.transact(partial(_put, 7))
    await database.close()
    upgrades = ["ALTER TABLE t ADD COLUMN crc INTEGER", "UPDATE t SET crc = coalesce(crc, 0) + 1"]
    for path, expected in ((old, [(7, 1)]), (new, [])):
        for _ in range(2):
            database = _open(path, upgrades=upgrades)
            rows = await database.read(lambda db: db.execute("SELECT x, crc FROM t").fetchall())
            await database.close()
            assert rows == expected
    with pytest.raises(StoreError, match=r"newer release \(user_version 2, this one knows 1\)"):
        _open(old, upgrades=upgrades[:1])
    # A file that is only too new is no damaged one.
    await _open(old, upgrades=upgrades).close()


async def test_an_upgrade_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "a"
    database = _open(path)
    await database.transact(partial(_put, 7))
    await database.close()
    with pytest.raises(StoreError, match="no such column"):
        _open(path, upgrades=["DELETE FROM t; UPDATE t SET x = missing"])
    assert _committed(path) == [7]
    await _open(path).close()


async def test_a_file_of_the_release_before_may_lack_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a"
    database = _open(path)
    await database.transact(partial(_put, 7))
    await database.close()
    schema = f"{_SCHEMA}; CREATE TABLE IF NOT EXISTS u (y INTEGER)"
    database = Database(path, schema, synchronous="FULL", max_bytes=1 << 24)
    assert database.quarantined is None
    assert await database.read(_all) == [7]
    await database.close()
    # And back: the release before finds a table it does not know.
    database = _open(path)
    assert database.quarantined is None
    assert await database.read(_all) == [7]
    await database.close()


def test_atomic_write_replaces_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "model"
    atomic_write(path, b"old")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(OSError, match="folder"):
        atomic_write(folder, b"data")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "model"]
