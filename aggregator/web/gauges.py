"""The conservation law as gauges for /metrics: the nodes' reports beside the ledger's own count."""

from aggregator.status import Status
from hedgerow.runtime.metrics import Metrics

_TERMS = ("issued", "applied", "rejected", "expired", "coalesced", "outbox")


def export_account(metrics: Metrics, status: Status) -> None:
    """Set the gauges `hedgerow_reported_TERM`, `hedgerow_ledger_applied` and those of what is wrong."""
    account = status.account
    for term in _TERMS:
        metrics.gauge(f"reported_{term}", getattr(account, term))
    metrics.gauge("ledger_applied", account.ledger_applied)
    metrics.gauge("nodes_contradicting_the_ledger", len(account.contradicted))
    metrics.gauge("restored_backup", float(bool(status.restored)))
    metrics.gauge("disk_refuses", float(status.disk_refuses))
    metrics.gauges("passed_on_rejected", "reason", account.rejected_for)
