"""What a backup or a restore did, in words and as JSON."""

from pathlib import Path

import msgspec

from hedgerow.custody.archive import BackupManifest
from hedgerow.custody.restore import Restored

_WHAT_FOLLOWS = {
    "aggregator": "At its next start it goes on in a new life of version numbers. Updates settled after the\n"
    "backup are no longer in the model, and those that nodes still hold are merged once.",
    "gateway": "It offers what it holds again; what the aggregator has is recognised.",
    "node": "At its next start it takes a new epoch. Updates that it still holds are offered again; what\n"
    "the aggregator has is recognised.",
}


def manifest_json(manifest: BackupManifest) -> str:
    """Return a manifest as JSON text."""
    return msgspec.json.format(msgspec.json.encode(manifest)).decode()


def backup_words(manifest: BackupManifest, file: Path) -> str:
    """Say what is in a new backup."""
    lines = [f"{file}: {_what(manifest)}, {file.stat().st_size:,} bytes"]
    lines += [f"left out, damaged: {name}" for name in manifest.left_out]
    return "\n".join(lines)


def restore_words(done: Restored) -> str:
    """Say what was put back, and what follows from it."""
    lines = [f"{done.folder}: {_what(done.manifest)}, of {done.manifest.made_at}"]
    if done.set_aside is not None:
        lines.append(f"what was there is kept as {done.set_aside}")
    return "\n".join([*lines, _WHAT_FOLLOWS[done.manifest.role]])


def restore_json(done: Restored) -> str:
    """Return what was done as JSON text."""
    aside = None if done.set_aside is None else str(done.set_aside)
    told = {"folder": str(done.folder), "set_aside": aside, "manifest": done.manifest}
    return msgspec.json.format(msgspec.json.encode(told)).decode()


def _what(manifest: BackupManifest) -> str:
    files = f"{len(manifest.files)} files"
    match manifest.role:
        case "aggregator":
            return f"the aggregator of {manifest.model!r} at version {manifest.version}, {files}"
        case "node":
            return f"node {manifest.node}, epoch {manifest.epoch}, {files}"
        case "gateway":
            return f"a gateway, {files}"
