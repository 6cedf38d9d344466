"""Just enough of MQTT to cut a byte stream into packets and to read a PUBLISH."""

from dataclasses import dataclass

_CONNECT, _PUBLISH = 1, 3
_LONGEST_VARINT = 4
_LEVEL_5 = 5
_LEVEL_AT = 6
"""Where a CONNECT's body has the protocol's level: after the length and the letters of "MQTT"."""


@dataclass(frozen=True)
class Publish:
    """A PUBLISH; `payload_at` is where its payload begins in `packet`."""

    topic: str
    qos: int
    packet: bytes
    payload_at: int

    @property
    def payload(self) -> bytes:
        return self.packet[self.payload_at :]


class Session:
    """One connection's packets in both directions; the client's CONNECT tells the protocol's level."""

    def __init__(self) -> None:
        self.level = 0
        self._rest = {True: b"", False: b""}

    def feed(self, data: bytes, *, upward: bool) -> list[bytes]:
        """Return the packets that are complete now; the rest waits for more bytes."""
        data = self._rest[upward] + data
        packets = []
        while (size := _packet_size(data)) and size <= len(data):
            packets.append(data[:size])
            data = data[size:]
        self._rest[upward] = data
        if upward and not self.level:
            for packet in packets[:1]:
                self._learn_level(packet)
        return packets

    def publish(self, packet: bytes) -> Publish | None:
        """Return what a packet publishes, None for any other packet."""
        if packet[0] >> 4 != _PUBLISH:
            return None
        qos = packet[0] >> 1 & 3
        _, at = _varint(packet, 1)
        topic_bytes = int.from_bytes(packet[at : at + 2], "big")
        topic = packet[at + 2 : at + 2 + topic_bytes].decode()
        at += 2 + topic_bytes + (2 if qos else 0)
        if self.level == _LEVEL_5:
            length, at = _varint(packet, at)
            at += length
        return Publish(topic, qos, packet, at)

    def _learn_level(self, packet: bytes) -> None:
        assert packet[0] >> 4 == _CONNECT, "a client begins with CONNECT"
        _, at = _varint(packet, 1)
        self.level = packet[at + _LEVEL_AT]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return MQTT's variable length at `at` and where it ends."""
    value = 0
    for place in range(_LONGEST_VARINT):
        value |= (data[at + place] & 0x7F) << 7 * place
        if data[at + place] < 0x80:
            return value, at + place + 1
    raise ValueError("a length of more than four bytes")


def _packet_size(data: bytes) -> int:
    """Return the first packet's size, 0 while its length is not complete."""
    head = data[1 : 1 + _LONGEST_VARINT]
    if not any(byte < 0x80 for byte in head):
        return 0
    length, at = _varint(data, 1)
    return at + length
