"""Damage in the middle of a write-ahead log, found before SQLite opens it.

SQLite reads the log up to the first frame that is not sound and forgets the rest without a word. After
a crash that is right: the rest is a torn end. After a flipped bit it loses commits that were synced.

The format is that of https://www.sqlite.org/walformat.html: a header of 32 bytes, then frames of 24 bytes
and a page. A frame belongs to the log if it carries the header's salts, and is sound if its checksum,
which runs on from frame to frame, is right.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_MAGIC = 0x377F0682
"""With its lowest bit set, checksums read words as big-endian, otherwise as little-endian."""

_DEFAULT_PAGE_BYTES = 4096
_BLOCK_FRAMES = 1024
_INDEX_HEADER_BYTES = 48
_MASK = 0xFFFFFFFF

Words = npt.NDArray[np.uint32]
Flags = npt.NDArray[np.bool_]
Sums = tuple[int, int]
Step = tuple[int, int, int]
"""A symmetric matrix modulo 2**32: top left, beside it, bottom right."""


@dataclass(frozen=True, slots=True)
class _Header:
    sound: bool
    byte_order: str
    page_bytes: int
    salts: Sums
    sums: Sums


@dataclass(slots=True)
class _Scan:
    """What is known of the log after some of its frames."""

    sums: Sums
    count: int = 0
    broken: bool = False
    committed: int = 0
    """Frames up to the last sound one that ends a transaction."""
    lost: int = 0
    """Frames of the log from the first unsound one on."""
    ended: bool = False
    """Whether a transaction ended at or after the first unsound frame."""
    certain: bool = False
    """Whether another frame follows that end: then it had been synced, so this is no torn end."""


def lost_frames(path: Path) -> int:
    """Return how many frames of committed transactions opening the database at `path` would lose.

    Counted are the frames of the log from the first damaged one on; 0 for a sound log, for none, and for
    one whose end is torn. Damage in the last transaction looks like a torn end, unless the `-shm` file is
    there still and says how far the log had been committed: so it is after a crash of the process, not
    always after a power cut. With synchronous NORMAL a power cut may lose synced order, and counts.
    Raises OSError where the files cannot be read.
    """
    wal = path.with_name(f"{path.name}-wal")
    if not wal.exists():
        return 0
    with wal.open("rb") as file:
        header = _read_header(file)
        if header is None:
            return 0
        scan = _scan(file, header)
    known = _committed_in_index(path.with_name(f"{path.name}-shm"), header.salts)
    return max(scan.lost if scan.certain else 0, known - scan.committed)


def _read_header(file: BinaryIO) -> _Header | None:
    """Return the log's header; None for an empty log."""
    data = file.read(_HEADER_BYTES)
    if len(data) < _HEADER_BYTES or not any(data):
        return None
    magic, _, page_bytes, _, *salts, first, second = struct.unpack(">8I", data)
    byte_order = ">" if magic & 1 else "<"
    sums = _checksum(np.frombuffer(data[:24], f"{byte_order}u4").astype(np.uint32))
    is_sound = magic & ~1 == _MAGIC and sums == (first, second)
    if not is_sound:
        # SQLite takes nothing from such a log. Its first frame tells what the others belong to.
        page_bytes, salts = _DEFAULT_PAGE_BYTES, _first_salts(file)
    return _Header(is_sound, byte_order, page_bytes, (salts[0], salts[1]), sums)


def _first_salts(file: BinaryIO) -> list[int]:
    data = file.read(_FRAME_HEADER_BYTES).ljust(_FRAME_HEADER_BYTES, b"\0")
    file.seek(_HEADER_BYTES)
    return list(struct.unpack(">2I", data[8:16]))


def _scan(file: BinaryIO, header: _Header) -> _Scan:
    scan = _Scan(header.sums, broken=not header.sound)
    for frames in _blocks(file, header.page_bytes):
        heads = np.ascontiguousarray(frames[:, :_FRAME_HEADER_BYTES]).view(">u4")
        salted = (heads[:, 2] == header.salts[0]) & (heads[:, 3] == header.salts[1])
        ends = heads[:, 1] != 0
        bad = 0 if scan.broken else _advance(scan, header, frames, heads, salted, ends)
        _after_damage(scan, salted[bad:], ends[bad:])
    return scan


def _blocks(file: BinaryIO, page_bytes: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Yield the log's whole frames, shape (frames, frame bytes), a few megabytes at a time."""
    frame_bytes = _FRAME_HEADER_BYTES + page_bytes
    while True:
        data = file.read(frame_bytes * _BLOCK_FRAMES)
        count = len(data) // frame_bytes
        if count == 0:
            return
        yield np.frombuffer(data, np.uint8, count * frame_bytes).reshape(count, frame_bytes)


def _advance(
    scan: _Scan,
    header: _Header,
    frames: npt.NDArray[np.uint8],
    heads: npt.NDArray[np.uint32],
    salted: Flags,
    ends: Flags,
) -> int:
    """Follow the running checksum; return the first unsound frame of the block, or its length."""
    covered = np.concatenate([frames[:, :8], frames[:, _FRAME_HEADER_BYTES:]], axis=1)
    words = covered.view(f"{header.byte_order}u4").astype(np.uint32)
    weights, step = _weights(words.shape[1])
    stored = heads[:, 4:6].tolist()
    for index, added in enumerate((words @ weights).tolist()):
        sums = _run_on(scan.sums, step, added)
        if not salted[index] or list(sums) != stored[index]:
            scan.broken = True
            return index
        scan.sums = sums
        scan.count += 1
        if ends[index]:
            scan.committed = scan.count
    return len(frames)


def _after_damage(scan: _Scan, salted: Flags, ends: Flags) -> None:
    for is_salted, is_end in zip(salted.tolist(), ends.tolist(), strict=True):
        scan.certain |= scan.ended and is_salted
        # The salts of the damaged frame itself may be what is damaged.
        scan.ended |= is_end and (is_salted or scan.lost == 0)
        scan.lost += is_salted


def _committed_in_index(shm: Path, salts: Sums) -> int:
    """Return how many frames the log's index calls committed; 0 where it is of no use."""
    if not shm.exists():
        return 0
    with shm.open("rb") as file:
        first, second = file.read(_INDEX_HEADER_BYTES), file.read(_INDEX_HEADER_BYTES)
    if len(second) < _INDEX_HEADER_BYTES or first != second:
        return 0
    words = np.frombuffer(first[:40], np.uint32)
    if _checksum(words) != struct.unpack("=2I", first[40:]) or salts != struct.unpack(
        ">2I", first[32:40]
    ):
        return 0
    return int(words[4])


def _checksum(words: Words) -> Sums:
    """Return SQLite's checksum of an even number of words."""
    weights, step = _weights(len(words))
    return _run_on((0, 0), step, (words @ weights).tolist())


def _run_on(sums: Sums, step: Step, added: list[int]) -> Sums:
    """Return the checksum after a frame that adds `added` to what it makes of `sums`."""
    a, b, d = step
    first = a * sums[0] + b * sums[1] + added[0]
    second = b * sums[0] + d * sums[1] + added[1]
    return first & _MASK, second & _MASK


@lru_cache(maxsize=8)
def _weights(count: int) -> tuple[Words, Step]:
    """Return what each of `count` words adds to the checksum, shape (count, 2), and what all make of it.

    SQLite goes through pairs (x, y): first += x + second; second += y + first. That is linear modulo
    2**32, with the matrix (1 1; 1 2) per pair; so a frame's words can be summed at once.
    """
    weights = np.zeros((count, 2), np.uint32)
    a, b, d = 1, 0, 1
    for index in range(count - 2, -1, -2):
        weights[index] = (a + b) & _MASK, (b + d) & _MASK
        weights[index + 1] = b, d
        a, b, d = (a + b) & _MASK, (a + 2 * b) & _MASK, (b + 2 * d) & _MASK
    return weights, (a, b, d)
