"""How a connection to the broker is made: last will, TLS, version, pauses between attempts."""

import random
import ssl
from dataclasses import dataclass
from typing import Literal

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from hedgerow.core.config import BrokerConfig
from hedgerow.core.errors import ConfigError, HedgerowError

ProtocolVersion = Literal["5", "3.1.1"]

_CONNECT_TIMEOUT_S = 5.0
_STABLE_S = 5.0


@dataclass(frozen=True)
class Will:
    """What the broker publishes, retained and with QoS 1, when the connection dies."""

    topic: str
    payload: bytes


class BrokerRefusedError(HedgerowError):
    """The broker did not accept the connection.

    `denied`: it does not accept our credentials. `wrong_protocol`: it does not speak this version
    of MQTT. `silent`: it closed the connection or let it wait, without an answer.
    """

    def __init__(
        self, text: str, *, denied: bool = False, wrong_protocol: bool = False, silent: bool = False
    ) -> None:
        super().__init__(text)
        self.denied = denied
        self.wrong_protocol = wrong_protocol
        self.silent = silent


@dataclass(frozen=True, kw_only=True)
class Backoff:
    """Full jitter: a uniform pause below a cap that doubles from `first_s` to `longest_s`.

    After a refusal of our credentials the pause is between half of `denied_s` and `denied_s`.
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    denied_s: float = 30.0


class Retry:
    """How long to wait before the next attempt, in seconds."""

    def __init__(self, backoff: Backoff, name: str) -> None:
        self._backoff = backoff
        # Each client has its own sequence, so that a fleet does not come back in step.
        self._random = random.Random(name)
        self._failures = 0

    def failed(self) -> float:
        """Take note of an attempt that failed."""
        self._failures += 1
        return self._pause()

    def denied(self) -> float:
        """Take note of refused credentials: asking again soon would not help."""
        self._failures += 1
        return self._random.uniform(self._backoff.denied_s / 2, self._backoff.denied_s)

    def lost(self, lived_s: float) -> float:
        """Take note of a connection that ended; one that died young counts as a failure."""
        self._failures = 1 if lived_s >= _STABLE_S else self._failures + 1
        return self._pause()

    def _pause(self) -> float:
        doublings = min(self._failures - 1, 16)
        cap_s = min(self._backoff.longest_s, self._backoff.first_s * 2**doublings)
        return self._random.uniform(0.0, cap_s)


class _ClosingSocket(ssl.SSLSocket):
    """Closes itself when the handshake fails; paho forgets it in that case."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - as inherited
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def tls_context(broker: BrokerConfig) -> ssl.SSLContext | None:
    """Return the client's TLS settings, None without TLS; raises ConfigError for unusable files."""
    if not broker.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=broker.ca_file or None)
    except OSError as error:
        raise ConfigError(f"broker.ca_file: {broker.ca_file!r} is not usable: {error}") from error
    context.sslsocket_class = _ClosingSocket
    if broker.cert_file:
        try:
            context.load_cert_chain(broker.cert_file, broker.key_file or None)
        except OSError as error:
            files = f"{broker.cert_file!r} with broker.key_file {broker.key_file!r}"
            raise ConfigError(f"broker.cert_file: {files} is not usable: {error}") from error
    return context


def build_client(
    broker: BrokerConfig,
    *,
    client_id: str,
    will: Will | None,
    version: ProtocolVersion,
    tls: ssl.SSLContext | None,
) -> paho.Client:
    """Return a paho client for one connection; it acknowledges messages only when told."""
    is_5 = version == "5"
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if is_5 else True,
        protocol=MQTTProtocolVersion.MQTTv5 if is_5 else MQTTProtocolVersion.MQTTv311,
        reconnect_on_failure=False,
        manual_ack=True,
    )
    client.connect_timeout = _CONNECT_TIMEOUT_S
    if broker.username:
        client.username_pw_set(broker.username, broker.password or None)
    if will is not None:
        client.will_set(will.topic, will.payload, qos=1, retain=True)
    if tls is not None:
        client.tls_set_context(tls)
    return client


def connect(client: paho.Client, broker: BrokerConfig) -> None:
    """Resolve, connect, shake hands and queue the CONNECT; blocks, so it runs in a thread."""
    if client.protocol != MQTTProtocolVersion.MQTTv5:
        client.connect(broker.host, broker.port, broker.keepalive_s)
        return
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]
    properties.MaximumPacketSize = broker.max_packet_bytes
    client.connect(
        broker.host, broker.port, broker.keepalive_s, clean_start=True, properties=properties
    )
