import os
import subprocess
import sys
from pathlib import Path

import pytest

from hedgerow.core.errors import ConfigError
from hedgerow.runtime.compiler import check_machine, describe_compiler, prepare_tinygrad

REPOSITORY = Path(__file__).resolve().parents[2]

TRAIN_SOMETHING = """
import sys
from pathlib import Path
from hedgerow.runtime.compiler import prepare_tinygrad
print(prepare_tinygrad(Path(sys.argv[1])))
print(prepare_tinygrad(Path(sys.argv[1])))
from tinygrad import Tensor
print((Tensor([1.0, 2.0]) * 3).tolist())
"""


def run_python(text: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `text` without the compiler settings of this process."""
    settings = ("CC", "DEV", "CACHEDB", "PARALLEL")
    clean = {key: value for key, value in os.environ.items() if key not in settings}
    return subprocess.run(
        [sys.executable, "-c", text, str(folder)],
        env={**clean, "PYTHONPATH": str(REPOSITORY), **env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("machine", ["armv7l", "i686", "mips"])
def test_an_unsupported_processor_is_named(machine: str) -> None:
    with pytest.raises(ConfigError, match=rf"{machine}.*64-bit"):
        check_machine(machine)


@pytest.mark.parametrize("machine", ["x86_64", "aarch64", "arm64", "AMD64", "riscv64"])
def test_supported_processors_pass(machine: str) -> None:
    check_machine(machine)


def test_prepare_is_repeatable_and_sets_the_environment(tmp_path: Path) -> None:
    before = os.environ["CC"]
    assert prepare_tinygrad(tmp_path) == prepare_tinygrad(tmp_path)
    assert os.environ["CC"] == before
    assert os.environ["PARALLEL"] == "0"
    assert os.environ["DEV"] == "CPU"


def test_a_missing_program_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"CC: '/nowhere/clang'.*clang's path"):
        describe_compiler("/nowhere/clang")


def test_another_program_than_clang_is_refused(tmp_path: Path) -> None:
    fake = tmp_path / "gcc"
    fake.write_text("#!/bin/sh\necho gcc 12.2.0\n")
    fake.chmod(0o755)
    with pytest.raises(ConfigError, match="not clang"):
        describe_compiler(str(fake))


def test_a_program_that_cannot_run_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "clang"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    with pytest.raises(ConfigError, match="does not run"):
        describe_compiler(str(broken))


def test_without_clang_the_wheels_compiler_serves(tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    folder = tmp_path / "it's a state"
    done = run_python(TRAIN_SOMETHING, folder, PATH="/bin")
    assert done.returncode == 0, done.stderr
    first, second, result = done.stdout.splitlines()
    assert first == second
    assert str(folder) in first
    assert result == "[3.0, 6.0]"
    assert (folder / "tinygrad.db").exists()


def test_without_any_compiler_both_fixes_are_named(tmp_path: Path) -> None:
    hide = "import importlib.util\nimportlib.util.find_spec = lambda name: None\n"
    done = run_python(hide + TRAIN_SOMETHING, tmp_path, PATH="/nowhere")
    assert done.returncode == 1
    assert "ConfigError" in done.stderr
    assert "install clang" in done.stderr
    assert "pip install 'hedgerow[compiler]'" in done.stderr
