"""What frozen stages make of a node's examples is computed once, and kept within bounds."""

import stat
from pathlib import Path

import numpy as np
import pytest

from edge_node.features import CONTENTS_KEPT
from edge_node.trainer import Trainer
from hedgerow.core.plan import choose_plan
from tests.contract.tiny_models import NumpyResult, examples, job_of, mlp, params_of

ROWS = 22


def trainer_of(folder: Path | None, jits: Path, feature_bytes: int = 1 << 20) -> Trainer:
    return Trainer(mlp(), *examples(ROWS), jits, folder, feature_bytes)


def test_features_give_the_same_training_from_file_memory_or_none(
    tmp_path: Path, jit_folder: Path
) -> None:
    model = mlp()
    job = job_of(model, plan=choose_plan(model.manifest, last_layers=1))
    expected = NumpyResult(job, *examples(ROWS)).delta
    for folder, limit in ((tmp_path, 1 << 20), (None, 1 << 20), (None, 1)):
        trainer = trainer_of(folder, jit_folder, limit)
        for _ in range(2):
            found = trainer.train(job).delta
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        assert trainer.features.computed == (1 if limit > 1 else 0)
    (file,) = tmp_path.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_file_serves_the_next_process_and_other_contents_do_not(
    tmp_path: Path, jit_folder: Path
) -> None:
    model = mlp()
    job = job_of(model, plan=choose_plan(model.manifest, last_layers=1))
    first = trainer_of(tmp_path, jit_folder).train(job)
    again = trainer_of(tmp_path, jit_folder)
    np.testing.assert_array_equal(again.train(job).delta, first.delta)
    assert again.features.computed == 0
    # The trained layer's own parameters are no part of the frozen content, those before it are.
    last, frozen = job.params.copy(), job.params.copy()
    last[-1] += 1
    frozen[0] += 1
    again.train(job_of(model, plan=job.plan, params=last))
    assert again.features.computed == 0
    changed = again.train(job_of(model, plan=job.plan, params=frozen))
    assert again.features.computed == 1
    assert not np.array_equal(changed.delta, first.delta)
    other = Trainer(model, *examples(ROWS + 1), jit_folder, tmp_path)
    other.train(job)
    assert other.features.computed == 1


@pytest.mark.parametrize("harm", ["cut", "flip", "text", "gone"])
def test_a_damaged_file_is_made_again(harm: str, tmp_path: Path, jit_folder: Path) -> None:
    model = mlp()
    job = job_of(model, plan=choose_plan(model.manifest, last_layers=1))
    expected = trainer_of(tmp_path, jit_folder).train(job).delta
    (file,) = tmp_path.glob("*.npy")
    content = bytearray(file.read_bytes())
    content[-40] ^= 1
    damaged = {"cut": content[:-50], "flip": content, "text": bytearray(b"no array")}
    file.unlink()
    if harm in damaged:
        file.write_bytes(damaged[harm])
    trainer = trainer_of(tmp_path, jit_folder)
    np.testing.assert_array_equal(trainer.train(job).delta, expected)
    assert (trainer.features.computed, trainer.features.corrupt) == (1, int(harm != "gone"))
    again = trainer_of(tmp_path, jit_folder)
    np.testing.assert_array_equal(again.train(job).delta, expected)
    assert again.features.computed == 0


@pytest.mark.parametrize("place", ["files", "memory"])
def test_old_contents_are_deleted(place: str, tmp_path: Path, jit_folder: Path) -> None:
    model = mlp()
    plan = choose_plan(model.manifest, last_layers=1)
    folder = tmp_path if place == "files" else None
    one = ROWS * 6 * 4
    trainer = trainer_of(folder, jit_folder, 2 * one + 400)
    for seed in (1, 2, 3, 3, 2, 1):
        trainer.train(job_of(model, plan=plan, params=params_of(model, seed)))
    # Two fit: the third drives out the first.
    assert trainer.features.computed == 4
    kept = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert kept <= 2 * one + 400
    roomy = trainer_of(folder, jit_folder)
    for seed in range(CONTENTS_KEPT + 3):
        roomy.train(job_of(model, plan=plan, params=params_of(model, seed)))
    assert len(list(tmp_path.iterdir())) == (CONTENTS_KEPT if place == "files" else 0)
    assert len(roomy.features._open) == CONTENTS_KEPT


def test_what_cannot_be_written_is_kept_in_memory(
    tmp_path: Path, jit_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mlp()
    job = job_of(model, plan=choose_plan(model.manifest, last_layers=1))
    trainer = trainer_of(tmp_path, jit_folder)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    found = [trainer.train(job).delta for _ in range(2)]
    np.testing.assert_allclose(found[0], NumpyResult(job, *examples(ROWS)).delta, atol=1e-5)
    np.testing.assert_array_equal(found[0], found[1])
    assert (trainer.features.computed, trainer.features.unwritten) == (1, 1)
    assert not list(tmp_path.iterdir())


def test_left_over_files_are_cleared_away(tmp_path: Path, jit_folder: Path) -> None:
    (tmp_path / "old.tmp").write_bytes(b"half")
    trainer_of(tmp_path, jit_folder)
    assert not list(tmp_path.iterdir())
