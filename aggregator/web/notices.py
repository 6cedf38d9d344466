"""What a person must know at once, and where every update is, in sentences."""

from aggregator.account import Account
from aggregator.status import Status
from aggregator.web.words import plural

_RESTORED = {
    "restore": "the aggregator was restored from a backup",
    "gateway-ahead": "a gateway knows newer versions than this ledger, so it is an old copy",
    "lost-frames": "the disk has lost what was written last",
    "damaged-version": "the newest version's description was damaged on the disk",
}


def notices(status: Status) -> list[str]:
    """Return what is wrong, one sentence each."""
    out = []
    if status.restored:
        why = _RESTORED.get(status.restored, status.restored)
        out.append(
            f"Restored: {why}. It goes on under new version numbers; updates that were trained on the lost"
            " versions are left out, and counted."
        )
    if status.disk_refuses:
        out.append("The disk refuses to write: gateways keep what they have until there is room.")
    forks = status.counters.get("fork_alarm", 0)
    if forks:
        out.append(
            f"Fork alarm, {plural(forks, 'time')}: another update came under a known name. A node's disk was"
            " copied or put back; see the log for which."
        )
    if status.account.contradicted:
        names = ", ".join(status.account.contradicted)
        out.append(
            f"The books contradict the ledger: {names} hold more updates for used than are in it."
        )
    return out


def holds(account: Account) -> bool:
    """Whether the nodes' reports fit the conservation law and the ledger."""
    return account.issued == account.accounted and not account.contradicted


def account_words(account: Account) -> str:
    """Return the conservation law with its numbers."""
    return (
        f"{plural(account.issued, 'update')} made = {account.applied:,} used + {account.rejected:,} refused"
        f" + {account.expired:,} given up + {account.coalesced:,} joined to others"
        f" + {account.outbox:,} waiting, as the nodes last said; the ledger holds"
        f" {account.ledger_applied:,}."
    )
