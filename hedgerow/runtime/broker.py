"""Starts the MQTT broker as a child process: Mosquitto, or amqtt where there is none."""

import asyncio
import importlib.util
import json
import logging
import os
import socket
import ssl
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from hedgerow.core.config import BrokerConfig
from hedgerow.core.errors import ConfigError, HedgerowError
from hedgerow.runtime.broker_probe import probe
from hedgerow.runtime.mosquitto import (
    find_program,
    prepare_mosquitto,
    requires_certificate,
    write_private,
)

BrokerKind = Literal["mosquitto", "embedded", "external"]

_logger = logging.getLogger("hedgerow.broker")
_START_TIMEOUT_S = 20.0
_PROBE_PAUSE_S = 0.05
_STOP_TIMEOUT_S = 5.0
_LOG_TAIL_BYTES = 2000
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - compared, not bound


class BrokerStartError(HedgerowError):
    """The broker did not come up; the text says why and ends with the end of its log."""


@dataclass
class RunningBroker:
    """A broker clients can connect to with `config`, whose kind, host and port are settled.

    `process` is None for an external broker; `log_file` takes what our own one prints.
    """

    kind: BrokerKind
    config: BrokerConfig
    command: list[str]
    log_file: Path
    process: asyncio.subprocess.Process | None = None

    @property
    def host(self) -> str:
        """The host clients connect to."""
        return self.config.host

    @property
    def port(self) -> int:
        """The port clients connect to."""
        return self.config.port

    @property
    def url(self) -> str:
        """The broker's address in a form people know."""
        return f"mqtt{'s' if self.config.tls else ''}://{self.host}:{self.port}"

    @property
    def pid(self) -> int | None:
        """The process id, None for an external broker."""
        return self.process.pid if self.process else None

    async def stop(self) -> None:
        """End the process, gently first. Idempotent; does nothing to an external broker."""
        if self.process is None or self.process.returncode is not None:
            return
        with suppress(ProcessLookupError):
            self.process.terminate()
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self.process.wait()
        except TimeoutError:
            with suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()

    async def restart(self) -> None:
        """Start the process again on the same port, whether it is still running or not.

        Raises BrokerStartError when it does not come up or when it is not ours to start.
        """
        if self.kind == "external":
            raise BrokerStartError(f"the broker at {self.url} is external and not ours to start")
        await self.stop()
        await _launch(self)


async def start_broker(broker: BrokerConfig, folder: Path, *, acl: str = "") -> RunningBroker:
    """Start the broker `broker.kind` asks for and wait until it accepts clients.

    Its files and log go to `folder`; `acl` is the text of a Mosquitto access control list. Raises
    ConfigError for settings that cannot work, BrokerStartError when it does not come up.
    """
    log_file = folder / "broker.log"
    kind = _choose(broker)
    if kind == "external":
        port = broker.port or (8883 if broker.tls else 1883)
        config = msgspec.structs.replace(broker, kind=kind, port=port)
        return RunningBroker(kind, config, [], log_file)
    _check(broker, kind, acl)
    folder.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - at start, before anything runs
    listening = msgspec.structs.replace(
        broker, kind=kind, port=_bindable_port(broker), tls=bool(broker.server_cert_file)
    )
    clients = msgspec.structs.replace(listening, host=_ANYWHERE.get(broker.host, broker.host))
    if kind == "mosquitto":
        command = await prepare_mosquitto(listening, folder, acl)
    else:
        settings = folder / "embedded-broker.json"
        write_private(settings, json.dumps(embedded_settings(listening)))
        command = [sys.executable, "-m", "hedgerow.runtime.embedded_broker", str(settings)]
        clients = msgspec.structs.replace(clients, protocol="3.1.1")
    running = RunningBroker(kind, clients, command, log_file)
    await _launch(running)
    return running


def embedded_settings(broker: BrokerConfig) -> dict[str, object]:
    """Return amqtt's settings for one listener, as its child process reads them."""
    host = f"[{broker.host}]" if ":" in broker.host else broker.host
    listener: dict[str, object] = {"type": "tcp", "bind": f"{host}:{broker.port}"}
    if broker.server_cert_file:
        listener |= {"ssl": True, "certfile": broker.server_cert_file}
        listener["keyfile"] = broker.server_key_file
        if broker.ca_file:
            listener["cafile"] = broker.ca_file
    check = {
        "username": broker.username,
        "password": broker.password,
        "require_certificate": requires_certificate(broker),
    }
    return {
        "listeners": {"default": listener},
        "plugins": {"hedgerow.runtime.embedded_broker.ClientCheck": check},
    }


def _choose(broker: BrokerConfig) -> BrokerKind:
    if broker.kind != "auto":
        return broker.kind
    return "mosquitto" if find_program("mosquitto") else "embedded"


def _check(broker: BrokerConfig, kind: BrokerKind, acl: str) -> None:
    """Refuse what the broker could not do, before anything is started."""
    if bool(broker.server_cert_file) != bool(broker.server_key_file):
        raise ConfigError("broker.server_cert_file and broker.server_key_file: set both or neither")
    if broker.tls and not broker.server_cert_file:
        raise ConfigError(
            "broker.tls: a broker we start needs broker.server_cert_file and server_key_file"
        )
    for field in ("host", "username", "password", "server_cert_file", "server_key_file", "ca_file"):
        value = getattr(broker, field)
        if any(sign < " " for sign in value):
            raise ConfigError(f"broker.{field}: control characters are not possible")
        if field.endswith("_file") and value and not os.access(value, os.R_OK):
            raise ConfigError(f"broker.{field}: {value!r} cannot be read")
    if ":" in broker.username:
        raise ConfigError(f"broker.username: {broker.username!r} must not hold a colon")
    if kind == "embedded":
        _check_embedded(broker, acl)
    if not broker.username and not requires_certificate(broker) and not _is_loopback(broker.host):
        _logger.warning("the broker on %s lets everybody in; set broker.username", broker.host)


def _check_embedded(broker: BrokerConfig, acl: str) -> None:
    if importlib.util.find_spec("amqtt") is None:
        raise ConfigError(
            "broker.kind: the embedded broker needs the package amqtt: "
            "pip install 'hedgerow[broker]', or install mosquitto"
        )
    if acl:
        raise ConfigError("broker.kind: the embedded broker has no access control; use mosquitto")
    if broker.protocol == "5":
        raise ConfigError("broker.protocol: the embedded broker speaks 3.1.1 only; use mosquitto")


def _is_loopback(host: str) -> bool:
    return host in ("localhost", "::1") or host.startswith("127.")


def _bindable_port(broker: BrokerConfig) -> int:
    """Return the port, a free one for 0; raises ConfigError when another process has it."""
    family = socket.AF_INET6 if ":" in broker.host else socket.AF_INET
    with socket.socket(family) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((broker.host, broker.port))
        except OSError as error:
            raise ConfigError(
                f"broker.port: {broker.host}:{broker.port} cannot be used: {error}; "
                "choose another port, or 0 for a free one"
            ) from error
        port: int = trial.getsockname()[1]
        return port


async def _launch(broker: RunningBroker) -> None:
    """Start the process and wait until it, and not somebody else, accepts a client."""
    _bindable_port(broker.config)
    with broker.log_file.open("ab") as log:
        # Ctrl-C in the terminal must not stop the broker before its clients said goodbye.
        broker.process = await asyncio.create_subprocess_exec(
            *broker.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        await _until_accepting(broker, broker.process)
    except BaseException:
        await broker.stop()
        raise


async def _until_accepting(broker: RunningBroker, process: asyncio.subprocess.Process) -> None:
    trouble = "no answer"
    try:
        async with asyncio.timeout(_START_TIMEOUT_S):
            while process.returncode is None:
                try:
                    await probe(broker.config)
                except ssl.SSLCertVerificationError as error:
                    raise BrokerStartError(
                        f"broker.server_cert_file does not fit {broker.url}: {error}"
                    ) from error
                except (OSError, EOFError) as error:
                    trouble = str(error) or trouble
                    await asyncio.sleep(_PROBE_PAUSE_S)
                else:
                    # Another process on the port would answer too, while ours gives up.
                    if process.returncode is None:
                        return
    except TimeoutError as error:
        text = f"the broker did not accept a client at {broker.url}: {trouble}"
        raise BrokerStartError(f"{text}\n{_log_tail(broker.log_file)}") from error
    text = f"the broker for {broker.url} ended with code {process.returncode}"
    raise BrokerStartError(f"{text}\n{_log_tail(broker.log_file)}")


def _log_tail(log_file: Path) -> str:
    return log_file.read_bytes()[-_LOG_TAIL_BYTES:].decode(errors="replace")
