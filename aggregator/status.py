"""What the aggregator shows: one picture of the run, for the page, the live view and `--json`."""

from msgspec import Struct

from hedgerow.core.messages import NodeState


class CurvePoint(Struct, frozen=True):
    """A version's evaluation beside what it had cost by then."""

    version: int
    metrics: dict[str, float]
    updates_applied: int
    bytes_up: int
    at_s: float


class GatewayView(Struct, frozen=True):
    """A gateway as the aggregator last heard of it; `seen_s` is seconds ago, -1 before the first report."""

    gateway: str
    connected: bool
    seen_s: float
    nodes: int
    counters: dict[str, int]


class NodeView(Struct, frozen=True):
    """A node as its gateway last reported it.

    `staleness` is its last applied update's, -1 for none; `traffic` are its link's counters over all its
    restarts.
    """

    state: NodeState
    gateway: str
    seen_s: float
    applied: int
    staleness: int
    traffic: dict[str, int]


class Status(Struct, frozen=True):
    """The whole picture. `done` is "" while training goes on, else why it ended."""

    site: str
    model: str
    version: int
    term: int
    uptime_s: float
    done: str
    metric: str
    target: float | None
    plan_units: list[str]
    plan_parameters: int
    model_parameters: int
    buffered_updates: int
    merge_at: int
    updates_applied: int
    staleness_histogram: dict[int, int]
    counters: dict[str, int]
    curve: list[CurvePoint]
    gateways: list[GatewayView]
    nodes: list[NodeView]
