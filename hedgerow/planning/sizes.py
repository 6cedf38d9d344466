"""Amounts of memory, as people write and read them."""

import re

from hedgerow.core.errors import ConfigError

_FACTORS = {
    "": 1,
    "b": 1,
    "kb": 1000,
    "mb": 1000**2,
    "gb": 1000**3,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[a-z]*)\Z", re.IGNORECASE)
_LARGEST = 1 << 50


def parse_size(key: str, text: str) -> int:
    """Return the bytes that `text` names, such as "256KiB", "1.5 MB" or "262144".

    Raises ConfigError naming `key` and the fix.
    """
    found = _SIZE.match(text.strip())
    factor = _FACTORS.get(found["unit"].lower()) if found else None
    size = int(float(found["number"]) * factor) if found and factor else 0
    if not 0 < size <= _LARGEST:
        raise ConfigError(
            f"{key}: {text!r} is no amount of memory; write it like 256KiB, 1MiB, 300kB or 262144"
        )
    return size


def in_kib(size_bytes: int) -> str:
    """Return bytes for people, in powers of 1024."""
    if size_bytes < 1 << 10:
        return f"{size_bytes} B"
    if size_bytes < 10 << 20:
        return f"{size_bytes / (1 << 10):.1f} KiB"
    return f"{size_bytes / (1 << 20):.1f} MiB"
