"""F21: processes of this release and of the one before it together, and files of the one before it."""

from tests.faults.fault import Fault
from tests.faults.fleet import AGGREGATOR, Fleet, Setup
from tests.faults.role import REPOSITORY

FORMER = "a3ca012"
"""The last commit without peers, islands and epochs in messages and files."""

_LEARNED = 3


def upgrade(fleet: Fleet, run: int) -> str:
    """F21: first the aggregator, then the gateway, then the nodes take the new code on their old files."""
    names = ([AGGREGATOR], fleet.gateways, fleet.nodes)[run % 3]
    for name in names:
        role = fleet[name]
        role.stop()
        role.source = REPOSITORY
        role.start()
    goals = {node: len(fleet.applied(node)) + _LEARNED for node in fleet.nodes}
    fleet.until(
        lambda: all(len(fleet.applied(node)) >= goal for node, goal in goals.items()),
        40,
        "it learns",
    )
    former = [role.name for role in fleet.roles.values() if role.source != REPOSITORY]
    return f"{', '.join(names)} new; still old: {', '.join(former[1:]) or 'none'}"


FAULTS = [Fault("F21", "mixed versions", upgrade, Setup(commit=FORMER))]
