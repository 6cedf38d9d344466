"""Messages to bytes and back: MessagePack with limits, then every field checked against its type.

`decode` raises PeerError and nothing else, whatever the bytes are, and its memory is bounded: a list or
map costs far more in Python than on the wire, so the number of items in one message is limited too.
"""

from collections.abc import Callable
from typing import Any

import msgpack
import msgspec

from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Message

WIRE_VERSION = 1
MAX_ITEMS = 1 << 18
_MAX_ARRAY = 1 << 14
_MAX_MAP = 1 << 12
_MAX_TEXT = 1 << 10


def encode(message: Message) -> bytes:
    """Return the message as MessagePack, with the wire version in field "v"."""
    fields = msgspec.to_builtins(message, builtin_types=(bytes,))
    fields["v"] = WIRE_VERSION
    return msgpack.packb(fields, use_bin_type=True)


def decode(data: bytes, max_bytes: int = 1 << 26) -> Message:
    """Return the message in `data`; raises PeerError for anything malformed, too large or too new."""
    if len(data) > max_bytes:
        raise PeerError("too-large", f"message of {len(data)} bytes, at most {max_bytes}")
    fields = _unpack(data)
    if not isinstance(fields, dict):
        raise PeerError("malformed", "a message must be a map")
    if fields.get("v") != WIRE_VERSION:
        raise PeerError("malformed", f"wire version {fields.get('v')!r}, this is {WIRE_VERSION}")
    try:
        return msgspec.convert(fields, Message)
    except (msgspec.ValidationError, RecursionError) as error:
        raise PeerError("malformed", str(error)) from None


def _unpack(data: bytes) -> Any:
    budget = _item_budget()
    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            list_hook=budget,
            object_hook=budget,
            max_array_len=_MAX_ARRAY,
            max_map_len=_MAX_MAP,
            max_str_len=_MAX_TEXT,
            max_bin_len=len(data),
            max_ext_len=0,
        )
    except PeerError:
        raise
    except (ValueError, msgpack.UnpackException, RecursionError, OverflowError) as error:
        raise PeerError("malformed", f"not MessagePack within limits: {error}") from None


def _item_budget() -> Callable[[Any], Any]:
    left = MAX_ITEMS

    def count(container: Any) -> Any:
        nonlocal left
        left -= 1 + len(container)
        if left < 0:
            raise PeerError("too-large", f"more than {MAX_ITEMS} items in one message")
        return container

    return count
