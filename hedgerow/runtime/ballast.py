"""Room on the disk that is held back, so that what is stored can still be let go when the disk is full.

Even a DELETE needs room: its pages go to the write-ahead log first.
"""

import errno
import os
from pathlib import Path

MARGIN_BYTES = 256 << 10
"""How much must be free beyond the ballast before it is laid again: room for a few transactions."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


def means_no_room(error: OSError) -> bool:
    """Whether a file could not be written because the disk, or its owner's share of it, is full."""
    return error.errno in _NO_ROOM


class Ballast:
    """A file of `size_bytes` in real blocks. With 0 it only tells whether there is room."""

    def __init__(self, path: Path, size_bytes: int) -> None:
        self._path = path
        self._size_bytes = size_bytes

    def lay(self) -> bool:
        """Reserve the blocks; False where the disk has no room for them and a margin.

        Raises OSError where the file cannot be made for another reason.
        """
        handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return self._is_laid(handle) or self._reserve(handle)
        finally:
            os.close(handle)
            if not self._size_bytes:
                self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """Give the blocks back to the disk. Raises OSError."""
        if self._path.exists():
            os.truncate(self._path, 0)

    def _is_laid(self, handle: int) -> bool:
        found = os.fstat(handle)
        blocks_bytes = found.st_blocks * 512
        return found.st_size == self._size_bytes > 0 and blocks_bytes >= self._size_bytes

    def _reserve(self, handle: int) -> bool:
        try:
            os.posix_fallocate(handle, 0, self._size_bytes + MARGIN_BYTES)
        except OSError as error:
            os.ftruncate(handle, 0)
            if not means_no_room(error):
                raise
            return False
        os.ftruncate(handle, self._size_bytes)
        return True
