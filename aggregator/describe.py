"""The status for people, put together from the parts that know it."""

from collections.abc import Mapping

from aggregator.lineage import Lineage
from aggregator.localtests import local_metrics
from aggregator.observer import Observer
from aggregator.replanning import Replanning
from aggregator.status import Status
from hedgerow.core.config import Config


def describe(
    config: Config,
    lineage: Lineage,
    observer: Observer,
    replanning: Replanning,
    *,
    term: int,
    done: str,
    buffered: int,
    counters: Mapping[str, int],
    restored: str,
    disk_refuses: bool,
    uptime_us: int,
    now_us: int,
) -> Status:
    """Return the whole picture; `counters` are the process's own."""
    plan = lineage.plan
    nodes = observer.nodes(now_us)
    return Status(
        site=config.fleet.site,
        model=config.fleet.model,
        version=lineage.version,
        term=term,
        uptime_s=uptime_us / 1_000_000,
        done=done,
        metric=config.stop.metric,
        target=config.stop.target,
        plan_units=list(plan.names),
        plan_parameters=plan.size,
        model_parameters=plan.manifest.size,
        buffered_updates=buffered,
        merge_at=config.aggregation.buffer_size,
        updates_applied=observer.updates_applied,
        staleness_histogram=dict(sorted(observer.histogram.items())),
        counters=dict(counters),
        curve=observer.curve,
        gateways=observer.gateways(now_us),
        nodes=nodes,
        plan=replanning.view(),
        local_metrics=local_metrics(node.state for node in nodes),
        account=observer.account(),
        restored=restored,
        disk_refuses=disk_refuses,
    )
