"""Coverage-guided fuzzing of every target in turn: `python -m tests.fuzz.run`, or `make fuzz`.

Needs atheris (the extra "fuzz"). Every target starts from real messages, keeps what it learns in the folder
of inputs for the next time, and is stopped at its first failure. A finding belongs into tests/fuzz/corpus,
where the tests keep it mended. The exit code is 1 when there was one.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from tests.fuzz.samples import samples
from tests.fuzz.targets import TARGETS

OK, FAILED, BAD_USAGE = 0, 1, 2
GRACE_S = 60
_STATUS = re.compile(r"#(\d+)\s+\w+\s.*?cov: (\d+) ft: (\d+)")
_TAIL = 4000


def prepare(name: str, folder: Path) -> Path:
    """Write a target's samples where fuzzing begins, and return that folder."""
    inputs = folder / name
    inputs.mkdir(parents=True, exist_ok=True)
    for data in samples(name):
        (inputs / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)
    return inputs


def fuzz(name: str, folder: Path, seconds: int) -> dict[str, Any]:
    """Fuzz one target and return what was tried, what was reached, and what failed."""
    inputs = prepare(name, folder)
    command = [sys.executable, "-m", "tests.fuzz.guided", name, str(inputs), str(seconds)]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            timeout=seconds + GRACE_S,
            check=False,
            text=True,
            errors="replace",
        )
        output, code = done.stdout + done.stderr, done.returncode
    except subprocess.TimeoutExpired:
        output, code = "it did not end in time", FAILED
    lines = _STATUS.findall(output)
    runs, coverage, features = map(int, lines[-1]) if lines else (0, 0, 0)
    return {
        "target": name,
        "inputs": runs,
        "coverage": coverage,
        "features": features,
        "kept": sum(1 for _ in inputs.iterdir()),
        "failure": output[-_TAIL:] if code else "",
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Fuzz the chosen targets and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run", description="Guided fuzzing.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    usual_s = int(os.environ.get("FUZZ_S", "60"))
    parser.add_argument(
        "--seconds", type=int, default=usual_s, help="for each (default: FUZZ_S, 60)"
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/fuzz"))
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.targets) - TARGETS.keys())
    console = Console(soft_wrap=True, highlight=False)
    if unknown:
        console.print(f"there is no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
        return BAD_USAGE
    if importlib.util.find_spec("atheris") is None:
        console.print("guided fuzzing needs atheris: pip install -e '.[fuzz]'", markup=False)
        return BAD_USAGE
    results = []
    for name in options.targets or TARGETS:
        results.append(fuzz(name, options.folder, options.seconds))
        _tell(results[-1], console)
    (options.folder / "fuzz.json").write_text(json.dumps(results, indent=2) + "\n")
    return FAILED if any(result["failure"] for result in results) else OK


def _tell(result: dict[str, Any], console: Console) -> None:
    what = "FAILED" if result["failure"] else "ok"
    console.print(
        f"{result['target']:11} {what}: {result['inputs']:,} inputs, coverage {result['coverage']},"
        f" {result['kept']} inputs kept",
        markup=False,
    )
    if result["failure"]:
        console.print(result["failure"], markup=False)


if __name__ == "__main__":
    sys.exit(main())
