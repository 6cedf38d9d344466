"""What the aggregator shows: one picture of the run, for the page, the live view and `--json`."""

from msgspec import Struct

from aggregator.account import Account
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


class PlanRow(Struct, frozen=True):
    """A memory class's plan: how much it trains, and what that needs by the memory model."""

    memory_class: str
    units: int
    parameters: int
    budget_bytes: int
    planned_bytes: int


class PlanView(Struct, frozen=True):
    """A searched plan.

    `since_version` is the version that it came with; `value_share` what it is worth of all units' values.
    The last search was at `searched_version`, -1 for none since the start, for `reason`, and `changed` the
    plan or not. `answers` of `answers_needed` nodes have answered the probe that is open, 0 while none is.
    """

    since_version: int
    value_share: float
    classes: list[PlanRow]
    searched_version: int
    reason: str
    changed: bool
    answers: int
    answers_needed: int


class LocalMetric(Struct, frozen=True):
    """A metric that nodes have measured on their own examples, over the `nodes` that did.

    `kind` is "global" for the version as published, "personal" with each node's own units.
    """

    metric: str
    kind: str
    mean: float
    worst_decile: float
    nodes: int


class Status(Struct, frozen=True):
    """The whole picture. `done` is "" while training goes on, else why it ended.

    `plan` is None where the plan is fixed. `restored` is "" for a ledger that goes on where it was, else why
    it went on under new version numbers in this start. `disk_refuses` says that partials cannot be made
    durable now.
    """

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
    plan: PlanView | None = None
    local_metrics: list[LocalMetric] = []
    account: Account = Account()
    restored: str = ""
    disk_refuses: bool = False
