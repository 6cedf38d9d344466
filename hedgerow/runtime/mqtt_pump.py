"""Moves bytes between a paho client's socket and the running asyncio loop, without a thread."""

import asyncio
import logging
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any

from paho.mqtt import client as paho

_logger = logging.getLogger("hedgerow.mqtt")
_PACKETS_PER_WAKE = 64


class Pump:
    """Reads and writes when the socket is ready; `on_broken` is called for unreadable packets."""

    def __init__(self, client: paho.Client, on_broken: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._on_broken = on_broken
        self._socket: socket.socket | None = None
        self._flush_due = False
        client.on_socket_close = self._on_socket_close
        client.on_socket_register_write = self._on_register_write

    def attach(self) -> None:
        """Take over the connected socket; raises ConnectionError when it is gone already."""
        opened = self._client.socket()
        if not isinstance(opened, socket.socket):
            raise ConnectionError("the connection was lost while it was made")
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = opened
        self._loop.add_reader(opened.fileno(), self._readable)
        self.flush()

    def flush(self) -> None:
        """Write what the socket takes now, and the rest when it is writable again."""
        self._flush_due = False
        if self._socket is not None:
            self._client.loop_write()
        self._watch_writing()

    def catch_up(self) -> None:
        """Read what the loop did not report; to be called now and then.

        uvloop reports a connection that was reset once and never again, even when packets that
        came before the reset are still to be read.
        """
        if self._socket is None:
            return
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        if poller.poll(0):
            self._readable()
            self._loop.call_soon(self.catch_up)

    def drop(self) -> None:
        """Close the socket at once, attached or not. Idempotent."""
        self._client.on_socket_close = None
        left = self._client.socket()
        if isinstance(left, socket.socket) and left.fileno() >= 0:
            self._detach(left)
            left.close()

    def _watch_writing(self) -> None:
        if self._socket is None:
            return
        if self._client.want_write():
            self._loop.add_writer(self._socket.fileno(), self.flush)
        else:
            self._loop.remove_writer(self._socket.fileno())

    def _detach(self, attached: socket.socket) -> None:
        self._loop.remove_reader(attached.fileno())
        self._loop.remove_writer(attached.fileno())
        self._socket = None

    def _readable(self) -> None:
        try:
            for _ in range(_PACKETS_PER_WAKE):
                if self._socket is None:
                    return
                self._client.loop_read()
                if not self._buffered():
                    return
        except Exception:
            # paho raises many kinds for malformed packets: this connection ends, the session not.
            _logger.exception("the broker's packet could not be read")
            self._on_broken()
            return
        # TLS still holds decrypted packets no poller reports; other callbacks get their turn.
        self._loop.call_soon(self._readable)

    def _buffered(self) -> bool:
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def _on_register_write(self, _client: paho.Client, _data: Any, _socket: Any) -> None:
        # Before `attach` this is the connecting thread, and `attach` flushes anyway.
        if self._socket is not None and not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self.flush)

    def _on_socket_close(self, _client: paho.Client, _data: Any, closing: Any) -> None:
        if self._socket is not None:
            self._detach(closing)
