"""Messages to bytes and back: MessagePack with limits, then every field checked against its type.

`decode` raises PeerError and nothing else, whatever the bytes are, and its memory is bounded: a list or
map costs far more in Python than on the wire, and its header alone reserves room, so the number of items
that all headers claim together is limited before any of them is believed.
"""

from typing import Any, get_args

import msgpack
import msgspec

from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Message

WIRE_VERSION = 1
MAX_ITEMS = 1 << 18
_MAX_ARRAY = 1 << 14
_MAX_MAP = 1 << 12
_MAX_TEXT = 1 << 10

_KINDS: dict[Any, type[Message]] = {kind.__struct_config__.tag: kind for kind in get_args(Message)}

_Layout = tuple[int, int, int, int, int]
"""What follows a MessagePack header byte: the width of its length field, a fixed number of bytes and of
items, and the bytes and items for each unit of the length."""


def encode(message: Message) -> bytes:
    """Return the message as MessagePack, with the wire version in field "v"."""
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    fields["v"] = WIRE_VERSION
    data: bytes = msgpack.packb(fields, use_bin_type=True)
    return data


def decode(data: bytes, max_bytes: int = 1 << 26) -> Message:
    """Return the message in `data`; raises PeerError for anything malformed, too large or too new."""
    if len(data) > max_bytes:
        raise PeerError("too-large", f"message of {len(data)} bytes, at most {max_bytes}")
    fields = _unpack(data)
    if not isinstance(fields, dict):
        raise PeerError("malformed", "a message must be a map")
    version = fields.get("v")
    if type(version) is not int or version != WIRE_VERSION:
        # Not repr: the value may be a bomb of its own.
        found = version if isinstance(version, int) else type(version).__name__
        raise PeerError("malformed", f"wire version {found}, this is {WIRE_VERSION}")
    kind = _KINDS.get(fields.get("t")) if isinstance(fields.get("t"), str) else None
    if kind is None:
        raise PeerError("malformed", "no message of this kind is known")
    try:
        # Into the one struct: a tenth of the time that the union takes.
        message: Message = msgspec.convert(fields, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        raise PeerError("malformed", str(error)) from None
    return message


def _unpack(data: bytes) -> Any:
    if _claimed_items(data) > MAX_ITEMS:
        raise PeerError("too-large", f"more than {MAX_ITEMS} items in one message")
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=_MAX_ARRAY,
            max_map_len=_MAX_MAP,
            max_str_len=_MAX_TEXT,
            max_bin_len=len(data),
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise PeerError("malformed", f"not MessagePack within limits: {error}") from None


def _claimed_items(data: bytes) -> int:
    """Walk over the headers of one value and count the items they claim; stops once there are too many."""
    at, due, claimed = 0, 1, 1
    while due and at < len(data) and claimed <= MAX_ITEMS:
        width, size, items, size_each, items_each = _LAYOUTS[data[at]]
        at += 1
        if width:
            length = int.from_bytes(data[at : at + width])
            size += length * size_each
            items += length * items_each
        at += width + size
        due += items - 1
        claimed += items
    return claimed


def _layouts() -> tuple[_Layout, ...]:
    """Return the layout of each of the 256 header bytes; the numbers are those of the MessagePack format."""
    nothing = (0, 0, 0, 0, 0)
    plain = [
        *[nothing] * 0x80,
        *[(0, 0, 2 * n, 0, 0) for n in range(16)],
        *[(0, 0, n, 0, 0) for n in range(16)],
        *[(0, n, 0, 0, 0) for n in range(32)],
        *[nothing] * 4,
        *[(width, 0, 0, 1, 0) for width in (1, 2, 4)],
        *[(width, 1, 0, 1, 0) for width in (1, 2, 4)],
        *[(0, size, 0, 0, 0) for size in (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)],
        *[(0, 1 + size, 0, 0, 0) for size in (1, 2, 4, 8, 16)],
        *[(width, 0, 0, 1, 0) for width in (1, 2, 4)],
        *[(width, 0, 0, 0, 1) for width in (2, 4)],
        *[(width, 0, 0, 0, 2) for width in (2, 4)],
    ]
    return (*plain, *[nothing] * 0x20)


_LAYOUTS = _layouts()
