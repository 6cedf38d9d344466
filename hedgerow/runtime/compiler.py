"""Finds the C compiler tinygrad needs and sets tinygrad's environment before it is imported.

tinygrad compiles every kernel with clang. Where no clang is installed, the one inside the `ziglang`
wheel does as well: a two-line script in the state folder makes it look like clang.
"""

import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
from pathlib import Path

from hedgerow.core.errors import ConfigError

SUPPORTED_MACHINES = ("x86_64", "amd64", "aarch64", "arm64", "riscv64")
SHIM_NAME = "hedgerow-clang"
PROBE_TIMEOUT_S = 60.0


def prepare_tinygrad(state_folder: Path) -> str:
    """Set tinygrad's environment and return one line that says which compiler is used.

    Call it before the first import of tinygrad, which reads most variables once. Variables the operator
    has set are kept. Calling it again, or from several processes with one folder, is safe. Raises
    ConfigError when the processor is not supported or no compiler can be found.
    """
    check_machine(platform.machine())
    state_folder.mkdir(parents=True, exist_ok=True)
    compiler = os.environ.get("CC") or shutil.which("clang") or _zig_shim(state_folder)
    described = describe_compiler(compiler)
    os.environ["CC"] = compiler
    os.environ.setdefault("DEV", "CPU")
    os.environ.setdefault("PARALLEL", "0")
    os.environ.setdefault("CACHEDB", str(state_folder / "tinygrad.db"))
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    return described


def check_machine(machine: str) -> None:
    """Raise ConfigError unless tinygrad can compile for `machine`, as `uname -m` names it."""
    if machine.lower() not in SUPPORTED_MACHINES:
        raise ConfigError(
            f"processor: {machine!r} cannot train, tinygrad compiles for x86_64, arm64 and riscv64 only;"
            " use a 64-bit operating system, or run this role on another machine"
        )


def describe_compiler(compiler: str) -> str:
    """Run `compiler --version` and return its first line and path.

    Raises ConfigError when it cannot be run or is not clang: tinygrad passes options gcc does not know.
    """
    path = shutil.which(compiler)
    if path is None:
        raise ConfigError(f"CC: {compiler!r} is not a program; unset CC or set it to clang's path")
    try:
        answer = subprocess.run(  # noqa: S603 - the operator chose this program
            [path, "--version"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=PROBE_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(
            f"CC: {compiler!r} does not run ({error}); set CC to clang's path"
        ) from error
    first = answer.stdout.partition("\n")[0].strip()
    if answer.returncode != 0 or "clang" not in first:
        raise ConfigError(
            f"CC: {compiler!r} is not clang ({first!r}); unset CC or set it to clang's path"
        )
    return f"{first} ({path})"


def _zig_shim(folder: Path) -> str:
    """Write the script that runs the clang of the `ziglang` wheel; return its path."""
    found = importlib.util.find_spec("ziglang")
    zig = Path(found.origin).parent / "zig" if found is not None and found.origin else None
    if zig is None or not zig.exists():
        raise ConfigError(
            "compiler: training needs clang and none was found; install clang"
            " (apt install clang), or run: pip install 'hedgerow[compiler]'"
        )
    shim = (folder / SHIM_NAME).resolve()
    text = f'#!/bin/sh\nexec {shlex.quote(str(zig))} clang "$@"\n'
    if not shim.exists() or shim.read_text() != text:
        # Another process may be running the script right now: replace it, never rewrite it.
        fresh = shim.with_name(f"{SHIM_NAME}.{os.getpid()}")
        fresh.write_text(text)
        fresh.chmod(0o755)
        fresh.replace(shim)
    return str(shim)
