"""The command lines of `hedgerow backup`, `restore` and `audit`."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

# Whoever asks another command for --help must not wait: the work is imported when it is done.

_OK, _FAILED = 0, 1
_EXIT_CODES = (
    "exit codes: 0 ok, 1 damaged, or the disk refused, 2 bad usage, 130 interrupted; after 1 and 2\n"
    "            nothing has changed"
)
_AUDIT_CODES = (
    "exit codes: 0 every promise is kept, 1 one is broken or a file cannot be read, 2 bad usage"
)


class AddCommand(Protocol):
    """Adds a command to the command line and returns its parser."""

    def __call__(
        self, name: str, summary: str, example: str, exit_codes: str
    ) -> argparse.ArgumentParser:
        """Add a command, with a sentence and an example for its help."""


def add_custody_commands(add: AddCommand) -> None:
    """Add `backup`, `restore` and `audit`."""
    _add_backup(add)
    _add_restore(add)
    _add_audit(add)


def _add_backup(add: AddCommand) -> None:
    backup = add(
        "backup",
        "copy what one node, gateway or aggregator has on disk, while it runs or not",
        "hedgerow backup /var/lib/hedgerow /mnt/usb/aggregator.tar.gz\n"
        "         hedgerow backup runs/demo/node-01 node-01.tar --json",
        _EXIT_CODES,
    )
    backup.add_argument("folder", type=Path, metavar="DIR", help="the process's own folder (--dir)")
    backup.add_argument("file", type=Path, metavar="FILE", help="ends in .tar, .tar.gz or .tgz")
    backup.add_argument("--json", action="store_true", help="print the manifest as JSON")
    backup.set_defaults(run=_guarded(_backup))


def _add_restore(add: AddCommand) -> None:
    restore = add(
        "restore",
        "put a backup back, checked, so that no number it forgot is given out again",
        "hedgerow restore /mnt/usb/aggregator.tar.gz /var/lib/hedgerow\n"
        "         hedgerow restore node-01.tar runs/demo/node-01 --force",
        _EXIT_CODES,
    )
    restore.add_argument("file", type=Path, metavar="FILE", help="made by `hedgerow backup`")
    restore.add_argument("folder", type=Path, metavar="DIR", help="a new or empty folder")
    restore.add_argument(
        "--force", action="store_true", help="keep what is in DIR as DIR.before-N and go on"
    )
    restore.add_argument("--json", action="store_true", help="print what was done as JSON")
    restore.set_defaults(run=_guarded(_restore))


def _add_audit(add: AddCommand) -> None:
    audit = add(
        "audit",
        "check from the disks of a stopped fleet that nothing was lost, doubled or invented",
        "hedgerow audit runs/demo\n"
        "         hedgerow audit copies/aggregator copies/node-01 --without node-02",
        _AUDIT_CODES,
    )
    audit.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="FOLDER",
        help="a run's folder, or the aggregator's and the nodes' own",
    )
    audit.add_argument(
        "--without",
        action="append",
        default=[],
        metavar="NODE",
        help="a node whose books are lost or elsewhere (repeatable)",
    )
    audit.add_argument(
        "--replay-all",
        action="store_true",
        help="the replay must begin at the first version: nothing may have been dropped at a checkpoint",
    )
    audit.add_argument("--json", action="store_true", help="print JSON instead of a table")
    audit.set_defaults(run=_guarded(_audit))


def _guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Return `run` with what the disks do told in a sentence."""

    def guarded(parsed: argparse.Namespace) -> int:
        from hedgerow.custody.errors import CustodyError  # noqa: PLC0415 - see above

        try:
            return run(parsed)
        except (CustodyError, OSError) as error:
            sys.stderr.write(f"hedgerow: {error}\n")
            return _FAILED

    return guarded


def _backup(parsed: argparse.Namespace) -> int:
    from hedgerow.custody.backup import make_backup  # noqa: PLC0415 - see above
    from hedgerow.custody.words import backup_words, manifest_json  # noqa: PLC0415 - see above

    manifest = make_backup(parsed.folder, parsed.file, _told)
    text = manifest_json(manifest) if parsed.json else backup_words(manifest, parsed.file)
    sys.stdout.write(f"{text}\n")
    return _OK


def _restore(parsed: argparse.Namespace) -> int:
    from hedgerow.custody.restore import restore  # noqa: PLC0415 - see above
    from hedgerow.custody.words import restore_json, restore_words  # noqa: PLC0415 - see above

    done = restore(parsed.file, parsed.folder, _told, force=parsed.force)
    sys.stdout.write(f"{restore_json(done) if parsed.json else restore_words(done)}\n")
    return _OK


def _audit(parsed: argparse.Namespace) -> int:
    from rich.console import Console  # noqa: PLC0415 - see above

    from hedgerow.custody.audit import audit, find_fleet  # noqa: PLC0415 - see above
    from hedgerow.custody.table import as_json, as_table  # noqa: PLC0415 - see above

    fleet = find_fleet(parsed.folders)
    found = audit(fleet, without=parsed.without, replay_all=parsed.replay_all)
    if parsed.json:
        sys.stdout.write(f"{as_json(found)}\n")
    else:
        Console(soft_wrap=True, highlight=False).print(as_table(found))
    return _OK if found.holds else _FAILED


def _told(name: str, done: int, total: int) -> None:
    """Show how far a copy is, on a terminal."""
    if sys.stderr.isatty() and total:
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\r{name}: {100 * done // total}%\x1b[K{end}")
        sys.stderr.flush()
