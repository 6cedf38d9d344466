"""The MQTT link of one node or gateway: peers and channels to topics, messages to bytes."""

from collections.abc import Callable
from typing import Any, Literal

from msgspec.structs import replace

from hedgerow.core import names
from hedgerow.core.codec import decode, encode
from hedgerow.core.config import BrokerConfig
from hedgerow.core.effects import LinkDown, LinkUp
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import GatewayState, NodeState, Receipts
from hedgerow.runtime.mqtt import MqttSession, Will
from hedgerow.runtime.ports import Deliver

Role = Literal["node", "gateway"]


class Topics:
    """The topic names of one site as one role sees them; pure."""

    def __init__(self, site: str, role: Role, identity: str) -> None:
        self.prefix = f"hedgerow/1/{site}/"
        self._role = role
        self._identity = identity

    def own_filters(self) -> tuple[str, ...]:
        """Return the filters of everything addressed to this process."""
        if self._role == "node":
            return (f"{self.prefix}to/{self._identity}/+",)
        own = f"{self.prefix}gw/{self._identity}"
        return (f"{own}/up/+", f"{own}/peer/+")

    def send(self, peer: str, message: Any) -> str:
        """Return the topic of a message to `peer`."""
        if self._role == "node":
            return f"{self.prefix}{peer}/up/{self._identity}"
        if peer.startswith(f"{names.GATEWAYS}/"):
            return f"{self.prefix}{peer}/peer/{self._identity}"
        kind = "ack" if isinstance(message, Receipts) else "cmd"
        return f"{self.prefix}to/{names.peer_id(peer)}/{kind}"

    def channel(self, channel: str) -> str:
        """Return the topic of a channel."""
        return self.prefix + channel

    def sender(self, topic: str) -> str:
        """Return whose message a topic carries: "gw/ID", "node/ID", "gw" or "blob".

        A gateway's messages to one node do not say which gateway sent them: "gw". Raises PeerError for a
        topic this project does not use.
        """
        match topic.removeprefix(self.prefix).split("/"):
            case ["gw", _, "up", node]:
                return names.node_peer(node)
            case ["gw", _, "peer", gateway]:
                return names.gateway_peer(gateway)
            case ["gw", gateway, "state"] | ["gw", gateway, "plan", _]:
                return names.gateway_peer(gateway)
            case ["node", node, "state"]:
                return names.node_peer(node)
            case ["to", _, "ack" | "cmd"]:
                return "gw"
            case ["blob", _, _, _]:
                return names.BLOBS
        raise PeerError("malformed", f"no message belongs on topic {topic!r}")


class MqttLink:
    """A `Link` over one MQTT session; `deliver` and `fault` are the driver's."""

    def __init__(
        self,
        broker: BrokerConfig,
        site: str,
        role: Role,
        identity: str,
        last_will: NodeState | GatewayState,
        *,
        deliver: Deliver,
        fault: Callable[[str, PeerError], None],
        record: Callable[[str, int], None],
    ) -> None:
        self._topics = Topics(site, role, identity)
        self._deliver = deliver
        self._fault = fault
        self._max_bytes = broker.max_packet_bytes
        state = names.node_state_channel if role == "node" else names.gateway_state_channel
        self._state_channel = state(identity)
        self._said: NodeState | GatewayState = last_will
        self._session = MqttSession(
            broker,
            client_id=f"{site}-{role}-{identity}",
            will=Will(self._topics.channel(self._state_channel), encode(last_will)),
            on_message=self._arrived,
            on_up=lambda: deliver(names.BROKER, LinkUp()),
            on_down=lambda _reason: deliver(names.BROKER, LinkDown()),
            record=record,
        )
        for own in self._topics.own_filters():
            self._session.subscribe(own)

    async def run(self) -> None:
        """Keep the session up until `close`."""
        await self._session.run()

    async def close(self) -> None:
        """Say goodbye, with the last counters, and end `run`."""
        said = self._said
        if isinstance(said, NodeState):
            counters = {**said.counters, **self.meter()}
            self.announce(
                self._state_channel, replace(said, state="disconnected", counters=counters)
            )
        else:
            self.announce(self._state_channel, replace(said, state="lost"))
        await self._session.close()

    def meter(self) -> dict[str, int]:
        """Return the link's counters; they begin at 0 with each start of the process."""
        return {
            "mqtt_bytes_up": self._session.bytes_up,
            "mqtt_bytes_down": self._session.bytes_down,
        }

    def send(self, peer: str, message: Any) -> None:
        """Send to one peer; refused messages are counted by the session."""
        self._session.publish(self._topics.send(peer, message), encode(message))

    def announce(self, channel: str, message: Any | None) -> None:
        """Publish retained; None clears the topic."""
        if channel == self._state_channel and isinstance(message, NodeState | GatewayState):
            self._said = message
        payload = b"" if message is None else encode(message)
        self._session.publish(self._topics.channel(channel), payload, retain=True)

    def follow(self, channel: str) -> None:
        """Subscribe."""
        self._session.subscribe(self._topics.channel(channel))

    def unfollow(self, channel: str) -> None:
        """Unsubscribe."""
        self._session.unsubscribe(self._topics.channel(channel))

    def _arrived(self, topic: str, payload: bytes, _retain: bool) -> None:  # noqa: FBT001
        if not payload:
            return  # a cleared channel
        peer = topic
        try:
            peer = self._topics.sender(topic)
            message = decode(payload, self._max_bytes)
        except PeerError as error:
            self._fault(peer, error)
            return
        self._deliver(peer, message)
