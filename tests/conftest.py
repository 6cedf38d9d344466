"""What every test needs: tinygrad's environment, set before anything imports it."""

import os
import tempfile
from pathlib import Path

import pytest

from hedgerow.runtime.compiler import prepare_tinygrad

# Kept between sessions: compiled kernels are reused, and child processes find the same compiler.
STATE_FOLDER = Path(tempfile.gettempdir()) / f"hedgerow-tests-{os.geteuid()}"
STATE_FOLDER.mkdir(mode=0o700, exist_ok=True)
COMPILER = prepare_tinygrad(STATE_FOLDER)

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def state_folder() -> Path:
    """Return a folder that is kept between sessions."""
    return STATE_FOLDER


@pytest.fixture(scope="session")
def jit_folder() -> Path:
    """Return a folder for compiled steps that is kept between sessions."""
    return STATE_FOLDER / "jit"


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Return the folder with the data sets, or skip."""
    folder = Path(os.environ.get("HEDGEROW_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data sets in {folder}; set HEDGEROW_DATA")
    return folder
