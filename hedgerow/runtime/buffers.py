"""A tinygrad tensor and a numpy array over the same memory.

Writing a batch through numpy costs microseconds; `Tensor(array).realize()` costs milliseconds, more than
a small training step. It works because the CPU device runs kernels in the calling thread.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray
from tinygrad.device import Buffer
from tinygrad.dtype import _from_np_dtype
from tinygrad.tensor import Tensor


@dataclass(frozen=True, slots=True)
class SharedArray:
    """`array` is valid as long as this object lives; its first values are arbitrary."""

    tensor: Tensor
    array: NDArray[Any]

    @classmethod
    def of(cls, shape: Iterable[int], dtype: DTypeLike = np.float32) -> "SharedArray":
        """Allocate memory for `shape`, at least one value."""
        wanted = tuple(shape)
        if 0 in wanted:
            raise ValueError(f"a shared array needs at least one value, not shape {wanted}")
        kind: np.dtype[Any] = np.dtype(dtype)
        tensor = Tensor.empty(*wanted, dtype=_from_np_dtype(kind)).realize()
        buffer = tensor.uop.buffer
        if not isinstance(buffer, Buffer):
            raise TypeError("a shared array lies on one device; set DEV=CPU")
        memory = buffer.ensure_allocated().as_memoryview(force_zero_copy=True)
        return cls(tensor, np.frombuffer(memory, kind).reshape(wanted))

    @classmethod
    def holding(cls, values: NDArray[Any]) -> "SharedArray":
        """Allocate memory and copy `values` into it."""
        shared = cls.of(values.shape, values.dtype)
        shared.array[...] = values
        return shared
