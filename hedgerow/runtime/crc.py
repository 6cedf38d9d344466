"""The checksum that rows with bodies carry: SQLite does not see a bit that flips inside a row."""

import zlib


def checksum(body: bytes) -> int:
    """Return the CRC-32 of a body, 0 <= c < 2**32: any one flipped bit changes it."""
    return zlib.crc32(body)
