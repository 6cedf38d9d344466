"""Amounts of memory as people write them."""

import pytest

from hedgerow.core.errors import ConfigError
from hedgerow.planning.sizes import in_kib, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("262144", 262144),
        ("256KiB", 262144),
        ("256 kib", 262144),
        ("300kB", 300_000),
        ("1MiB", 1 << 20),
        ("1.5MB", 1_500_000),
        ("1GiB", 1 << 30),
        ("7B", 7),
        ("7", 7),
    ],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_size("--budget", text) == size


@pytest.mark.parametrize(
    "text", ["", "KiB", "-1", "0", "0.2B", "1KK", "1 2", "1e6", "nan", "99999999GiB", "256 K iB"]
)
def test_what_is_no_size_is_refused_with_the_fix(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--class pi: .* write it like 256KiB, 1MiB"):
        parse_size("--class pi", text)


def test_sizes_are_written() -> None:
    assert [in_kib(size) for size in (7, 2048, 262_400, 64 << 20)] == [
        "7 B",
        "2.0 KiB",
        "256.2 KiB",
        "64.0 MiB",
    ]
