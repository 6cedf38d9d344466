"""What the keys of a configuration must say together; each rule is one sentence when it is broken."""

from collections.abc import Iterator

from hedgerow.core.config import BrokerConfig, Config, DataConfig, HttpConfig, StopConfig

METRICS = {"classification": ("accuracy", "loss"), "regression": ("rmse", "mae", "skill")}
"""What the built-in tasks measure; the user's own task may measure anything."""

RISING = ("accuracy", "skill")
"""Those of them that rise as the model learns; a target is reached from below."""

FALLING = ("loss", "rmse", "mae")
"""Those that fall."""


def contradictions(config: Config) -> list[str]:
    """Return every contradiction between keys, each naming the dotted key, its value and a fix."""
    return [
        *_fleet(config),
        *_broker(config.broker),
        *_http(config.http),
        *_data(config.data),
        *_plan(config),
        *_bounds(config),
        *_stop(config.stop, config.task.kind, built_in=":" not in config.task.name),
    ]


def _fleet(config: Config) -> Iterator[str]:
    fleet = config.fleet
    if fleet.gateways > fleet.nodes:
        yield (
            f"fleet.gateways: {fleet.gateways} is more than fleet.nodes = {fleet.nodes};"
            " a gateway without nodes has no work"
        )


def _broker(broker: BrokerConfig) -> Iterator[str]:
    yield from _pair("broker", "cert_file", broker.cert_file, "key_file", broker.key_file)
    yield from _pair(
        "broker",
        "server_cert_file",
        broker.server_cert_file,
        "server_key_file",
        broker.server_key_file,
    )
    if broker.password and not broker.username:
        yield "broker.username: '' goes with a broker.password; set both or neither"
    if not broker.tls:
        for key in ("ca_file", "cert_file", "server_cert_file"):
            if getattr(broker, key):
                yield (
                    f"broker.{key}: {getattr(broker, key)!r} is unused while broker.tls is false;"
                    " set tls = true or leave it out"
                )
    if broker.kind == "external" and broker.port == 0:
        yield "broker.port: 0 with kind = 'external'; set the broker's port, usually 1883 or 8883"
    if broker.kind != "external" and broker.tls and not broker.server_cert_file:
        yield (
            "broker.server_cert_file: '' but the broker that we start is to speak TLS; set"
            " server_cert_file and server_key_file"
        )
    if broker.kind == "embedded" and broker.protocol == "5":
        yield "broker.protocol: '5' but the embedded broker speaks 3.1.1 only; use 'auto'"
    if 2 * broker.chunk_bytes > broker.max_packet_bytes:
        yield (
            f"broker.chunk_bytes: {broker.chunk_bytes} must be at most half of broker.max_packet_bytes"
            f" = {broker.max_packet_bytes}, which bounds a piece with its envelope"
        )


def _http(http: HttpConfig) -> Iterator[str]:
    yield from _pair("http", "cert_file", http.cert_file, "key_file", http.key_file)
    if http.url and not http.url.startswith(("http://", "https://")):
        yield f"http.url: {http.url!r} must begin with http:// or https://"


def _pair(
    table: str, first: str, first_value: str, second: str, second_value: str
) -> Iterator[str]:
    """One of two keys, such as a certificate and its key, that are of no use alone."""
    if bool(first_value) != bool(second_value):
        given, missing = (first, second) if first_value else (second, first)
        yield f"{table}.{missing}: '' but {table}.{given} is set; set both or neither"


def _data(data: DataConfig) -> Iterator[str]:
    yield from _data_groups(data)
    yield from _data_evaluation(data)
    if data.files and not _is_function(data):
        yield (
            f"data.files: {data.files} is unused with data.source = {data.source!r};"
            " only a 'module:function' is called with files"
        )
    scale, offset = data.input_scale, data.input_offset
    if scale and offset and len(scale) != len(offset):
        yield (
            f"data.input_offset: has {len(offset)} entries but data.input_scale has {len(scale)};"
            " give one per input column in both"
        )


def _is_function(data: DataConfig) -> bool:
    return ":" in data.source and not data.source.endswith((".npz", ".csv"))


def _data_groups(data: DataConfig) -> Iterator[str]:
    # A function may return groups of its own.
    if data.group or not data.source.endswith((".npz", ".csv")):
        return
    asked = (
        ("split = 'group'", data.split == "group"),
        ("held_out_groups is set", bool(data.held_out_groups)),
        ("smallest_group is set", data.smallest_group > 0),
    )
    for what, is_set in asked:
        if is_set:
            yield (
                f"data.group: '' but data.{what}; name the key or column that tells groups apart"
            )


def _data_evaluation(data: DataConfig) -> Iterator[str]:
    yield from _pair("data", "test_inputs", data.test_inputs, "test_targets", data.test_targets)
    if not data.test_inputs:
        return
    if not data.source.endswith(".npz"):
        yield (
            f"data.test_inputs: {data.test_inputs!r} names an array of a .npz, data.source is"
            f" {data.source!r}; use data.test_mask or data.held_out_fraction"
        )
    for key in ("test_mask", "held_out_groups", "baseline"):
        if value := getattr(data, key):
            yield (
                f"data.{key}: {value!r} does not go with data.test_inputs, whose examples are the"
                " evaluation set; set one of the two"
            )


def _plan(config: Config) -> Iterator[str]:
    plan = config.plan
    asked = [bool(plan.units), plan.last_layers > 0, bool(plan.preset), plan.budget_bytes > 0]
    if sum(asked) != 1:
        yield (
            "plan: set exactly one of plan.units, plan.last_layers, plan.preset and plan.budget_bytes"
            f" (got {sum(asked)}); for example preset = 'biases+last'"
        )
    overlap = sorted(set(plan.personal) & set(plan.units))
    if overlap:
        yield (
            f"plan.personal: {overlap[0]!r} is in plan.units, too; a unit is either shared or personal,"
            " so name it in one of the two"
        )
    if plan.class_budgets and not plan.budget_bytes:
        yield (
            f"plan.class_budgets: {plan.class_budgets} go with a searched plan; set plan.budget_bytes"
        )


def _bounds(config: Config) -> Iterator[str]:
    node, gateway = config.node, config.gateway
    if node.offline_updates > node.outbox_updates:
        yield (
            f"node.offline_updates: {node.offline_updates} do not fit into node.outbox_updates"
            f" = {node.outbox_updates}"
        )
    if gateway.flush_count > gateway.held_updates:
        yield (
            f"gateway.flush_count: {gateway.flush_count} is never reached with gateway.held_updates"
            f" = {gateway.held_updates}"
        )
    if config.island.enabled and config.island.buffer_size > gateway.held_updates:
        yield (
            f"island.buffer_size: {config.island.buffer_size} is never reached with"
            f" gateway.held_updates = {gateway.held_updates}; lower it, or raise held_updates"
        )


def _stop(stop: StopConfig, kind: str, *, built_in: bool) -> Iterator[str]:
    if built_in and stop.metric not in METRICS[kind]:
        known = ", ".join(METRICS[kind])
        yield f"stop.metric: {stop.metric!r} is not measured for task.kind {kind!r}; use one of {known}"
    if stop.target is not None and built_in:
        yield from target_contradictions("stop.target", stop.target, stop.metric, kind)


def target_contradictions(key: str, target: float, metric: str, kind: str) -> Iterator[str]:
    """Say why a built-in task's `metric` cannot reach `target`, which `key` holds."""
    if metric not in RISING:
        better = RISING[0] if kind == "classification" else RISING[1]
        yield (
            f"{key}: {target} for {metric!r}, which falls as the model learns;"
            f" set stop.metric = {better!r}, or leave the target out"
        )
    if metric == "accuracy" and not 0 < target <= 1:
        yield f"{key}: {target} is no accuracy; it lies between 0 and 1, say 0.92"
    if metric == "skill" and target > 1:
        yield f"{key}: {target} is no skill; a perfect forecast has 1"
