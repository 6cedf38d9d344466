"""What is looked at before a ledger is believed: checksums, gaps, and whether it was put back.

Nothing that is damaged is merged or thrown away: it goes to the table `damaged`, and what hangs on it is
unknown again, so that nodes and gateways, who hold it until it is settled, bring it again.
"""

import itertools
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from aggregator.ledger_rows import (
    DROPPED_POSITION,
    NEWEST_FILE,
    NEWEST_SEEN,
    RESTORED,
    DamagedError,
    checked,
    meta,
    set_aside,
)
from aggregator.rows import SetAside
from hedgerow.core.messages import Descriptor
from hedgerow.runtime.ports import StoreError


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found at the start: `damage`, `restored` and `newest_seen` are those of `Snapshot`.

    `newest_file` is the parameters' file of the newest version here, even if its descriptor is damaged.
    """

    damage: Mapping[str, int] = field(default_factory=dict)
    restored: str = ""
    newest_seen: int = 0
    newest_file: str = ""


@dataclass(frozen=True, slots=True)
class _Version:
    """A row of `versions`; `descriptor` is None where it is damaged."""

    version: int
    file: str
    descriptor: Descriptor | None


def check(connection: sqlite3.Connection, lost_frames: int) -> Findings:
    """Set aside what is damaged, in the transaction under way, and return what was found.

    `lost_frames` counts pages of the write-ahead log that were committed and are lost. Raises StoreError
    where versions were made, but the descriptor of none is whole.
    """
    found = _read_versions(connection)
    good = [one.descriptor for one in found if one.descriptor is not None]
    if found and not good:
        raise StoreError("the descriptors of all versions are damaged; put a backup in their place")
    damage = {
        "lost-frames": lost_frames,
        "partial": _set_partials_aside(connection),
        "partial-missing": _missing_positions(connection),
        "version": _set_versions_aside(connection, found),
        "version-missing": _breaks(found),
    }
    if found:
        _remember(connection, found[-1], lost_frames)
    told = meta(connection, RESTORED)
    return Findings(
        damage={kind: count for kind, count in damage.items() if count},
        restored="restore" if told == "1" else told,
        newest_seen=int(meta(connection, NEWEST_SEEN) or 0),
        newest_file=meta(connection, NEWEST_FILE),
    )


def _remember(connection: sqlite3.Connection, newest: _Version, lost_frames: int) -> None:
    """Note why a new life of version numbers must begin, until it has: this start may be cut short."""
    behind = newest.descriptor is None
    if not behind and not lost_frames:
        return
    told = {
        RESTORED: "damaged-version" if behind else "lost-frames",
        NEWEST_SEEN: str(newest.version),
        NEWEST_FILE: newest.file,
    }
    connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", told.items())


def _read_versions(connection: sqlite3.Connection) -> list[_Version]:
    query = "SELECT version, file, descriptor, crc FROM versions ORDER BY version"
    out = []
    for version, file, body, crc in connection.execute(query):
        try:
            out.append(_Version(version, file, checked(body, crc)))
        except DamagedError:
            out.append(_Version(version, file, None))
    return out


def _set_versions_aside(connection: sqlite3.Connection, found: list[_Version]) -> int:
    """Move damaged descriptors; their parameters' files stay as long as those of any version."""
    bad = [(one.version,) for one in found if one.descriptor is None]
    connection.executemany(
        "INSERT INTO damaged SELECT 'version', version, NULL, descriptor, 'checksum' FROM versions"
        " WHERE version = ?",
        bad,
    )
    connection.executemany("DELETE FROM versions WHERE version = ?", bad)
    return len(bad)


def _breaks(found: list[_Version]) -> int:
    """Return how many versions do not follow from the row before them, the oldest kept one aside."""
    pairs = itertools.pairwise(found)
    return sum(b.descriptor is not None and b.descriptor.parent != a.version for a, b in pairs)


def _set_partials_aside(connection: sqlite3.Connection) -> int:
    """Move waiting partials that are not what was accepted."""
    query = "SELECT id, body, crc FROM partials WHERE merged_version IS NULL"
    bad = []
    for name, body, crc in connection.execute(query):
        try:
            checked(body, crc)
        except DamagedError:
            bad.append(name)
    for name in bad:
        set_aside(connection, SetAside(name, "checksum"))
    return len(bad)


def _missing_positions(connection: sqlite3.Connection) -> int:
    """Return how many partials are gone that nobody dropped: positions are given out without gaps."""
    after = int(meta(connection, DROPPED_POSITION) or 0)
    last = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'partials'").fetchone()
    given = max(0, (last[0] if last else 0) - after)
    query = (
        "SELECT (SELECT COUNT(*) FROM partials WHERE position > ?)"
        " + (SELECT COUNT(*) FROM damaged WHERE kind = 'partial' AND position > ?)"
    )
    (there,) = connection.execute(query, (after, after)).fetchone()
    return max(0, given - int(there))
