"""The format of a backup: a tar file, uncompressed or gzip, whose first member says what the others are.

A member is a plain file whose name and SHA-256 stand in the manifest. Nothing else may be in it.
"""

import hashlib
import io
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated

import msgspec
from msgspec import Meta, Struct

from hedgerow.custody.errors import CustodyError
from hedgerow.custody.folders import Role

MANIFEST = "manifest.json"
FORMAT = 1
BLOCK_BYTES = 1 << 20
_MAX_MANIFEST_BYTES = 16 << 20
_NAME = re.compile(r"(?:models/)?[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}\Z")
_BROKEN = (tarfile.TarError, zlib.error, EOFError)


class FileEntry(Struct, frozen=True, kw_only=True):
    """One file of a backup; `sha256` is of its whole content, in hexadecimal."""

    name: str
    bytes: Annotated[int, Meta(ge=0)]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}$")]


class BackupManifest(Struct, frozen=True, kw_only=True):
    """What a backup is of. What does not belong to its role is empty or 0.

    `made_at` is a label by the wall clock and decides nothing; `left_out` says what is damaged and not in it.
    """

    format: int = FORMAT
    role: Role
    hedgerow: str
    made_at: str
    files: Annotated[list[FileEntry], Meta(min_length=1, max_length=1 << 16)]
    model: str = ""
    version: int = 0
    term: int = 0
    node: str = ""
    epoch: int = 0
    left_out: tuple[str, ...] = ()


def entry_of(name: str, file: IO[bytes]) -> FileEntry:
    """Return the entry of an open file, which is read whole and then stands at its begin again."""
    hashed, size = hashlib.sha256(), 0
    while block := file.read(BLOCK_BYTES):
        hashed.update(block)
        size += len(block)
    file.seek(0)
    return FileEntry(name=name, bytes=size, sha256=hashed.hexdigest())


def write_archive(
    output: IO[bytes], manifest: BackupManifest, files: dict[str, IO[bytes]], *, compress: bool
) -> None:
    """Write a backup of open files by name. Raises OSError."""
    text = msgspec.json.format(msgspec.json.encode(manifest))
    with tarfile.open(fileobj=output, mode="w:gz" if compress else "w:") as archive:
        _add(archive, MANIFEST, len(text), io.BytesIO(text))
        for entry in manifest.files:
            _add(archive, entry.name, entry.bytes, files[entry.name])


def _add(archive: tarfile.TarFile, name: str, size: int, file: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o600
    archive.addfile(member, file)


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[BackupManifest, Iterator[tuple[str, IO[bytes]]]]]:
    """Yield a backup's manifest, then its files one after the other, each with its name.

    Raises CustodyError for what is no backup, is damaged, or names a file that a backup cannot have.
    """
    try:
        with tarfile.open(path, "r:*") as archive:
            manifest = _read_manifest(archive, path)
            yield manifest, _members(archive, path)
    except _BROKEN as error:
        raise CustodyError(f"{path} is damaged or no backup: {error}") from error
    except OSError as error:
        raise CustodyError(f"{path}: cannot be read: {error}") from error


def _read_manifest(archive: tarfile.TarFile, path: Path) -> BackupManifest:
    member = archive.next()
    file = archive.extractfile(member) if member is not None and member.isfile() else None
    if member is None or file is None or member.name != MANIFEST:
        raise CustodyError(f"{path} is no backup of `hedgerow backup`: it has no {MANIFEST}")
    if member.size > _MAX_MANIFEST_BYTES:
        raise CustodyError(f"{path}: a manifest of {member.size} bytes")
    try:
        manifest = msgspec.json.decode(file.read(), type=BackupManifest)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CustodyError(f"{path}: its manifest is damaged: {error}") from error
    if manifest.format != FORMAT:
        raise CustodyError(
            f"{path} has format {manifest.format}, this hedgerow reads {FORMAT}: take the release"
            f" that made it, {manifest.hedgerow}"
        )
    for entry in manifest.files:
        if not _NAME.match(entry.name):
            raise CustodyError(f"{path} names {entry.name!r}, which would lie outside its folder")
    return manifest


def _members(archive: tarfile.TarFile, path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    for member in archive:
        file = archive.extractfile(member) if member.isfile() else None
        if file is None:
            raise CustodyError(f"{path} holds {member.name!r}, which is no plain file")
        if member.name != MANIFEST:
            yield member.name, file
