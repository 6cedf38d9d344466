"""Says in plain words what a configuration will do."""

import json

import msgspec

from hedgerow.core.config import (
    BrokerConfig,
    Config,
    DataConfig,
    IslandConfig,
    PlanConfig,
    StalenessConfig,
    TrainingConfig,
)

_HIDDEN = "(hidden)"


def as_json(config: Config) -> str:
    """Return the whole configuration with its defaults, secrets hidden."""
    tables = msgspec.to_builtins(config)
    for table, key in (("broker", "password"), ("http", "token")):
        if tables[table][key]:
            tables[table][key] = _HIDDEN
    return json.dumps(tables, indent=2)


def in_words(config: Config) -> list[str]:
    """Return one sentence for each thing an operator decides."""
    fleet, task, training = config.fleet, config.task, config.training
    merge, node, gateway, stop = config.aggregation, config.node, config.gateway, config.stop
    pace = f" and sleeps {node.sleep_s:g} s" if node.sleep_s else ""
    passes = "pass" if training.passes == 1 else "passes"
    return [
        (
            f"fleet: site {fleet.site!r}, model {fleet.model!r}, seed {fleet.seed};"
            f" `hedgerow up` starts {fleet.nodes} nodes and {fleet.gateways} gateways"
        ),
        f"broker: {_broker(config.broker)}",
        f"aggregator: {_aggregator(config)}",
        f"data: {_data(config.data)}",
        f"task: {task.kind} with {task.name!r}, {task.outputs} outputs"
        + (f", options {task.options}" if task.options else ""),
        f"plan: nodes train {_plan(config.plan)}{_personal(config.plan)}",
        (
            f"training: a node trains {training.passes} {passes} over its data in batches of"
            f" {training.batch_size} at learning rate {training.learning_rate:g}{_time(training)}{pace};"
            f" it clips its update to norm {training.clip_norm:g} and sends it as {_uplink(config)};"
            f" versions travel as {training.downlink}"
        ),
        (
            f"offline: a node trains up to {node.offline_updates} updates ahead and holds"
            f" {node.outbox_updates} in its outbox"
        ),
        f"gateway: flushes after {gateway.flush_count} updates or"
        + (f" {gateway.flush_s:g} s" if gateway.flush_s else " a time taken from its nodes' pace"),
        (
            f"merge: after {merge.buffer_size} updates, or {merge.deadline_s:g} s;"
            f" step {merge.learning_rate or 'by mean staleness'};"
            f" weights fall with staleness: {_staleness(config.staleness)}"
        ),
        f"island: {_island(config.island)}",
        (
            f"end: {_goal(stop.metric, stop.target)}version {stop.max_versions}"
            f" or {stop.max_s:g} s, whichever is first"
        ),
    ]


def _uplink(config: Config) -> str:
    encoding, most = config.training.encoding, config.node.max_update_bytes
    return f"{encoding}, or thinner to take at most {most} bytes" if most else encoding


def _broker(broker: BrokerConfig) -> str:
    who = f" as {broker.username!r}" if broker.username else " without a password"
    tls = "with TLS" if broker.tls else "without TLS"
    if broker.kind == "external":
        return f"yours at {broker.host}:{broker.port}, {tls},{who}"
    started = {
        "auto": "Mosquitto where it is installed, else the embedded one",
        "mosquitto": "Mosquitto",
        "embedded": "the embedded one",
    }[broker.kind]
    port = broker.port or "a free port"
    return f"`hedgerow up` starts {started} on {broker.host}, {port}, {tls},{who}"


def _aggregator(config: Config) -> str:
    http = config.http
    token = "with a token" if http.token else "without a token"
    tls = "HTTPS" if http.cert_file else "HTTP"
    reach = f", reached at {http.url}" if http.url else ""
    return f"{tls} on {http.host}:{http.port}, {token}{reach}"


def _data(data: DataConfig) -> str:
    by = f" of {data.group!r}" if data.group else ""
    split = {
        "none": "dealt out evenly at random",
        "dirichlet": f"dealt out unevenly by class (Dirichlet, alpha {data.alpha:g})",
        "shards": f"{data.shards_per_node} runs of examples sorted by class for each node",
        "group": f"whole groups{by} are dealt out",
    }[data.split]
    held_out = (
        f"groups {data.held_out_groups}"
        if data.held_out_groups
        else f"the rows of {data.test_mask!r}"
        if data.test_mask
        else f"{data.held_out_fraction:.0%}"
    )
    own = data.local_test_fraction
    tests = f"; each node tests on {own:.0%} of its own" if own else ""
    return f"{data.source}; {split}; {held_out} held out for evaluation{tests}"


def _plan(plan: PlanConfig) -> str:
    if plan.units:
        return ", ".join(plan.units)
    if plan.last_layers:
        return f"the last {plan.last_layers} layers"
    if plan.budget_bytes:
        return _searched(plan)
    return {"all": "every unit", "biases+last": "every bias and the last layer"}[plan.preset]


def _personal(plan: PlanConfig) -> str:
    if not plan.personal:
        return ""
    return f"; each keeps its own {', '.join(plan.personal)}: trained, never sent"


def _time(training: TrainingConfig) -> str:
    bound = training.time_budget_s
    return f", as many steps as fit into {bound:g} s" if bound else ""


def _searched(plan: PlanConfig) -> str:
    classes = [f", {bound} bytes in class {name!r}" for name, bound in plan.class_budgets.items()]
    again = (
        f"searched anew every {plan.replan_versions} versions"
        if plan.replan_versions
        else "searched once"
    )
    return (
        f"the units of most value that fit {plan.budget_bytes} bytes of training memory"
        f"{''.join(classes)}; {again}, on what {plan.probe_share:.0%} of the nodes measure"
    )


def _staleness(staleness: StalenessConfig) -> str:
    shape = {
        "exponential": f"halved every {staleness.half_life:g} versions"
        if staleness.half_life
        else "halved every so many versions as the fleet is stale on average",
        "polynomial": f"(1 + age)^-{staleness.exponent:g}",
        "hinge": f"full up to {staleness.hinge_after} versions, then 1 / (1 + {staleness.hinge_slope:g} x)",
        "constant": "not at all",
    }[staleness.law]
    return f"{shape}; refused beyond {staleness.tau_max} versions"


def _island(island: IslandConfig) -> str:
    if not island.enabled:
        return "none; a site that the aggregator cannot be reached from waits"
    least = island.least_weight
    return (
        f"after {island.after_s:g} s without a way to the aggregator a site goes on by itself, merging"
        f" every {island.buffer_size} updates, or after {island.deadline_s:g} s; what it came to is merged"
        f" only approximately, with weight {least or 'that of the oldest update taken'} at least"
    )


def _goal(metric: str, target: float | None) -> str:
    return "" if target is None else f"{metric} {target:g}, "
