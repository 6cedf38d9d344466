"""`hedgerow restore`: put a backup back as a tier's folder, so that nothing it forgot is done again.

What came after the backup is unknown to it. So an aggregator must not give out its next version number a
second time, and a node not its next update's: both find a mark at their next start. The aggregator goes on
in a new life of version numbers (`hedgerow.core.versions`), the node under a new epoch.
"""

import hashlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from hedgerow.core.errors import ConfigError
from hedgerow.custody.archive import (
    BLOCK_BYTES,
    BackupManifest,
    FileEntry,
    open_archive,
)
from hedgerow.custody.errors import CustodyError
from hedgerow.custody.folders import (
    LEDGER,
    MODELS,
    OUTBOX,
    Progress,
    check_sound,
    find_tier,
    refuse_in_use,
    sync_folder,
)

_META = "CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
_MARK = "INSERT OR REPLACE INTO meta VALUES ('restored', '1')"
_MARKED = {LEDGER, OUTBOX}


@dataclass(frozen=True)
class Restored:
    """What was put back, and where the folder that was there before is now."""

    manifest: BackupManifest
    folder: Path
    set_aside: Path | None


def restore(file: Path, folder: Path, progress: Progress, *, force: bool) -> Restored:
    """Put the backup `file` back as `folder`, which appears whole or not at all.

    A folder with anything in it is refused, or with `force` kept under another name. Raises ConfigError
    for such a folder, CustodyError for a damaged backup or a folder in use, OSError where the disk refuses.
    """
    folder = folder.resolve()
    _check_target(folder, force=force)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.restoring-", dir=folder.parent))
    try:
        with open_archive(file) as (manifest, members):
            _check_room(manifest, folder.parent)
            _unpack(manifest, members, scratch, progress)
        _finish(manifest, scratch)
        aside = _take_place(scratch, folder)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    return Restored(manifest, folder, aside)


def _check_target(folder: Path, *, force: bool) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"DIR: {folder} is not a folder")
    if any(folder.iterdir()) and not force:
        raise ConfigError(
            f"DIR: {folder} is not empty; name a new folder, or add --force to keep this one as"
            f" {_free_name(folder).name}"
        )
    tier = find_tier(folder)
    if tier is not None:
        refuse_in_use(tier, "stop that process first")


def _check_room(manifest: BackupManifest, where: Path) -> None:
    needed = sum(entry.bytes for entry in manifest.files)
    free = shutil.disk_usage(where).free
    if needed > free:
        raise CustodyError(f"{where} has {free:,} bytes free, the backup needs {needed:,}")


def _unpack(
    manifest: BackupManifest,
    members: Iterator[tuple[str, IO[bytes]]],
    scratch: Path,
    progress: Progress,
) -> None:
    entries = {entry.name: entry for entry in manifest.files}
    for name, content in members:
        entry = entries.pop(name, None)
        if entry is None:
            raise CustodyError(f"the backup holds {name!r}, which its manifest does not name once")
        _write(scratch / name, content, entry, progress)
    if entries:
        raise CustodyError(f"the backup is cut short: {min(entries)} is missing")


def _write(target: Path, content: IO[bytes], entry: FileEntry, progress: Progress) -> None:
    """Write one file durably; raises CustodyError where it is not what the manifest says."""
    target.parent.mkdir(exist_ok=True)
    hashed, size = hashlib.sha256(), 0
    with target.open("xb") as file:
        while size <= entry.bytes and (block := content.read(BLOCK_BYTES)):
            file.write(block)
            hashed.update(block)
            size += len(block)
            progress(entry.name, size, entry.bytes)
        file.flush()
        os.fsync(file.fileno())
    if size != entry.bytes or hashed.hexdigest() != entry.sha256:
        raise CustodyError(f"the backup is damaged: {entry.name} is not what its manifest says")


def _finish(manifest: BackupManifest, scratch: Path) -> None:
    """Check the databases, mark those whose numbers must not be given out again, and make all durable."""
    tier = find_tier(scratch)
    if tier is None or tier.role != manifest.role:
        raise CustodyError(f"the backup holds no database of a {manifest.role}")
    if manifest.role == "aggregator":
        (scratch / MODELS).mkdir(exist_ok=True)
    for database in tier.databases:
        try:
            with closing(sqlite3.connect(database, isolation_level=None)) as connection:
                check_sound(connection, database.name)
                if database.name in _MARKED:
                    connection.execute(_META)
                    connection.execute(_MARK)
        except sqlite3.Error as error:
            raise CustodyError(f"{database.name} cannot be marked: {error}") from error
    if (scratch / MODELS).exists():
        sync_folder(scratch / MODELS)
    sync_folder(scratch)


def _take_place(scratch: Path, folder: Path) -> Path | None:
    """Move what is there, if anything, to its new name, and the restored folder into its place."""
    if not folder.exists() or not any(folder.iterdir()):
        # An empty folder is replaced as it is.
        scratch.replace(folder)
        return None
    aside = _free_name(folder)
    folder.rename(aside)
    try:
        scratch.replace(folder)
    except OSError:
        aside.rename(folder)
        raise
    return aside


def _free_name(folder: Path) -> Path:
    number = 1
    while (aside := folder.with_name(f"{folder.name}.before-{number}")).exists():
        number += 1
    return aside
