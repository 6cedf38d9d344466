"""The scenario file: a fleet's configuration, and the world it lives in.

A scenario is a TOML file with the tables of a fleet's configuration (`hedgerow.core.config`) and, beside
them, the tables below: [scenario], [network], [links.NAME], [power.NAME], [[devices]], [strategies.NAME],
[[faults]] and so on.
Times are virtual seconds (`_s`), rates bits per second (`_bps`), energies joules (`_j`).
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from hedgerow.core.config import Config, Fraction, Identifier, Natural, Positive, PositiveFloat

NonNegative = Annotated[float, Meta(ge=0)]
Probability = Annotated[float, Meta(ge=0, lt=1)]
Word = Annotated[str, Meta(pattern=r"\A[a-z0-9_-]{1,32}\Z")]


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of a scenario."""


class Draw(_Table, frozen=True, kw_only=True):
    """A value drawn once per device: exactly one key.

    `uniform` = [low, high]; `log_uniform` = [low, high]; `lognormal` = [median, sigma of the logarithm];
    `choice` = one of these; `trace` = a column of real measurements (see `sims.traces`), times `scale`.
    """

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    lognormal: tuple[float, float] | None = None
    choice: list[float] = []
    trace: str = ""
    scale: float = 1.0


Value = float | Draw
"""A fixed number, or how to draw one."""


class WarmStart(_Table, frozen=True, kw_only=True):
    """Central training of the whole model on a public share of the data before version 0; 0 passes for none.

    The same for every strategy. The public examples are taken from the training data and belong to no node.
    """

    share: Fraction = 0.1
    passes: Natural = 0
    batch_size: Positive = 32
    learning_rate: PositiveFloat = 0.1


class ScenarioTable(_Table, frozen=True, kw_only=True):
    """The run. `duration_s` and `evaluate_every_s` are virtual; `cpu_budget_s` is what all of it may cost.

    `stop_at_target` ends a strategy once it has reached the target; `compute` "surrogate" replaces training
    by a convex problem of as many parameters as `surrogate_parameters`, for runs about faults and scale.
    `check` false leaves out C4, the replay of every version. `sites` also evaluates what each site's nodes
    have, which differs from the newest version while a site is cut off.
    """

    name: Word
    about: str = ""
    seed: Natural = 1
    duration_s: PositiveFloat
    evaluate_every_s: PositiveFloat
    target: float
    stop_at_target: bool = False
    strategies: Annotated[list[Word], Meta(min_length=1)]
    compute: Literal["real", "surrogate"] = "real"
    surrogate_parameters: Positive = 64
    cpu_budget_s: PositiveFloat = 600.0
    check: bool = True
    sites: bool = False


class NetworkTable(_Table, frozen=True, kw_only=True):
    """The wires all share: `brokers`, one per site; `gateway_link`, from gateways to the aggregator."""

    brokers: Positive = 1
    gateway_link: str = ""


class LinkTable(_Table, frozen=True, kw_only=True):
    """A kind of link. Rates 0 mean without limit.

    `loss` and `repeat` are chances per message, `reorder_s` is the longest extra delay that lets messages
    overtake one another. `trace` names measured rates over time ("hsdpa_3g", "ucc_5g", "lora_vineyard").
    `max_update_bytes` bounds the payload of an update from a node with this link; 0 leaves `node`'s.
    """

    up_bps: Value = 0.0
    down_bps: Value = 0.0
    latency_s: Value = 0.02
    reorder_s: NonNegative = 0.0
    loss: Probability = 0.0
    repeat: Probability = 0.0
    trace: str = ""
    max_update_bytes: Natural = 0


class PowerTable(_Table, frozen=True, kw_only=True):
    """A device's energy. Without a battery (0) it is only counted.

    A device at 0 dies, also in the middle of a training, and comes back at `restart_share`. `solar_w` is the
    peak at noon of a 12-hour day; `charge_hours` = [from, to] with `charge_w` is a charger at night.
    """

    battery_j: Value = 0.0
    start_share: Value = 1.0
    restart_share: Fraction = 0.2
    idle_w: NonNegative = 0.0
    joule_per_mflop: NonNegative = 0.002
    joule_per_byte_up: NonNegative = 5e-6
    joule_per_byte_down: NonNegative = 2e-6
    solar_w: Value = 0.0
    charge_w: NonNegative = 0.0
    charge_hours: tuple[float, float] | None = None


class AvailabilityTable(_Table, frozen=True, kw_only=True):
    """When a device is on; at most one of the three ways, always on without any.

    `hours` = [from, to] of each day, `shift_hours` per device on top; `on_s` and `off_s` alternate at random;
    `trace` = "cookfarm_soil", each device one station's real gaps.
    """

    hours: tuple[float, float] | None = None
    shift_hours: Value = 0.0
    on_s: Value = 0.0
    off_s: Value = 0.0
    trace: str = ""


class DevicesTable(_Table, frozen=True, kw_only=True):
    """A kind of device and its share of the fleet; shares are relative to their sum.

    `mflop_per_s` is its effective training speed, `jitter` the sigma of a lognormal factor on each training,
    `overhead_s` what a training costs besides. `memory_bytes` is what a training may take; 0 leaves
    `node.memory_bytes`, and a plan that cannot be done within it cannot be trained here. `roam_every_s` moves
    it to another broker now and then (0: never).
    """

    name: Word
    share: PositiveFloat = 1.0
    mflop_per_s: Value
    jitter: NonNegative = 0.0
    overhead_s: NonNegative = 0.0
    memory_bytes: Value = 0.0
    memory_class: Identifier = "default"
    link: str = ""
    power: str = ""
    availability: AvailabilityTable = AvailabilityTable()
    roam_every_s: Value = 0.0


class DisturbTable(_Table, frozen=True, kw_only=True):
    """What the data of the nodes suffers on top of `data.split`; drawn from the seed.

    `label_noise` = share of wrong labels on `noisy_nodes` of the nodes; `quantity_skew` = sigma of a
    lognormal factor that thins nodes out, at least `smallest` examples stay.
    """

    label_noise: Fraction = 0.0
    noisy_nodes: Fraction = 1.0
    quantity_skew: NonNegative = 0.0
    smallest: Positive = 8


class StrategyTable(_Table, frozen=True, kw_only=True):
    """One strategy's settings: `options` are its own arguments, `config` tables replace the scenario's."""

    strategy: str = ""
    options: dict[str, Any] = {}
    config: dict[str, dict[str, Any]] = {}


class FaultTable(_Table, frozen=True, kw_only=True):
    """One fault: `what` happens to `target` at `at_s`, and ends after `for_s`.

    crash: the process is killed, and started again. partition: its link is cut. hold: what it sends is kept
    back, and released together. wipe: it is killed for good and its disk is lost (gateways and brokers).
    Targets are "node-3", "gw-1", "broker-1", "aggregator", or "random:node" and the like.
    `every_s` repeats it with random times of that mean. `for_s` 0 is for good.
    """

    what: Literal["crash", "partition", "hold", "wipe"]
    target: str
    at_s: NonNegative = 0.0
    for_s: Value = 60.0
    every_s: NonNegative = 0.0
    until_s: NonNegative = 0.0


class Scenario(Struct, frozen=True, kw_only=True):
    """A whole scenario, checked. `fleet` is the configuration that every strategy starts from, as tables."""

    scenario: ScenarioTable
    network: NetworkTable = NetworkTable()
    links: dict[str, LinkTable] = {}
    power: dict[str, PowerTable] = {}
    devices: Annotated[list[DevicesTable], Meta(min_length=1)]
    disturb: DisturbTable = DisturbTable()
    warm_start: WarmStart = WarmStart()
    strategies: dict[str, StrategyTable] = {}
    faults: list[FaultTable] = []
    fleet_tables: dict[str, dict[str, Any]]
    config: Config
