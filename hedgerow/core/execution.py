"""How a training step is computed: the same gradients for more or less memory and time.

The same sum can be taken a few examples at a time (gradient accumulation), and activations can be computed
again instead of being kept (Chen et al., 2016, "Training deep nets with sublinear memory cost").
"""

from dataclasses import dataclass

SEGMENTS = (4, 2, 1)
"""Lengths of segments tried, in stages."""


@dataclass(frozen=True, slots=True, order=True)
class Execution:
    """`micro_batch` examples at a time; backward in segments of `segment` stages, 0 for one graph.

    Each segment is computed again from its input, which alone is kept from the forward pass. With `autograd`
    the gradient is the library's own of everything at once: the usual way, to compare with.
    """

    micro_batch: int
    segment: int = 0
    autograd: bool = False

    @property
    def in_words(self) -> str:
        """Say it in a few words."""
        examples = f"{self.micro_batch} at a time"
        if self.autograd:
            return f"{examples}, one gradient"
        if not self.segment:
            return examples
        return f"{examples}, recomputed by {self.segment} stage{'s' * (self.segment > 1)}"

    @property
    def key(self) -> tuple[int, int, bool]:
        """The settings as plain values."""
        return self.micro_batch, self.segment, self.autograd

    def cost(self, batch: int) -> float:
        """Return how long a step of `batch` examples takes, in about the time of the arithmetic alone.

        A quarter of it is added by each micro-batch for the start of its kernels, and by recomputation 15 %
        (measured on networks of convolutions; recomputed are only values that a gradient needs).
        """
        return batch / self.micro_batch * 0.25 + (1.15 if self.segment else 1.0)


def micro_batches(batch: int) -> list[int]:
    """Return the sizes that `batch` can be taken in, largest first."""
    return [size for size in range(batch, 0, -1) if batch % size == 0]


def segments(stages: int) -> list[int]:
    """Return the lengths of segments that `stages` trained stages can be cut into; 0 is one graph."""
    return [0, *(length for length in SEGMENTS if length < stages)]


def executions(batch: int, stages: int) -> list[Execution]:
    """Return the ways to compute a step of `batch` examples through `stages` trained stages, fastest first.

    Micro-batches are divisors of the batch.
    """
    found = [Execution(m, s) for m in micro_batches(batch) for s in segments(stages)]
    return sorted(found, key=lambda execution: execution.cost(batch))
