"""What a protocol asks of the world, and what the world answers.

A protocol object is synchronous: plain values in through `start`, `receive`, `timer_fired` and `job_done`,
a drained list of effects out. The driver performs effects in their order through the ports of
`hedgerow.runtime.ports`; nothing here knows a clock, a socket or a file.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from msgspec import Struct, field

from hedgerow.core.execution import Execution
from hedgerow.core.plan import Plan
from hedgerow.core.units import Vector


class Send(Struct, frozen=True):
    """Send a message to one peer ("node/ID", "gw/ID" or "aggregator"); it may be lost on the way."""

    peer: str
    message: Any


class Announce(Struct, frozen=True):
    """Publish a message that replaces the channel's last one and reaches late followers; None clears it."""

    channel: str
    message: Any | None


class Follow(Struct, frozen=True):
    """Receive a channel's last and every later announcement."""

    channel: str


class Unfollow(Struct, frozen=True):
    """Stop following a channel."""

    channel: str


class SetTimer(Struct, frozen=True):
    """Call `timer_fired(name)` once, `after_us` from now; replaces a pending timer of the same name."""

    name: str
    after_us: int


class CancelTimer(Struct, frozen=True):
    """Forget a pending timer, if there is one."""

    name: str


class Train(Struct, frozen=True):
    """Train `plan`'s units from `params`, shape (P,); answered by `Trained` or `JobFailed`.

    `offset`, shape (p,), is added to the plan's units first: a node that is offline goes on from its own
    last result, and the delta counts from there. `proximal` is FedProx's mu (Li et al., 2020): each step is
    also pulled towards where the training began, by mu times the distance. `max_steps` above 0 ends the
    training after so many steps; `memory_bytes` above 0 bounds its tensors: it is done in the fastest way
    that fits, and fails where none does.
    """

    job: int
    plan: Plan
    params: Vector
    passes: int
    batch_size: int
    learning_rate: float
    seed: int
    offset: Vector | None = None
    proximal: float = 0.0
    max_steps: int = 0
    memory_bytes: int = 0


class Trained(Struct, frozen=True):
    """The result of `Train`: `delta` = after - before on the plan's units, shape (p,).

    `step_square_sum` is the sum over steps of the squared norm of the step's gradient (for kappa);
    `loss_first` and `loss_last` are mean losses of the first and last pass; `peak_bytes` is the measured
    peak of training memory, the allocator's figure, `planned_bytes` what it was to be before anything ran (0
    where nothing was planned), and `execution` how the steps were computed (None where that is not known).
    """

    job: int
    delta: Vector
    examples: int
    steps: int
    step_square_sum: float
    loss_first: float
    loss_last: float
    peak_bytes: int
    planned_bytes: int = 0
    execution: Execution | None = None


class Probe(Struct, frozen=True):
    """Measure how much `plan`'s units would gain from training at `params`, shape (P,).

    Nothing is trained. Gradients of `batches` batches of `batch_size` examples are taken; within
    `memory_bytes` above 0. Answered by `Probed` or `JobFailed`.
    """

    job: int
    plan: Plan
    params: Vector
    batch_size: int
    batches: int
    seed: int
    memory_bytes: int = 0


class Probed(Struct, frozen=True):
    """The result of `Probe`: each unit's mean squared gradient norm over `batches` batches."""

    job: int
    squares: Mapping[str, float]
    batches: int


class Evaluate(Struct, frozen=True):
    """Evaluate `params`, shape (P,), on the evaluation set; answered by `Evaluated` or `JobFailed`."""

    job: int
    version: int
    params: Vector


class Evaluated(Struct, frozen=True):
    """The result of `Evaluate`: metric names to values."""

    job: int
    version: int
    metrics: Mapping[str, float]


class Save(Struct, frozen=True):
    """Write rows durably in one transaction, in order; answered by `Saved` once they are on disk."""

    job: int
    rows: tuple[Any, ...]


class Saved(Struct, frozen=True):
    """The rows of `Save` with this job number are durable."""

    job: int


class JobFailed(Struct, frozen=True):
    """A job could not be done; `detail` says why. Nothing of it is durable."""

    job: int
    detail: str


class Record(Struct, frozen=True):
    """Count and log an event; `fields` become log fields, `amount` is added to the event's counter."""

    event: str
    amount: int = 1
    fields: Mapping[str, Any] = field(default_factory=dict)


class LinkUp(Struct, frozen=True):
    """Local input to `receive`: a link to `peer` works (again); what was in flight may be lost."""


class LinkDown(Struct, frozen=True):
    """Local input to `receive`: the link to `peer` is gone."""


class Undelivered(Struct, frozen=True):
    """Local input to `receive`: `message` was certainly or possibly not taken by the peer.

    `retry_after_us` is what the peer asked for, 0 when it asked for nothing.
    """

    message: Any
    detail: str
    retry_after_us: int = 0


Effect = (
    Send
    | Announce
    | Follow
    | Unfollow
    | SetTimer
    | CancelTimer
    | Train
    | Probe
    | Evaluate
    | Save
    | Record
)
JobResult = Trained | Probed | Evaluated | Saved | JobFailed


class TierProtocol(Protocol):
    """What the driver needs of a tier. Times are monotonic microseconds of an arbitrary origin."""

    def start(self, now_us: int) -> None:
        """Begin; called once."""

    def receive(self, peer: str, message: Any, now_us: int) -> None:
        """Take a message, a `LinkUp` or a `LinkDown` from `peer`; raises PeerError for a bad one."""

    def timer_fired(self, name: str, now_us: int) -> None:
        """Take a timer set earlier."""

    def job_done(self, result: JobResult, now_us: int) -> None:
        """Take the result of a `Train`, `Probe`, `Evaluate` or `Save`."""

    def effects(self) -> list[Effect]:
        """Return what must be done now, in order, and forget it."""
