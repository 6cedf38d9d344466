"""The one thread that owns tinygrad: compiling is not thread-safe, and the loop must not wait for it."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from hedgerow.core.effects import Evaluate, Evaluated, Probe, Probed, Train, Trained
from hedgerow.runtime.ports import ComputeError

J = TypeVar("J")
T = TypeVar("T")


class Worker:
    """A `Compute` port on a thread of its own; a tier passes what it can do."""

    def __init__(self) -> None:
        self._train: Callable[[Train], Trained] | None = None
        self._probe: Callable[[Probe], Probed] | None = None
        self._evaluate: Callable[[Evaluate], Evaluated] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tinygrad")

    async def run(self, function: Callable[[], T]) -> T:
        """Run a function on the thread, for set-up such as loading the model."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def use(
        self,
        train: Callable[[Train], Trained] | None = None,
        probe: Callable[[Probe], Probed] | None = None,
        evaluate: Callable[[Evaluate], Evaluated] | None = None,
    ) -> None:
        """Set what this tier's jobs do; called when set-up is over."""
        self._train, self._probe, self._evaluate = train, probe, evaluate

    async def train(self, job: Train) -> Trained:
        """Train on the thread; whatever goes wrong is a ComputeError."""
        return await self._compute(self._train, job)

    async def probe(self, job: Probe) -> Probed:
        """Probe on the thread; whatever goes wrong is a ComputeError."""
        return await self._compute(self._probe, job)

    async def evaluate(self, job: Evaluate) -> Evaluated:
        """Evaluate on the thread; whatever goes wrong is a ComputeError."""
        return await self._compute(self._evaluate, job)

    def close(self) -> None:
        """Let the thread end after the job under way, without waiting for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _compute(self, function: Callable[[J], T] | None, job: J) -> T:
        if function is None:
            raise RuntimeError("this tier does not compute")
        try:
            return await self.run(lambda: function(job))
        except Exception as error:
            raise ComputeError(f"{type(error).__name__}: {error}") from error
