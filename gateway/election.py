"""Which gateway of a site acts as its aggregator while none of them reaches the real one.

Every gateway decides by itself from the same announcements, so that they agree without asking one another.
Where they disagree for a while, two may act: the higher term wins, and no update counts twice, for only the
aggregator's ledger settles.
"""

from collections.abc import Iterable

from hedgerow.core.messages import NO_ROUTE, GatewayState


def is_cut_off(states: Iterable[GatewayState]) -> bool:
    """Whether none of a site's living gateways has a way to the aggregator.

    One of a release without peers says nothing of hops, and leads nobody else there, but it has its uplink.
    """
    ready = [state for state in states if state.state == "ready"]
    return all(state.hops == NO_ROUTE and not state.uplink for state in ready)


def acting(states: Iterable[GatewayState]) -> GatewayState | None:
    """Return the acting aggregator: that of the highest term, then of the lowest name; None without any."""
    found = [state for state in states if state.state == "ready" and state.acting > 0]
    return min(found, key=lambda state: (-state.acting, state.gateway), default=None)


def elect(states: Iterable[GatewayState]) -> str:
    """Return the gateway that acts, or is to act: "" where no gateway has a complete version.

    One that acts stays; else the newest complete version wins, since nodes take no older one, and then the
    lowest name.
    """
    states = list(states)
    now = acting(states)
    if now is not None:
        return now.gateway
    able = [state for state in states if state.state == "ready" and state.served >= 0]
    first = min(able, key=lambda state: (-state.served, state.gateway), default=None)
    return "" if first is None else first.gateway
