"""The table of all faults: `python -m tests.faults.table --runs 10 --markdown table.md --json table.json`.

Each fault strikes a fleet of its own so many times; then the fleet goes on until enough updates are applied,
stops, and its disks are read. Exit code 0 when every promise was kept, 1 when one was not.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.faults.catalog import chosen
from tests.faults.fault import Fault, repeat
from tests.faults.fleet import NotHereError
from tests.faults.role import REPOSITORY

_APART = "HEDGEROW_FAULTS_APART"
"""Set in the environment of a process that has mounts of its own."""

_HEAD = (
    "| # | fault | runs | issued | applied | other ends | duplicates seen | lost | drain s: median, most |",
    "|---|---|--:|--:|--:|--:|--:|--:|--:|",
)
Row = dict[str, Any]


def row_of(fault: Fault, runs: int, applied: int, folder: Path) -> Row:
    """Run one fault and return its row; one with mounts of its own runs in a process of its own."""
    if fault.apart and _APART not in os.environ:
        return _row_apart(fault, runs, applied)
    row: Row = {"number": fault.number, "name": fault.name, "runs": runs}
    try:
        outcome = repeat(fault, runs, folder, applied=applied)
    except NotHereError as error:
        return {**row, "skipped": str(error)}
    except AssertionError as error:
        return {**row, "failed": str(error)}
    totals = outcome.totals
    return {
        **row,
        "issued": totals.issued,
        "applied": totals.applied,
        "other_ends": totals.other_ends,
        "rejected": totals.rejected,
        "outbox": totals.outbox,
        "forgotten": totals.forgotten,
        "duplicates": totals.duplicates,
        "lost": totals.lost,
        "replayed": totals.replayed,
        "drain_s": list(outcome.drain_s),
        "seen": outcome.seen,
    }


def _row_apart(fault: Fault, runs: int, applied: int) -> Row:
    program = shutil.which("unshare")
    row: Row = {"number": fault.number, "name": fault.name, "runs": runs}
    options = ["-m"] if os.geteuid() == 0 else ["-Urm"]
    if program is None or subprocess.run([program, *options, "true"], check=False).returncode:
        return {**row, "skipped": "mounts of its own are not allowed here"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        command = [program, *options, sys.executable, "-m", "tests.faults.table", fault.name]
        command += ["--runs", str(runs), "--applied", str(applied), "--json", str(file)]
        environment = {**os.environ, _APART: "1"}
        done = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        if not file.exists():
            return {**row, "failed": done.stderr[-2000:]}
        rows: list[Row] = json.loads(file.read_text())
    return next(one for one in rows if one["name"] == fault.name)


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as a table."""
    return "\n".join([*_HEAD, *map(_line, rows)]) + "\n"


def _line(row: Row) -> str:
    begin = f"| {row['number']} | {row['name']} | {row['runs']} |"
    if "skipped" in row:
        return f"{begin} not run: {row['skipped']} | | | | | |"
    if "failed" in row:
        return f"{begin} **failed**: {row['failed'].splitlines()[0]} | | | | | |"
    figures = [row[key] for key in ("issued", "applied", "other_ends", "duplicates", "lost")]
    median_s, longest_s = row["drain_s"]
    return f"{begin} {' | '.join(f'{n:,}' for n in figures)} | {median_s:g}, {longest_s:g} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", help="numbers or names, such as F3; all without any")
    parser.add_argument("--runs", type=int, default=12, help="how often each fault strikes")
    parser.add_argument("--applied", type=int, default=100, help="least updates applied per fault")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    rows = []
    for fault in chosen(options.faults):
        with tempfile.TemporaryDirectory(prefix="hedgerow-fault-") as folder:
            rows.append(row_of(fault, options.runs, options.applied, Path(folder)))
        print(_line(rows[-1]), flush=True)  # noqa: T201 - a script prints
        if options.json:
            options.json.write_text(json.dumps(rows, indent=1))
    if options.markdown:
        options.markdown.write_text(markdown(rows))
    return int(any("failed" in row for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
