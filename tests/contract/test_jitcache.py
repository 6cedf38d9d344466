import hashlib
import json
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tinygrad.engine.jit import TinyJit
from tinygrad.tensor import Tensor

from edge_node.jitcache import FILES_KEPT, STEPS_KEPT, JitCache, jit_cache
from hedgerow.core.config import TaskConfig
from hedgerow.core.effects import Trained
from hedgerow.core.errors import ConfigError
from hedgerow.core.plan import choose_plan
from hedgerow.runtime.buffers import SharedArray
from hedgerow.runtime.model import load_model
from tests.contract.tiny_models import MLP, SHAPE, job_of, mlp, trainer_of

REPOSITORY = Path(__file__).resolve().parents[2]


def compile_doubling() -> Any:
    """Compile a step that doubles its input in place."""
    shared = SharedArray.holding(np.ones(3, np.float32))

    def step(x: Tensor) -> None:
        x.assign(x.detach() * 2).realize()

    compiled = TinyJit(step)
    for _ in range(2):
        compiled(shared.tensor)
    return compiled


def doubles(step: Any) -> bool:
    shared = SharedArray.holding(np.array([1, 2, 3], np.float32))
    step(shared.tensor)
    return bool((shared.array == [2, 4, 6]).all())


def only_file(folder: Path) -> Path:
    (path,) = folder.glob("*.jit")
    return path


def counts(cache: JitCache) -> dict[str, int]:
    names = ("loaded", "compiled", "corrupt", "refused", "unwritten")
    return {name: getattr(cache, name) for name in names if getattr(cache, name)}


def train_as_after_restart(folder: Path) -> tuple[Trained, dict[str, int]]:
    jit_cache.cache_clear()
    model = mlp()
    result = trainer_of(model, 12, folder).train(job_of(model))
    return result, counts(jit_cache(folder))


def test_a_restart_loads_and_trains_to_the_same_bits(tmp_path: Path) -> None:
    first, compiling = train_as_after_restart(tmp_path)
    again, loading = train_as_after_restart(tmp_path)
    assert (compiling, loading) == ({"compiled": 1}, {"loaded": 1})
    np.testing.assert_array_equal(first.delta, again.delta)
    assert first.peak_bytes == again.peak_bytes
    assert first.step_square_sum == again.step_square_sum
    assert only_file(tmp_path).stat().st_mode & 0o777 == 0o600


TRAIN = """
import json, sys
from pathlib import Path
from hedgerow.runtime.compiler import prepare_tinygrad
folder = Path(sys.argv[1])
prepare_tinygrad(folder.parent / "state")
from edge_node.jitcache import jit_cache
from tests.contract.tiny_models import job_of, mlp, trainer_of
model = mlp()
result = trainer_of(model, 12, folder).train(job_of(model))
cache = jit_cache(folder)
initial = model.initial_params(3)
print(json.dumps([cache.compiled, cache.loaded, result.peak_bytes, result.delta.tolist(),
                  initial.tolist()]))
"""


def start_process(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(folder)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
    )


def test_of_two_processes_at_once_one_compiles_and_the_other_loads(tmp_path: Path) -> None:
    with start_process(tmp_path / "jit") as one, start_process(tmp_path / "jit") as two:
        (first, second) = (json.loads(each.communicate(timeout=100)[0]) for each in (one, two))
    assert sorted([first[:2], second[:2]]) == [[0, 1], [1, 0]]
    assert first[2:] == second[2:]
    model = mlp()
    assert first[4] == model.initial_params(3).tolist()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "other"])
def test_a_damaged_file_is_compiled_anew(tmp_path: Path, damage: str) -> None:
    before, _ = train_as_after_restart(tmp_path)
    path = only_file(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    unreadable = pickle.dumps(print)[:-3]
    path.write_bytes(
        {
            "flip": bytes(content),
            "cut": bytes(content[: len(content) // 2]),
            "empty": b"",
            "other": hashlib.sha256(unreadable).digest() + unreadable,
        }[damage]
    )
    after, found = train_as_after_restart(tmp_path)
    assert found == {"corrupt": 1, "compiled": 1}
    np.testing.assert_array_equal(before.delta, after.delta)
    assert train_as_after_restart(tmp_path)[1] == {"loaded": 1}


class Trap:
    """A pickle that leaves a mark when it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def trapped(mark: Path) -> bytes:
    body = pickle.dumps(Trap(mark))
    return hashlib.sha256(body).digest() + body


@pytest.mark.parametrize("how", ["group", "world", "link", "owner"])
def test_a_file_others_could_have_written_is_never_read(tmp_path: Path, how: str) -> None:
    if how == "owner" and os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    folder, mark = tmp_path / "jit", tmp_path / "mark"
    JitCache(folder).step({"a": 1}, compile_doubling)
    path = only_file(folder)
    path.write_bytes(trapped(mark))
    if how == "link":
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere")
    elif how == "owner":
        os.chown(path, 12345, -1)
    else:
        path.chmod({"group": 0o620, "world": 0o602}[how])
    cache = JitCache(folder)
    assert doubles(cache.step({"a": 1}, compile_doubling))
    assert counts(cache) == {"refused": 1, "compiled": 1}
    assert not mark.exists()
    assert not path.is_symlink()
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_trap_works(tmp_path: Path) -> None:
    """The same bytes in a file of our own are read, or the test above would prove nothing."""
    folder, mark = tmp_path / "jit", tmp_path / "mark"
    JitCache(folder).step({"a": 1}, compile_doubling)
    only_file(folder).write_bytes(trapped(mark))
    JitCache(folder).step({"a": 1}, compile_doubling)
    assert mark.exists()


@pytest.mark.parametrize("mode", [0o777, 0o720])
def test_an_open_folder_is_refused(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "jit"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=r"jit cache.*chmod go-w"):
        JitCache(folder)


def test_a_full_disk_costs_the_file_only(tmp_path: Path) -> None:
    cache = JitCache(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def build() -> Any:
        compiled = compile_doubling()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
        return compiled

    try:
        step = cache.step({"a": 1}, build)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert doubles(step)
    assert counts(cache) == {"compiled": 1, "unwritten": 1}
    assert not list(tmp_path.glob("*.jit"))
    again = JitCache(tmp_path)
    assert doubles(again.step({"a": 1}, compile_doubling))
    assert counts(again) == {"compiled": 1}
    assert not list(tmp_path.glob("*.tmp"))


def test_files_and_steps_are_bounded(tmp_path: Path) -> None:
    cache = JitCache(tmp_path)
    for number in range(FILES_KEPT + 5):
        path = tmp_path / f"old{number}.jit"
        path.touch()
        os.utime(path, (number, number))
    for number in range(STEPS_KEPT + 2):
        cache.step({"a": number}, compile_doubling)
    assert len(list(tmp_path.glob("*.jit"))) == FILES_KEPT
    assert not (tmp_path / "old0.jit").exists()
    assert len(cache._steps) == STEPS_KEPT
    assert doubles(cache.step({"a": STEPS_KEPT + 1}, compile_doubling))
    assert counts(cache) == {"compiled": STEPS_KEPT + 2}
    assert doubles(cache.step({"a": 0}, compile_doubling))
    assert counts(cache) == {"compiled": STEPS_KEPT + 2, "loaded": 1}


def test_whatever_changes_the_code_changes_the_file(tmp_path: Path) -> None:
    model = mlp()
    files: set[Path] = set()

    def new_files() -> int:
        found = set(tmp_path.glob("*.jit")) - files
        files.update(found)
        return len(found)

    trainer = trainer_of(model, 12, tmp_path)
    trainer.train(job_of(model))
    assert new_files() == 1
    trainer.train(job_of(model, seed=3, learning_rate=0.5, passes=1))
    trainer_of(model, 33, tmp_path).train(job_of(model))
    assert new_files() == 0
    trainer.train(job_of(model, batch_size=5))
    assert new_files() == 1
    trainer.train(job_of(model, plan=choose_plan(model.manifest, last_layers=1)))
    # The last layer's step, the layout of the inputs, and what follows each of the two frozen products.
    assert new_files() == 4
    wide = load_model(TaskConfig(outputs=3, options={"hidden": [9]}), SHAPE)
    trainer_of(wide, 12, tmp_path).train(job_of(wide))
    assert new_files() == 1


def test_another_tasks_source_is_another_model() -> None:
    assert mlp().identity == mlp().identity
    assert load_model(MLP, (6,)).identity != mlp().identity
