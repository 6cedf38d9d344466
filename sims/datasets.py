"""Data sets whose files need more than a look into a .npz: for data.source = "sims.datasets:NAME"."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hedgerow.runtime.sources import read_digits

Images = NDArray[np.uint8]


def delta_coded_images(*files: str) -> dict[str, NDArray[Any]]:
    """Return the images and classes of .npz files with `x_enc` and `y`; the last file is the evaluation set.

    Images are uint8 RGB, shape (rows, height, width, 3), stored as a CIFAR-10 subset is (Krizhevsky, 2009):
    see `decoded`. Raises ValueError for fewer than two files, KeyError for a missing array.
    """
    if len(files) < 2:  # noqa: PLR2004
        raise ValueError(f"data.files has {len(files)}; name training files, then the test file")
    parts = [_examples(file) for file in files]
    *training, (test_inputs, test_targets) = parts
    return {
        "inputs": np.concatenate([images for images, _ in training]),
        "targets": np.concatenate([classes for _, classes in training]),
        "test_inputs": test_inputs,
        "test_targets": test_targets,
    }


def decoded(coded: Images) -> Images:
    """Return RGB images, shape (rows, height, width, 3), of shape (rows, 3, height, width) as stored.

    Stored are green, red - green and blue - green, each as differences downwards, then to the right, all
    modulo 256: smooth images compress better so.
    """
    sums = np.cumsum(coded, axis=2, dtype=np.uint8)
    np.cumsum(sums, axis=3, dtype=np.uint8, out=sums)
    green = sums[:, 0]
    return np.stack([sums[:, 1] + green, green, sums[:, 2] + green], axis=-1)


def _examples(file: str) -> tuple[Images, NDArray[np.uint8]]:
    with np.load(file, allow_pickle=False) as arrays:
        return decoded(arrays["x_enc"]), arrays["y"]


SITES, NODES_PER_SITE, HOME_SHARE = 3, 10, 0.7


def digits_by_site() -> dict[str, NDArray[Any]]:
    """Return scikit-learn's handwritten digits as three sites of ten nodes see them.

    Digit d is at home at site d modulo 3: `HOME_SHARE` of its images are there, the rest anywhere. `groups`
    numbers the nodes so that `data.split = "group"` deals each its own, with node n at broker n modulo 3.
    """
    digits = read_digits()
    labels = digits.targets
    rng = np.random.default_rng(0)
    anywhere = rng.integers(0, SITES, len(labels))
    site = np.where(rng.uniform(size=len(labels)) < HOME_SHARE, labels % SITES, anywhere)
    node = site + SITES * rng.integers(0, NODES_PER_SITE, len(labels))
    return {"inputs": digits.inputs, "targets": labels, "groups": node}
