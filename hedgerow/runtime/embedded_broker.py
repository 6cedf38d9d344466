"""The broker that needs no installation: amqtt in a child process, for trials and tests.

Run as `python -m hedgerow.runtime.embedded_broker FILE` with a file of `embedded_settings`. It
speaks MQTT 3.1.1 only, limits neither packets nor queues, knows no access control list and does not
bind a client's id to its certificate.
"""

import asyncio
import hmac
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amqtt.broker import Broker
from amqtt.plugins.base import BaseAuthPlugin
from amqtt.session import Session


class ClientCheck(BaseAuthPlugin):  # type: ignore[misc]  # amqtt has no type hints
    """Lets clients in who have what the settings ask for: a password, a certificate or neither."""

    @dataclass
    class Config:
        """An empty `username` asks for no password."""

        username: str = ""
        password: str = ""
        require_certificate: bool = False

    async def authenticate(self, *, session: Session) -> bool | None:
        """Return whether this session may go on."""
        wanted = self.config
        if wanted.require_certificate:
            shown = session.ssl_object.getpeercert() if session.ssl_object else None
            if not shown:
                return False
        if not wanted.username:
            return True
        name = hmac.compare_digest((session.username or "").encode(), wanted.username.encode())
        word = hmac.compare_digest((session.password or "").encode(), wanted.password.encode())
        return name and word


async def _serve(settings: dict[str, Any]) -> None:
    await Broker(settings).start()
    await asyncio.Event().wait()


def main() -> None:
    """Serve until the process is stopped."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    asyncio.run(_serve(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main()
