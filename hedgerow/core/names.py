"""Names of peers and channels, one place for both. Transports map them one to one.

A peer is who a `Send` goes to; a channel is what an `Announce` replaces the last message of.
"""

AGGREGATOR = "aggregator"
BROKER = "broker"
"""The peer that `LinkUp` and `LinkDown` of the MQTT link come from."""

GATEWAYS, BLOBS = "gw", "blob"
"""What the names of the peers begin with that gateways and units come from."""


def node_peer(node: str) -> str:
    """Return the peer name of a node."""
    return f"node/{node}"


def gateway_peer(gateway: str) -> str:
    """Return the peer name of a gateway."""
    return f"gw/{gateway}"


def peer_id(peer: str) -> str:
    """Return the id in a peer name."""
    return peer.partition("/")[2]


def node_state_channel(node: str) -> str:
    """Return where a node announces its state; "+" stands for every node."""
    return f"node/{node}/state"


def gateway_state_channel(gateway: str) -> str:
    """Return where a gateway announces its state; "+" stands for every gateway."""
    return f"gw/{gateway}/state"


def descriptor_channel(gateway: str, model: str) -> str:
    """Return where a gateway announces the newest version of a model."""
    return f"gw/{gateway}/plan/{model}"


def blob_channel(model: str, digest: str, index: int | str) -> str:
    """Return where a piece of a unit is announced; "+" stands for every piece."""
    return f"blob/{model}/{digest}/{index}"
