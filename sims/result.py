"""What one strategy came to in one scenario and seed: plain figures, as they are written to JSON."""

from typing import Any

from msgspec import Struct


class CurvePoint(Struct, frozen=True, kw_only=True):
    """The model as it stood at a virtual time, and what it had cost by then."""

    t_s: float
    version: int
    value: float
    updates: int
    uplink_bytes: int
    downlink_bytes: int
    energy_j: float


class NodeTrack(Struct, frozen=True, kw_only=True):
    """One node's day: `trained` and `away` are lists of [from, to] in virtual seconds, cut at 400 each.

    `value` is the model's on the node's own examples, `personal` the same with the units it keeps to itself.
    """

    node: str
    device: str
    applied: int
    trained: list[tuple[float, float]]
    away: list[tuple[float, float]]
    value: float | None = None
    personal: float | None = None


class SitePoint(Struct, frozen=True, kw_only=True):
    """One site as it stood at a virtual time: the version its nodes are given, and what waits there.

    `value` is on the evaluation set, `own` the mean over the site's nodes, each on its own examples.
    """

    t_s: float
    version: int
    provisional: bool
    value: float
    own: float
    in_outboxes: int
    spooled: int


class SiteCurve(Struct, frozen=True, kw_only=True):
    """One site over the run."""

    site: str
    points: list[SitePoint]


class StrategyResult(Struct, frozen=True, kw_only=True):
    """One strategy's figures. Times and energies are virtual, `wall_s` and `cpu_s` are this machine's.

    Bytes are those on the links between nodes and brokers, both ways, envelopes included;
    `gateway_uplink_bytes` and `gateway_downlink_bytes` those between gateways and the aggregator. `drops`
    counts what was lost or refused, by reason. `worst_decile` is the mean value of the worst tenth of the
    nodes on their own examples: those kept for tests (`data.local_test_fraction`) if there are any, else
    those they train on; `mean_personal_value` and `personal_worst_decile` are the same with each node's
    personal units. `sites` are curves of each site, where `scenario.sites` asks for them. `violations` are
    broken promises (C1 to C6); there must be none.
    """

    time_to_target_s: float | None
    final_accuracy: float
    best_accuracy: float
    uplink_bytes: int
    downlink_bytes: int
    gateway_uplink_bytes: int
    gateway_downlink_bytes: int
    peak_training_bytes: int
    energy_j: float
    updates_applied: int
    versions: int
    drops: dict[str, int]
    wall_s: float
    cpu_s: float
    issued: int
    rejected: int
    expired: int
    coalesced: int = 0
    waiting: int
    plan_parameters: int
    model_parameters: int
    settings: dict[str, Any]
    staleness_histogram: dict[int, int]
    worst_decile: float | None
    mean_node_value: float | None
    mean_personal_value: float | None = None
    personal_worst_decile: float | None = None
    curve: list[CurvePoint]
    nodes: list[NodeTrack]
    trace_hash: str
    virtual_s: float
    peak_rss_bytes: int
    phases_cpu_s: dict[str, float]
    sites: list[SiteCurve] = []
    violations: list[str]


class Report(Struct, frozen=True, kw_only=True):
    """All strategies of one scenario and seed. `metric` names what `value` and `..._accuracy` are."""

    scenario: str
    about: str
    seed: int
    nodes: int
    gateways: int
    metric: str
    target: float
    duration_s: float
    command: str
    strategies: dict[str, StrategyResult]
