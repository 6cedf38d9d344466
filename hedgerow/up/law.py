"""The conservation law at the end of a run: the audit's own check, from disk, after all has stopped."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from hedgerow.custody import audit
from hedgerow.custody.law import NodeAccount


@dataclass(frozen=True)
class Account:
    """Every node's account and, as sentences, where the law does not hold."""

    nodes: list[NodeAccount]
    problems: list[str]


def check_run(folder: Path, nodes: Iterable[str]) -> Account:
    """Read the books of the named nodes and the ledger below `folder`, and check them.

    What cannot be read is a problem, too.
    """
    found = audit.check_run(folder, nodes)
    return Account(found.nodes, [str(violation) for violation in found.violations])
