import numpy as np
import pytest
from tinygrad.tensor import Tensor

from hedgerow.core.config import TaskConfig
from hedgerow.core.errors import ConfigError
from hedgerow.core.units import Vector
from hedgerow.runtime.model import Model, load_model
from hedgerow.runtime.stages import Stages


def mobilenet(shape: tuple[int, ...], **options: list[int]) -> Model:
    return load_model(TaskConfig(name="mobilenet", outputs=3, options=options), shape)


def convolved(x: np.ndarray, weight: np.ndarray, stride: int, groups: int) -> np.ndarray:
    """Convolve (N, C, H, W) by (O, C / groups, k, k), padded so that stride 1 keeps the size."""
    pad = weight.shape[2] // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (2, 3))
    windows = windows[:, :, ::stride, ::stride]
    of_group = zip(np.split(windows, groups, 1), np.split(weight, groups, 0), strict=True)
    return np.concatenate([np.einsum("nchwij,ocij->nohw", w, k) for w, k in of_group], 1)


def normalized(x: np.ndarray, units: dict[str, np.ndarray], name: str) -> np.ndarray:
    """Normalize groups of eight channels (or all, where they cannot be grouped), then ReLU."""
    groups = x.shape[1] // 8 if x.shape[1] % 8 == 0 else 1
    flat = x.reshape(len(x), groups, -1)
    centred = flat - flat.mean(2, keepdims=True)
    scaled = (centred / np.sqrt(flat.var(2, keepdims=True) + 1e-5)).reshape(x.shape)
    weight, bias = units[f"{name}.weight"], units[f"{name}.bias"]
    active: np.ndarray = np.maximum(scaled * weight[:, None, None] + bias[:, None, None], 0)
    return active


def numpy_mobilenet(
    model: Model, params: Vector, x: np.ndarray, strides: tuple[int, ...]
) -> np.ndarray:
    units = dict(model.manifest.split(params))
    x = normalized(convolved(x, units["first.weight"], strides[0], 1), units, "first_norm")
    for number, stride in enumerate(strides[1:]):
        name = f"blocks.{number}"
        x = convolved(x, units[f"{name}.depthwise.weight"], stride, x.shape[1])
        x = normalized(x, units, f"{name}.depthwise_norm")
        x = convolved(x, units[f"{name}.pointwise.weight"], 1, 1)
        x = normalized(x, units, f"{name}.pointwise_norm")
    x = x.mean((2, 3))
    hidden = np.maximum(x @ units["hidden.0.weight"].T + units["hidden.0.bias"], 0)
    outputs: np.ndarray = hidden @ units["output.weight"].T
    return outputs + units["output.bias"]


def random_params(model: Model) -> Vector:
    return np.random.default_rng(0).standard_normal(model.manifest.size).astype(np.float32)


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


def test_layers_come_in_the_order_of_use() -> None:
    block = ("depthwise", "depthwise_norm", "pointwise", "pointwise_norm")
    assert mobilenet((9, 8), channels=[4, 6, 8], hidden=[5]).manifest.layers == (
        "first",
        "first_norm",
        *(f"blocks.{number}.{layer}" for number in range(2) for layer in block),
        "hidden.0",
        "output",
    )


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 2), (1, 3, 2)])
def test_outputs_equal_numpy(strides: tuple[int, ...]) -> None:
    model = mobilenet((2, 7, 6), channels=[4, 16, 8], strides=list(strides), hidden=[5])
    params, x = random_params(model), images(3, 2, 7, 6)
    expected = numpy_mobilenet(model, params, x, strides)
    np.testing.assert_allclose(model.predict(params, x), expected, rtol=1e-3, atol=1e-3)


def test_without_strides_the_image_shrinks_where_channels_grow() -> None:
    options = {"channels": [4, 8, 8, 16], "hidden": [5]}
    plain, same = mobilenet((9, 9), **options), mobilenet((9, 9), **options, strides=[1, 2, 1, 2])
    params, x = random_params(plain), images(2, 9, 9)
    np.testing.assert_array_equal(plain.predict(params, x), same.predict(params, x))


@pytest.mark.parametrize("shape", [(9, 8), (1, 9, 8), (9, 8, 1)])
def test_any_layout_of_an_image_will_do(shape: tuple[int, ...]) -> None:
    model = mobilenet(shape, channels=[4, 8])
    params, x = random_params(model), images(2, 9, 8)
    expected = mobilenet((9, 8), channels=[4, 8]).predict(params, x)
    np.testing.assert_array_equal(model.predict(params, x.reshape(2, *shape)), expected)


def test_every_layer_is_a_stage_of_its_own_and_the_stages_are_the_network() -> None:
    model = mobilenet((2, 7, 6), channels=[4, 8], hidden=[5])
    network = model.task.build()
    stages = Stages.of(network)
    assert [stage.name for stage in stages.stages] == list(model.manifest.layers)
    x = Tensor(images(2, 2, 7, 6))
    out = x
    # One at a time: tinygrad's scheduler may take minutes over all of them at once.
    for number in range(len(stages.stages)):
        out = stages.run(out, number, number + 1).realize()
    np.testing.assert_allclose(out.numpy(), network(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_depthwise_filter_begins_as_large_as_its_few_inputs_ask_for() -> None:
    model = mobilenet((3, 9, 8), channels=[64, 64])
    params = model.initial_params(0)
    weight = model.manifest.split(params)["blocks.0.depthwise.weight"]
    assert weight.shape == (64, 1, 3, 3)
    assert np.abs(weight).max() == pytest.approx(1 / 3, rel=0.05)


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (9,), "needs images"),
        ({"channels": []}, (9, 9), r"task.options.channels: \[\]"),
        ({"channels": [4, 0]}, (9, 9), r"task.options.channels: \[4, 0\]"),
        ({"strides": [1, 2]}, (9, 9), r"task.options.strides: \[1, 2\] are 2.*has 4.*or none"),
        ({"strides": [1, 2, 2, -1]}, (9, 9), r"task.options.strides: \[1, 2, 2, -1\]"),
        ({"kernel": [3]}, (9, 9), r"task.options.kernel.*channels, strides, hidden"),
    ],
)
def test_wrong_options_name_their_key(
    options: dict[str, list[int]], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        mobilenet(shape, **options)
