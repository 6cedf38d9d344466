import sys
from pathlib import Path

import numpy as np
import pytest
from tinygrad.tensor import Tensor

from hedgerow.core.config import TaskConfig
from hedgerow.core.errors import ConfigError
from hedgerow.core.units import Vector
from hedgerow.runtime.model import EVALUATION_ROWS, Model, load_model
from hedgerow.runtime.tasks import load_task

OWN_TASK = """
import numpy as np
from tinygrad import Tensor, nn

class Line:
    def __init__(self):
        self.only = nn.Linear(3, 2)
    def __call__(self, x):
        return self.only(x)

class Norm:
    def __init__(self):
        self.only = nn.Linear(3, 2)
        self.norm = nn.BatchNorm(2)
    def __call__(self, x):
        return self.norm(self.only(x))

class Shared:
    def __init__(self):
        self.first = nn.Linear(3, 3)
        self.second = self.first
    def __call__(self, x):
        return self.second(self.first(x))

class Task:
    target_dtype = np.dtype(np.int32)
    def __init__(self, input_shape, kind, outputs, model="Line"):
        self.input_shape, self.model = input_shape, globals()[model]
    def build(self):
        return self.model()
    def loss(self, output, targets):
        return output.sparse_categorical_crossentropy(targets)
    def metrics(self, outputs, targets):
        return {"right": float((outputs.argmax(1) == targets).mean())}

def half(input_shape, kind, outputs):
    return object()

def broken(input_shape, kind, outputs):
    raise ValueError("no")
"""


@pytest.fixture
def own_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own_task.py"
    path.write_text(OWN_TASK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_task", raising=False)
    return path


def names(model: Model) -> list[str]:
    return [unit.name for unit in model.manifest.units]


def test_units_come_in_the_order_from_input_to_output() -> None:
    model = load_model(TaskConfig(name="mlp", outputs=3, options={"hidden": [5, 4]}), (2, 3))
    assert names(model) == [
        f"{layer}.{part}"
        for layer in ("hidden.0", "hidden.1", "output")
        for part in ("weight", "bias")
    ]
    assert model.manifest.size == 6 * 5 + 5 + 5 * 4 + 4 + 4 * 3 + 3


def test_convolutions_come_first() -> None:
    model = load_model(TaskConfig(name="cnn1d", outputs=3), (30, 6))
    assert model.manifest.layers == ("convs.0", "convs.1", "hidden.0", "output")
    assert model.manifest.by_name["convs.0.weight"].shape == (32, 6, 5)


@pytest.mark.parametrize(
    ("shape", "channels"), [((9, 8), 1), ((3, 9, 8), 3), ((9, 8, 3), 3), ((1, 9, 8), 1)]
)
def test_the_channel_axis_of_an_image_is_found(shape: tuple[int, ...], channels: int) -> None:
    model = load_model(TaskConfig(name="cnn", outputs=3, options={"channels": [4]}), shape)
    assert model.manifest.by_name["convs.0.weight"].shape == (4, channels, 3, 3)


def test_channels_last_images_give_the_same_outputs_as_channels_first() -> None:
    config = TaskConfig(name="cnn", outputs=2, options={"channels": [3], "hidden": []})
    first, last = load_model(config, (2, 6, 5)), load_model(config, (6, 5, 2))
    params = np.random.default_rng(0).standard_normal(first.manifest.size).astype(np.float32)
    images = np.random.default_rng(1).standard_normal((4, 2, 6, 5)).astype(np.float32)
    moved = np.moveaxis(images, 1, -1)
    np.testing.assert_array_equal(first.predict(params, images), last.predict(params, moved))


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (TaskConfig(name="tree"), (3,), r"task.name: 'tree'.*mlp, cnn, cnn1d"),
        (TaskConfig(outputs=2, options={"hiden": [3]}), (3,), r"task.options.hiden.*has hidden"),
        (TaskConfig(outputs=2, options={"hidden": 3}), (3,), r"task.options.hidden: 3"),
        (TaskConfig(outputs=2, options={"hidden": [0]}), (3,), r"task.options.hidden: \[0\]"),
        (TaskConfig(outputs=2, options={"hidden": [True]}), (3,), r"task.options.hidden"),
        (TaskConfig(name="cnn", outputs=2, options={"kernel": -1}), (9, 9), "task.options.kernel"),
        (TaskConfig(name="cnn", outputs=2, options={"channels": []}), (9, 9), "use task.name"),
        (TaskConfig(name="cnn", outputs=2), (9,), "needs images"),
        (TaskConfig(name="cnn1d", outputs=2), (9,), "needs windows"),
        (TaskConfig(name="cnn1d", outputs=2), (9, 3), r"task.options.channels.*smaller"),
        (TaskConfig(outputs=1), (3,), "task.outputs: 1"),
        (TaskConfig(name="no_such_module:x"), (3,), r"task.name.*PYTHONPATH"),
        (TaskConfig(name="math:pi"), (3,), "not callable"),
        (TaskConfig(name="math:tau2"), (3,), "no such attribute"),
        (TaskConfig(name="math:"), (3,), "module:attribute"),
    ],
)
def test_a_wrong_task_names_its_key(
    config: TaskConfig, shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(config, shape)


def test_classification_metrics() -> None:
    task = load_task(TaskConfig(outputs=2), (3,))
    outputs = np.log(np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]], np.float32))
    found = task.metrics(outputs, np.array([0, 1, 1], np.int32))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.8, 0.4]).mean(), rel=1e-6)


def test_metrics_agree_with_the_loss_that_is_trained() -> None:
    rng = np.random.default_rng(0)
    outputs = rng.standard_normal((7, 3)).astype(np.float32) * 20
    labels = rng.integers(0, 3, 7).astype(np.int32)
    task = load_task(TaskConfig(outputs=3), (3,))
    trained = task.loss(Tensor(outputs), Tensor(labels)).item()
    assert task.metrics(outputs, labels)["loss"] == pytest.approx(trained, rel=1e-5)
    values = rng.standard_normal((7, 3)).astype(np.float32)
    task = load_task(TaskConfig(kind="regression", outputs=3), (3,))
    trained = task.loss(Tensor(outputs), Tensor(values)).item()
    assert task.metrics(outputs, values)["rmse"] ** 2 == pytest.approx(trained, rel=1e-5)


def test_skill_is_the_gain_over_answering_nothing() -> None:
    task = load_task(TaskConfig(kind="regression", outputs=1), (3,))
    targets = np.array([1.0, -2.0, 2.0], np.float32)
    zero = task.metrics(np.zeros((3, 1), np.float32), targets)
    assert zero["skill"] == 0
    assert zero["rmse"] == pytest.approx(3**0.5)
    assert zero["mae"] == pytest.approx(5 / 3)
    assert task.metrics(targets[:, None], targets)["skill"] == 1
    assert task.metrics(targets[:, None], targets * 0)["skill"] == 0


@pytest.mark.parametrize("rows", [1, EVALUATION_ROWS, EVALUATION_ROWS + 44])
def test_evaluation_equals_numpy_for_any_number_of_rows(rows: int) -> None:
    model = load_model(TaskConfig(outputs=3, options={"hidden": [5]}), (4,))
    rng = np.random.default_rng(rows)
    params = rng.standard_normal(model.manifest.size).astype(np.float32)
    inputs = rng.standard_normal((rows, 4)).astype(np.float32)
    labels = rng.integers(0, 3, rows)
    expected = numpy_mlp(model, params, inputs)
    np.testing.assert_allclose(model.predict(params, inputs), expected, rtol=2e-5, atol=2e-5)
    accuracy = model.evaluate(params, inputs, labels)["accuracy"]
    assert accuracy == pytest.approx((expected.argmax(1) == labels).mean())


def numpy_mlp(model: Model, params: Vector, inputs: np.ndarray) -> np.ndarray:
    units = model.manifest.split(params)
    hidden = inputs @ units["hidden.0.weight"].T + units["hidden.0.bias"]
    outputs: np.ndarray = np.maximum(hidden, 0) @ units["output.weight"].T
    return outputs + units["output.bias"]


def test_evaluations_do_not_remember_earlier_parameters() -> None:
    model = load_model(TaskConfig(outputs=3, options={"hidden": [5]}), (4,))
    params = model.initial_params(1)
    inputs = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    first = model.predict(params, inputs)
    assert not np.array_equal(model.predict(params * 2, inputs), first)
    np.testing.assert_array_equal(model.predict(params, inputs), first)


def test_initial_parameters_follow_the_seed() -> None:
    model = load_model(TaskConfig(outputs=3, options={"hidden": [5]}), (4,))
    params = model.initial_params(7)
    assert params.dtype == np.float32
    assert np.isfinite(params).all()
    assert np.ptp(params) > 0
    np.testing.assert_array_equal(model.initial_params(7), params)
    assert not np.array_equal(model.initial_params(8), params)


def test_a_users_task_is_loaded_from_the_current_folder(own_task: Path) -> None:
    model = load_model(TaskConfig(name="own_task:Task", outputs=2), (3,))
    assert names(model) == ["only.weight", "only.bias"]
    zeros = np.zeros(8, np.float32)
    assert model.evaluate(zeros, np.ones((4, 3)), np.array([0, 0, 0, 1])) == {"right": 0.75}


def test_a_changed_task_file_changes_the_models_identity(own_task: Path) -> None:
    config = TaskConfig(name="own_task:Task", outputs=2)
    before = load_model(config, (3,)).identity
    assert load_model(config, (3,)).identity == before
    own_task.write_text(OWN_TASK + "\n# changed\n")
    assert load_model(config, (3,)).identity != before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("own_task:Task", {"width": 3}, r"refused its arguments.*width"),
        ("own_task:half", {}, r"returned a object; it needs build"),
        ("own_task:broken", {}, r"own_task:broken.*failed.*no"),
        ("own_task:Task", {"model": "Norm"}, r"'norm.\w+' is state"),
        ("own_task:Task", {"model": "Shared"}, r"'second.weight' and 'first.weight' are one"),
    ],
)
def test_a_users_wrong_task_is_explained(
    own_task: Path, name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_model(TaskConfig(name=name, outputs=2, options=options), (3,))


def test_a_users_model_for_other_inputs_is_explained(own_task: Path) -> None:
    with pytest.raises(ConfigError, match=r"own_task:Task.*fails on inputs of shape \(4,\)"):
        load_model(TaskConfig(name="own_task:Task", outputs=2), (4,))


@pytest.mark.parametrize(
    ("inputs", "targets", "message"),
    [
        (np.ones((2, 5)), np.zeros(2, int), r"shape \(5,\).*\(4,\)"),
        (np.ones((2, 4)), np.zeros(3, int), "2 inputs and 3 targets"),
        (np.ones((0, 4)), np.zeros(0, int), "0 inputs"),
        (np.ones((2, 4)), np.array([0, 3]), r"row 1 is 3, not a class 0..2.*task.outputs"),
        (np.ones((2, 4)), np.array([-1, 0]), "row 0 is -1"),
        (np.ones((2, 4)), np.array([0, 0.5]), r"row 1 is 0.5.*regression"),
    ],
)
def test_examples_that_do_not_fit_the_model_are_refused(
    inputs: np.ndarray, targets: np.ndarray, message: str
) -> None:
    model = load_model(TaskConfig(outputs=3, options={"hidden": []}), (4,))
    with pytest.raises(ConfigError, match=message):
        model.checked(inputs, targets)


def test_targets_of_another_width_are_refused() -> None:
    model = load_model(TaskConfig(kind="regression", outputs=2, options={"hidden": []}), (4,))
    with pytest.raises(ConfigError, match=r"task.outputs.*1 values"):
        model.checked(np.ones((3, 4)), np.ones(3))
