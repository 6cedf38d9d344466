"""Who may say what to the broker, as a Mosquitto access control list.

`%u` is the user name, which with client certificates is the certificate's common name. A node may
publish updates only as itself; what every name is allowed is given by patterns, what a gateway is
allowed beyond that by its own block, because Mosquitto applies patterns to everybody.
"""

from collections.abc import Iterable

_NODE_WRITE = ("gw/+/up/%u", "node/%u/state")
_NODE_READ = ("gw/+/state", "gw/+/plan/#", "blob/#", "to/%u/#", "node/%u/state")
_GATEWAY_WRITE = ("gw/{gateway}/#", "gw/+/peer/{gateway}", "to/+/#", "blob/#")
_GATEWAY_READ = (
    "gw/{gateway}/#",
    "node/+/state",
    "gw/+/state",
    "gw/+/plan/#",
    "blob/#",
    "to/{gateway}/#",
)


def acl_text(site: str, gateways: Iterable[str]) -> str:
    """Return the contents of a Mosquitto `acl_file` for a site whose gateways are named.

    Every other authenticated name gets the rights of a node.
    """
    root = f"hedgerow/1/{site}"
    lines = [f"pattern write {root}/{topic}" for topic in _NODE_WRITE]
    lines += [f"pattern read {root}/{topic}" for topic in _NODE_READ]
    for gateway in gateways:
        lines += ["", f"user {gateway}"]
        lines += [f"topic write {root}/{topic.format(gateway=gateway)}" for topic in _GATEWAY_WRITE]
        lines += [f"topic read {root}/{topic.format(gateway=gateway)}" for topic in _GATEWAY_READ]
    return "\n".join(lines) + "\n"
