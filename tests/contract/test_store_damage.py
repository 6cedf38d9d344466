"""Bits that flip in a store's files while nobody looks: nothing is lost without a word."""

import asyncio
import random
import shutil
import sqlite3
import struct
import time
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hedgerow.runtime.crc import checksum
from hedgerow.runtime.ports import StoreError
from hedgerow.runtime.store import Database
from hedgerow.runtime.walcheck import lost_frames

_SCHEMA = "CREATE TABLE IF NOT EXISTS t (x INTEGER PRIMARY KEY, crc INTEGER, body BLOB)"
_ROWS = 60
_HEADER_BYTES, _FRAME_BYTES = 32, 24 + 4096
_PARTS = ("", "-wal", "-shm")


def _open(path: Path) -> Database:
    return Database(path, _SCHEMA, synchronous="FULL", max_bytes=1 << 24, ballast_bytes=1 << 19)


def _sum(x: int, body: bytes) -> int:
    return checksum(b"%d:%s" % (x, body))


def _put(row: tuple[int, int, bytes], db: sqlite3.Connection) -> int:
    return db.execute("INSERT INTO t VALUES (?, ?, ?)", row).rowcount


async def _fill(path: Path, stopped: Path) -> None:
    """Write rows of 0-20 KB, and take the files as a crash of the process would leave them."""
    rng = random.Random(5)
    database = _open(path)
    for x in range(_ROWS):
        body = rng.randbytes(rng.choice([0, 30, 900, 20_000]))
        await database.transact(partial(_put, (x, _sum(x, body), body)))
    _copy(path, stopped)
    await database.close()
    _copy(path, stopped.with_name("closed"), ("",))


def _copy(source: Path, target: Path, parts: tuple[str, ...] = _PARTS) -> None:
    for part in parts:
        if Path(f"{source}{part}").exists():
            shutil.copyfile(f"{source}{part}", f"{target}{part}")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    asyncio.run(_fill(folder / "live", folder / "stopped"))
    return folder / "stopped"


def _flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def _frames(path: Path) -> int:
    return (path.stat().st_size - _HEADER_BYTES) // _FRAME_BYTES


async def _verdict(path: Path) -> str:
    """Open the store and say what became of its rows; "lost" is what must never be."""
    try:
        database = _open(path)
    except StoreError:
        return "refused"
    try:
        if database.quarantined is not None or database.lost_frames:
            return "told"
        rows = await database.read(lambda db: db.execute("SELECT * FROM t ORDER BY x").fetchall())
    except StoreError:
        return "refused"
    finally:
        await database.close()
    if [x for x, _, _ in rows] == list(range(_ROWS)) and all(_sum(x, b) == c for x, c, b in rows):
        return "whole"
    found = len(rows) == _ROWS and any(
        not isinstance(b, bytes) or _sum(x, b) != c for x, c, b in rows
    )
    return "seen by checksum" if found else "lost"


def test_a_store_that_was_stopped_is_whole(stopped: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    _copy(stopped, path)
    assert _frames(Path(f"{path}-wal")) > 20
    assert lost_frames(path) == 0
    assert asyncio.run(_verdict(path)) == "whole"


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from(["log", "file", "closed file"]),
    places=st.lists(st.floats(0, 0.999999), min_size=1, max_size=3),
)
def test_flipped_bits_never_lose_a_row_without_a_word(
    stopped: Path, tmp_path_factory: pytest.TempPathFactory, kind: str, places: list[float]
) -> None:
    path = tmp_path_factory.mktemp("flip") / "a"
    _copy(stopped.with_name("closed") if kind == "closed file" else stopped, path)
    flipped = Path(f"{path}-wal") if kind == "log" else path
    size_bits = 8 * flipped.stat().st_size
    for place in places:
        _flip(flipped, int(place * size_bits))
    assert asyncio.run(_verdict(path)) != "lost"
    shutil.rmtree(path.parent)


@pytest.mark.parametrize("name_at", [b"tt", b"x INTEGER PRIMARY KEY"])
def test_a_flipped_bit_in_a_tables_name_or_columns_sets_the_file_aside(
    stopped: Path, tmp_path: Path, name_at: bytes
) -> None:
    path = tmp_path / "a"
    _copy(stopped.with_name("closed"), path)
    _flip(path, 8 * path.read_bytes().index(name_at))
    assert asyncio.run(_verdict(path)) == "told"


def _in_log(frame: int) -> int:
    """Return a bit in the middle of a frame's page."""
    return 8 * (_HEADER_BYTES + frame * _FRAME_BYTES + 2000)


def _current_frames(log: Path) -> int:
    """Return how many frames carry the log's salts: those after them are of an earlier round."""
    data = log.read_bytes()
    salts, count = data[16:24], 0
    while data[_HEADER_BYTES + count * _FRAME_BYTES + 8 :][:8] == salts:
        count += 1
    return count


@pytest.mark.parametrize("parts", [_PARTS, _PARTS[:2]], ids=["crash", "power cut"])
def test_damage_before_later_commits_is_counted_and_the_log_kept(
    stopped: Path, tmp_path: Path, parts: tuple[str, ...]
) -> None:
    path = tmp_path / "a"
    _copy(stopped, path, parts)
    log = Path(f"{path}-wal")
    frames = _current_frames(log)
    assert frames > 20
    _flip(log, _in_log(3))
    damaged = log.read_bytes()
    database = _open(path)
    assert frames - 3 <= database.lost_frames <= frames
    assert path.with_name("a-wal.corrupt-1").read_bytes() == damaged
    asyncio.run(database.close())
    # The next start finds a sound log, and no second copy.
    database = _open(path)
    assert database.lost_frames == 0
    asyncio.run(database.close())
    assert len(list(path.parent.glob("*-wal.corrupt-*"))) == 1


def test_a_damaged_header_of_the_log_loses_all_of_it_and_says_so(
    stopped: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    _copy(stopped, path, _PARTS[:2])
    _flip(Path(f"{path}-wal"), 8 * 17)
    assert lost_frames(path) == _current_frames(stopped.with_name("stopped-wal"))


def test_a_torn_end_is_no_damage(stopped: Path, tmp_path: Path) -> None:
    """A power cut leaves parts of the last commit, in any order; nobody was told that it is durable."""
    path = tmp_path / "a"
    _copy(stopped, path, _PARTS[:2])
    log = Path(f"{path}-wal")
    last = _current_frames(log) - 1
    _flip(log, _in_log(last))
    assert lost_frames(path) == 0
    # After a crash of the process alone the index tells that it was durable.
    shutil.copyfile(f"{stopped}-shm", f"{path}-shm")
    assert lost_frames(path) > 0


def test_a_log_without_its_file_is_kept(stopped: Path, tmp_path: Path) -> None:
    path = tmp_path / "a"
    _copy(stopped, path)
    path.write_bytes(b"")
    assert asyncio.run(_verdict(path)) == "told"
    assert path.with_name("a.corrupt-1-wal").read_bytes() == Path(f"{stopped}-wal").read_bytes()


def _seal(log: bytes, byte_order: str) -> bytes:
    """Return the log with its checksums made anew, word by word as SQLite describes it."""
    sums = [0, 0]

    def run_on(data: bytes) -> bytes:
        words = struct.unpack(f"{byte_order}{len(data) // 4}I", data)
        for even, odd in zip(words[::2], words[1::2], strict=True):
            sums[0] = (sums[0] + even + sums[1]) & 0xFFFFFFFF
            sums[1] = (sums[1] + odd + sums[0]) & 0xFFFFFFFF
        return struct.pack(">2I", *sums)

    head = struct.pack(">I", 0x377F0682 | (byte_order == ">")) + log[4:24]
    parts = [head, run_on(head)]
    for start in range(_HEADER_BYTES, len(log), _FRAME_BYTES):
        frame = log[start : start + _FRAME_BYTES]
        parts += [frame[:16], run_on(frame[:8] + frame[24:]), frame[24:]]
    return b"".join(parts)


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_the_checksum_is_sqlites_in_both_byte_orders(tmp_path: Path, byte_order: str) -> None:
    live, path = tmp_path / "live", tmp_path / "a"
    connection = sqlite3.connect(live, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE t (x BLOB)")
    connection.executemany("INSERT INTO t VALUES (randomblob(?))", [(30_000,)] * 3)
    _copy(live, path, _PARTS[:2])
    connection.close()
    log = Path(f"{path}-wal")
    log.write_bytes(_seal(log.read_bytes(), byte_order))
    assert lost_frames(path) == 0
    shutil.copyfile(log, tmp_path / "b-wal")
    _flip(tmp_path / "b-wal", _in_log(5))
    assert lost_frames(tmp_path / "b") == _current_frames(log) - 5
    reader = sqlite3.connect(path)
    assert reader.execute("SELECT count(*) FROM t").fetchone() == (3,)
    reader.close()


def test_a_log_of_many_blocks_is_checked_quickly(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "a", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("CREATE TABLE t (x BLOB)")
    connection.executemany("INSERT INTO t VALUES (randomblob(?))", [(1_000_000,)] * 10)
    _copy(tmp_path / "a", tmp_path / "b", _PARTS[:2])
    connection.close()
    frames = _current_frames(tmp_path / "b-wal")
    assert frames > 2000
    begin = time.perf_counter()
    assert lost_frames(tmp_path / "b") == 0
    assert time.perf_counter() - begin < 2
    _flip(tmp_path / "b-wal", _in_log(1500))
    assert lost_frames(tmp_path / "b") == frames - 1500
