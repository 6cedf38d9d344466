"""The configuration: one schema for every role, checked once, before anything starts.

Plain TOML tables become frozen structs. Unknown keys, wrong types and values out of range are refused
with the dotted path, the value and what would be right. Times are seconds (`_s`), sizes bytes (`_bytes`).
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

Identifier = Annotated[str, Meta(pattern=r"\A[a-z0-9-]{1,32}\Z")]
Positive = Annotated[int, Meta(gt=0)]
Natural = Annotated[int, Meta(ge=0)]
PositiveFloat = Annotated[float, Meta(gt=0)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


class _Section(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration."""


class FleetConfig(_Section, frozen=True, kw_only=True):
    """Who takes part. `nodes` and `gateways` are how many `hedgerow up` starts."""

    site: Identifier = "home"
    model: Identifier = "model"
    seed: Natural = 1
    nodes: Positive = 8
    gateways: Positive = 2


class BrokerConfig(_Section, frozen=True, kw_only=True):
    """The MQTT broker. `kind` says who runs it; `port` 0 picks a free one where we start it."""

    kind: Literal["auto", "mosquitto", "embedded", "external"] = "auto"
    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 0
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    username: str = ""
    password: str = ""
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_cert_file: str = ""
    server_key_file: str = ""
    keepalive_s: Annotated[int, Meta(ge=2, le=3600)] = 30
    max_packet_bytes: Annotated[int, Meta(ge=4096)] = 1 << 20
    chunk_bytes: Annotated[int, Meta(ge=512, le=65536)] = 32768


class HttpConfig(_Section, frozen=True, kw_only=True):
    """The aggregator's HTTP service and, for gateways, how to reach it."""

    host: str = "127.0.0.1"
    port: Annotated[int, Meta(ge=0, le=65535)] = 8480
    url: str = ""
    token: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    max_body_bytes: Positive = 64 << 20
    timeout_s: PositiveFloat = 30.0


class DataConfig(_Section, frozen=True, kw_only=True):
    """Where examples come from and how they fall on nodes.

    `source` is "digits", a path ending in .npz or .csv, or "module:function", called with the paths `files`.
    For .npz and .csv, `inputs`, `targets`, `group`, `baseline`, `train_mask` and `test_mask` name keys or
    columns. `test_inputs` and `test_targets` name arrays of a .npz that hold the evaluation set by itself;
    everything else then trains. `smallest_group` leaves out groups with fewer training examples.

    `split` "shards" cuts the examples, sorted by class, into `shards_per_node` pieces for each node.
    `local_test_fraction` of each node's examples are kept from training; the node tests the model on them.
    """

    source: str
    files: list[str] = []
    inputs: str = "x"
    columns: list[str] = []
    targets: str = "y"
    group: str = ""
    baseline: str = ""
    train_mask: str = ""
    test_mask: str = ""
    test_inputs: str = ""
    test_targets: str = ""
    input_scale: list[float] = []
    input_offset: list[float] = []
    target_scale: float = 1.0
    split: Literal["none", "dirichlet", "shards", "group"] = "none"
    alpha: PositiveFloat = 0.3
    shards_per_node: Positive = 2
    smallest_group: Natural = 0
    held_out_groups: list[int | str] = []
    held_out_fraction: Fraction = 0.2
    local_test_fraction: Annotated[float, Meta(ge=0, lt=1)] = 0.0


class TaskConfig(_Section, frozen=True, kw_only=True):
    """The model: "mlp", "cnn", "cnn1d", "mobilenet" or the user's "module:attribute" with its `options`."""

    name: str = "mlp"
    kind: Literal["classification", "regression"] = "classification"
    outputs: Positive = 1
    options: dict[str, Any] = {}


SEARCHED_GROUPS = 4
"""Into how many units tensors are cut for a search, where the configuration does not say."""


class PlanConfig(_Section, frozen=True, kw_only=True):
    """Which units are trained: exactly one of `units`, `last_layers`, `preset` and `budget_bytes`.

    With `budget_bytes` the plan is searched: the units of most value that fit a node's training memory.
    `class_budgets` has other budgets for nodes by `node.memory_class`; their plans are parts of the widest.
    `groups` cuts tensors into units of input channels; 0 takes 4 where the plan is searched, else 1.
    The first plan is searched as if late stages were worth more. By the fleet's gradients it is searched at
    version `warmup_versions` (0: at once, for a model that has learnt already), then every `replan_versions`
    (0: never) and when the loss stalls for `stall_versions`, and replaced by one worth at least `hysteresis`
    more. `probe_share` of the nodes measure the units' values for it, on `probe_batches` batches each.
    Of the plans worth `enough_value` of the best one the fastest is taken (1: the most valuable one, however
    slow); after a stall the most valuable. `personal` units (or layers) are trained on each node and never
    sent.
    """

    units: list[str] = []
    last_layers: Natural = 0
    preset: Literal["", "all", "biases+last"] = ""
    budget_bytes: Natural = 0
    class_budgets: dict[Identifier, Positive] = {}
    groups: Annotated[int, Meta(ge=0, le=64)] = 0
    warmup_versions: Natural = 10
    replan_versions: Natural = 50
    stall_versions: Natural = 20
    hysteresis: Annotated[float, Meta(ge=0, le=10)] = 0.1
    enough_value: Fraction = 0.6
    probe_share: Annotated[float, Meta(gt=0, le=1)] = 0.2
    probe_batches: Annotated[int, Meta(ge=1, le=1024)] = 4
    personal: list[str] = []

    @property
    def unit_groups(self) -> int:
        """Into how many units tensors are cut."""
        return self.groups or (SEARCHED_GROUPS if self.budget_bytes else 1)


class LocalTrainingConfig(_Section, frozen=True, kw_only=True):
    """Local training of one memory class; the keys are those of [training]."""

    passes: Positive = 1
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 0.1
    proximal: Annotated[float, Meta(ge=0)] = 0.0
    time_budget_s: Annotated[float, Meta(ge=0)] = 0.0


class TrainingConfig(_Section, frozen=True, kw_only=True):
    """Local training on a node. `passes` counts passes over the node's own data.

    `proximal` is FedProx's mu: it holds a node's training near the version it began from. A node that needs
    longer than `time_budget_s` (0: no bound) takes fewer steps.
    Updates travel as `encoding`, versions as `downlink`; at the aggregator all is float32.
    `memory_classes` has other settings for nodes whose `node.memory_class` names one of its tables.
    """

    passes: Positive = 1
    batch_size: Positive = 16
    learning_rate: PositiveFloat = 0.1
    proximal: Annotated[float, Meta(ge=0)] = 0.0
    time_budget_s: Annotated[float, Meta(ge=0)] = 0.0
    clip_norm: PositiveFloat = 10.0
    encoding: Literal["int8", "fp32", "int4", "sign", "topk"] = "int8"
    downlink: Literal["fp32", "fp16"] = "fp32"
    memory_classes: dict[Identifier, LocalTrainingConfig] = {}


class StalenessConfig(_Section, frozen=True, kw_only=True):
    """How the weight falls with age. `half_life` in versions, 0 lets the fleet's own staleness set it."""

    law: Literal["exponential", "polynomial", "hinge", "constant"] = "exponential"
    half_life: Annotated[float, Meta(ge=0)] = 0.0
    exponent: PositiveFloat = 0.5
    hinge_after: Annotated[int, Meta(ge=0, le=1_000_000)] = 4
    hinge_slope: PositiveFloat = 0.5
    tau_max: Annotated[int, Meta(ge=0, le=1_000_000)] = 50


class AggregationConfig(_Section, frozen=True, kw_only=True):
    """The merge. `buffer_size` is K, in original updates; `deadline_s` is the latest merge.

    `learning_rate` is the server's eta; 0 takes 1 / (1 + half the mean staleness): of N nodes that train
    at once N / K merges share one origin, and whole steps would add up past it.
    `count_max` bounds the updates of one partial aggregate; fewer leave more fixed-point precision.
    """

    buffer_size: Positive = 4
    deadline_s: PositiveFloat = 60.0
    learning_rate: Annotated[float, Meta(ge=0)] = 0.0
    example_exponent: Fraction = 0.0
    example_cap: Positive = 1024
    variance: Literal["none", "kappa_diversity", "kappa_inverse"] = "none"
    count_max: Annotated[int, Meta(ge=1, le=4096)] = 64
    checkpoint_versions: Positive = 50


class NodeConfig(_Section, frozen=True, kw_only=True):
    """One node's habits and bounds. `home` is the gateway it prefers; "" lets it choose.

    `memory_bytes` bounds the tensors of a training and what updates leave out (0: a searched plan's budget,
    where that can be kept).
    `max_update_bytes` bounds an update's payload on a thin link: the node takes the finest encoding that fits
    (0: the fleet's).
    `test_versions` is how many versions it waits at least between tests on its own examples.
    """

    home: str = ""
    sleep_s: Annotated[float, Meta(ge=0)] = 0.0
    outbox_updates: Positive = 64
    offline_updates: Natural = 4
    resend_s: PositiveFloat = 10.0
    memory_class: Identifier = "default"
    memory_bytes: Natural = 0
    max_update_bytes: Natural = 0
    test_versions: Positive = 5


class GatewayConfig(_Section, frozen=True, kw_only=True):
    """One gateway's buffer and flush rule. `flush_s` 0 derives the timer from the nodes' pace.

    `report_s` is how often the aggregator hears of the nodes; a metered uplink wants it longer.
    While there has been no way to the aggregator for `spool_after_s`, held updates are also on disk.
    `peers` are the gateways it hands partial aggregates to when its own uplink is down; without any, every
    gateway of the site. For others it holds up to `relay_bytes`.
    """

    flush_count: Positive = 4
    flush_s: Annotated[float, Meta(ge=0)] = 0.0
    held_updates: Positive = 4096
    held_bytes: Positive = 64 << 20
    report_s: PositiveFloat = 2.0
    spool_after_s: PositiveFloat = 30.0
    peers: list[Identifier] = []
    relay_bytes: Positive = 16 << 20
    metrics_host: str = "127.0.0.1"
    metrics_port: Annotated[int, Meta(ge=0, le=65535)] = 0


class IslandConfig(_Section, frozen=True, kw_only=True):
    """A site that goes on learning when no gateway of it reaches the aggregator.

    Off unless `enabled`, for what it learns is merged only approximately. After `after_s` without an uplink
    one gateway acts as the aggregator: it merges every `buffer_size` updates, or at its `deadline_s`, into
    provisional versions. What the site came to is merged when an uplink returns, its weight for age at least
    `least_weight` (0: that of the oldest update a version takes).
    """

    enabled: bool = False
    after_s: PositiveFloat = 600.0
    buffer_size: Positive = 4
    deadline_s: PositiveFloat = 60.0
    least_weight: Fraction = 0.0


class StorageConfig(_Section, frozen=True, kw_only=True):
    """Bounds on what each role keeps on disk. `ballast_bytes` are held back for a full disk's clean-up."""

    node_bytes: Positive = 1 << 30
    gateway_bytes: Positive = 64 << 20
    aggregator_bytes: Positive = 16 << 30
    ballast_bytes: Natural = 1 << 20


class StopConfig(_Section, frozen=True, kw_only=True):
    """When training ends: a metric reaches its target, or a limit is met."""

    metric: str = "accuracy"
    target: float | None = None
    max_versions: Positive = 1000
    max_s: PositiveFloat = 86400.0


class LogsConfig(_Section, frozen=True, kw_only=True):
    """What each process logs to its standard error."""

    json: bool = True
    level: Literal["debug", "info", "warning", "error"] = "info"


class Config(_Section, frozen=True, kw_only=True):
    """The whole file."""

    fleet: FleetConfig = FleetConfig()
    broker: BrokerConfig = BrokerConfig()
    http: HttpConfig = HttpConfig()
    data: DataConfig
    task: TaskConfig = TaskConfig()
    plan: PlanConfig = PlanConfig(preset="all")
    training: TrainingConfig = TrainingConfig()
    staleness: StalenessConfig = StalenessConfig()
    aggregation: AggregationConfig = AggregationConfig()
    node: NodeConfig = NodeConfig()
    gateway: GatewayConfig = GatewayConfig()
    island: IslandConfig = IslandConfig()
    storage: StorageConfig = StorageConfig()
    stop: StopConfig = StopConfig()
    logs: LogsConfig = LogsConfig()

    @property
    def memory_budgets(self) -> dict[str, int]:
        """Each memory class's budget in bytes, 0 without one: its own, or the fleet's."""
        own = self.plan.class_budgets
        names = ("default", *own, *self.training.memory_classes)
        return {name: own.get(name, self.plan.budget_bytes) for name in names}
