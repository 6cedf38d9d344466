"""Files that are replaced whole or not at all, and damaged ones that are put aside and never wiped."""

import filecmp
import os
import shutil
from pathlib import Path


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write(path: Path, data: bytes) -> None:
    """Replace the file by `data`, durably: after a crash it is the old content or the new, whole.

    Raises OSError; then the old content stands.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
        number += 1
    return aside


def set_aside(path: Path) -> Path:
    """Rename a damaged file or folder to the first free `NAME.corrupt-N` and return that name."""
    aside = _free_name(path)
    path.rename(aside)
    return aside


def copy_aside(path: Path) -> Path:
    """Copy a damaged file to the first free `NAME.corrupt-N`, whole or not at all, and return that name.

    A start that fails is tried again and again: one copy is enough. Raises OSError.
    """
    for former in sorted(path.parent.glob(f"{path.name}.corrupt-*")):
        if filecmp.cmp(former, path, shallow=False):
            return former
    aside = _free_name(path)
    temporary = aside.with_name(f"{aside.name}.tmp")
    try:
        shutil.copyfile(path, temporary)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary.replace(aside)
