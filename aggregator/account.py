"""The conservation law as it stands: what the nodes last reported, beside what the ledger holds.

issued = applied + rejected + expired + coalesced + outbox, by each node's own last report. A report is always
a little old, so the ledger may well hold more than the nodes have heard of; never less.
"""

from collections import Counter
from collections.abc import Iterable, Mapping

from msgspec import Struct

from hedgerow.core.messages import NodeState

_TERMS = ("issued", "applied", "rejected", "expired", "coalesced", "outbox")
_REJECTED = "update_rejected:"
_MOST_REASONS = 32
_MOST_NAMED = 20


class Account(Struct, frozen=True):
    """Sums over the nodes' last reports, and `ledger_applied`, the ledger's own count.

    `rejected_for` counts, by reason, the rejections that gateways have passed on, repeats too. `contradicted`
    names nodes that hold more updates for applied than the ledger has of them, at most twenty.
    """

    issued: int = 0
    applied: int = 0
    rejected: int = 0
    expired: int = 0
    coalesced: int = 0
    outbox: int = 0
    ledger_applied: int = 0
    rejected_for: dict[str, int] = {}
    contradicted: list[str] = []

    @property
    def accounted(self) -> int:
        """What the nodes' terms add up to; `issued` where the law holds."""
        return self.applied + self.rejected + self.expired + self.coalesced + self.outbox


def account_of(
    states: Iterable[NodeState],
    gateways: Iterable[Mapping[str, int]],
    ledger: Mapping[str, int],
) -> Account:
    """Return the account of the nodes' last `states` and the gateways' counters.

    `ledger` counts the ledger's rows by node.
    """
    sums: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    contradicted = []
    for state in states:
        sums.update({term: state.counters.get(term, 0) for term in _TERMS})
        if state.counters.get("applied", 0) > ledger.get(state.node, 0):
            contradicted.append(state.node)
    for counters in gateways:
        for name, count in counters.items():
            if name.startswith(_REJECTED):
                reasons[name.removeprefix(_REJECTED)] += count
    return Account(
        **{term: sums[term] for term in _TERMS},
        ledger_applied=sum(ledger.values()),
        rejected_for=_bounded(reasons),
        contradicted=sorted(contradicted)[:_MOST_NAMED],
    )


def _bounded(reasons: Counter[str]) -> dict[str, int]:
    """Return the commonest reasons: they are others' words, and may be any number."""
    kept = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    out = dict(kept[:_MOST_REASONS])
    other = sum(count for _, count in kept[_MOST_REASONS:])
    return out | {"other": out.get("other", 0) + other} if other else out
