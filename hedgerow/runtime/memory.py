"""Measures the peak memory of tensors at tinygrad's allocator."""

import mmap
from types import TracebackType
from typing import Any, Self

from tinygrad.device import Buffer, Device


class PeakMeter:
    """Counts live tensor memory between `with` and its end; `peak_bytes` is the largest sum.

    Counted: every device buffer allocated meanwhile, that is parameters, batches and the arena of
    intermediates, until it is freed. Not counted: what was allocated before, numpy copies, Python objects,
    kernels' code, the compiler, and rounding up to pages. `mapped_bytes` is the largest sum of what the
    allocator itself then held, in whole pages: tinygrad keeps freed buffers for buffers of the same size, so
    what it had kept before is given back first. Only one meter can run at a time, in the thread that owns
    tinygrad.
    """

    def __init__(self) -> None:
        self.peak_bytes = 0
        self.mapped_bytes = 0
        self._live: dict[int, int] = {}
        self._live_bytes = 0
        self._mapped_now = 0
        self._allocator: Any = None
        self._allocate: Any = None
        self._deallocate: Any = None

    def __enter__(self) -> Self:
        # The first wait for the device allocates its signals; they belong to the process.
        Device[Device.DEFAULT].synchronize()  # type: ignore[no-untyped-call]
        self._allocator = Device[Device.DEFAULT].allocator
        self._allocator.free_cache()
        self._watch_mappings()
        self._allocate, self._deallocate = Buffer.allocate, Buffer.deallocate
        meter = self

        def allocate(buffer: Buffer, *args: Any, **options: Any) -> Buffer:
            done: Buffer = meter._allocate(buffer, *args, **options)
            meter._add(buffer)
            return done

        def deallocate(buffer: Buffer) -> None:
            meter._remove(buffer)
            meter._deallocate(buffer)

        Buffer.allocate = allocate  # type: ignore[method-assign, assignment]
        Buffer.deallocate = deallocate  # type: ignore[method-assign]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        Buffer.allocate = self._allocate  # type: ignore[method-assign]
        Buffer.deallocate = self._deallocate  # type: ignore[method-assign]
        # The class's own methods are behind these.
        del self._allocator._alloc, self._allocator._free  # noqa: SLF001

    def _watch_mappings(self) -> None:
        """Count what the allocator maps and gives back."""
        allocator, sizes = self._allocator, dict[int, int]()
        take, give = allocator._alloc, allocator._free  # noqa: SLF001

        def allocate(size: int, options: Any) -> Any:
            taken = take(size, options)
            sizes[id(taken)] = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            self._mapped_now += sizes[id(taken)]
            self.mapped_bytes = max(self.mapped_bytes, self._mapped_now)
            return taken

        def free(opaque: Any, options: Any) -> None:
            self._mapped_now -= sizes.pop(id(opaque), 0)
            give(opaque, options)

        allocator._alloc, allocator._free = allocate, free  # noqa: SLF001

    def _add(self, buffer: Buffer) -> None:
        # Views share their base's memory; NPY and PYTHON buffers are numpy's or Python's own.
        if buffer._base is None and buffer.device.startswith("CPU"):  # noqa: SLF001
            self._live[id(buffer)] = buffer.nbytes
            self._live_bytes += buffer.nbytes
            self.peak_bytes = max(self.peak_bytes, self._live_bytes)

    def _remove(self, buffer: Buffer) -> None:
        self._live_bytes -= self._live.pop(id(buffer), 0)
