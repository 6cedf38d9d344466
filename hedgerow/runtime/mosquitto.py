"""Mosquitto as our child: finding it and writing its configuration."""

import asyncio
import getpass
import os
import shutil
from pathlib import Path

from hedgerow.core.config import BrokerConfig
from hedgerow.core.errors import ConfigError

_EXTRA_FOLDERS = "/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin"
# Per client. By default Mosquitto drops beyond 1,000 messages and knows no limit in bytes.
_QUEUED_MESSAGES = 10_000
_QUEUED_BYTES = 64 << 20


def find_program(name: str) -> str | None:
    """Return the path of a program of Mosquitto's, on PATH or where system daemons live."""
    return shutil.which(name) or shutil.which(name, path=_EXTRA_FOLDERS)


async def prepare_mosquitto(broker: BrokerConfig, folder: Path, acl: str) -> list[str]:
    """Write the files Mosquitto needs into `folder`; returns the command that starts it.

    Raises ConfigError when it is not installed or a value cannot be used.
    """
    program = find_program("mosquitto")
    if program is None:
        raise ConfigError(
            'broker.kind: "mosquitto" is not installed; '
            'install the package mosquitto or use broker.kind = "embedded"'
        )
    password_file = acl_file = None
    if broker.username:
        password_file = folder / "mosquitto.passwords"
        await _write_password(broker, password_file)
    if acl:
        acl_file = folder / "mosquitto.acl"
        write_private(acl_file, acl)
    config = folder / "mosquitto.conf"
    write_private(config, mosquitto_config(broker, password_file, acl_file))
    return [program, "-c", str(config)]


def mosquitto_config(
    broker: BrokerConfig, password_file: Path | None, acl_file: Path | None
) -> str:
    """Return the configuration for one listener.

    With `server_cert_file` it speaks TLS; with `ca_file` and `cert_file`, clients have to show a
    certificate too, whose common name becomes user name and client id unless `username` is set.
    Nothing is persisted: what matters is acknowledged end to end and retained again by its source.
    """
    lines = [
        f"listener {broker.port} {broker.host}",
        # Started as root, Mosquitto would become a user who cannot read our files.
        f"user {getpass.getuser()}",
        "set_tcp_nodelay true",
        "persistence false",
        f"max_packet_size {broker.max_packet_bytes}",
        f"max_queued_messages {_QUEUED_MESSAGES}",
        f"max_queued_bytes {_QUEUED_BYTES}",
        "sys_interval 0",
        "connection_messages false",
        "log_dest stderr",
        "log_type error",
        "log_type warning",
        "log_type notice",
    ]
    by_certificate = requires_certificate(broker)
    lines.append(f"allow_anonymous {_word(not broker.username and not by_certificate)}")
    if broker.server_cert_file:
        lines.append(f"certfile {Path(broker.server_cert_file).resolve()}")
        lines.append(f"keyfile {Path(broker.server_key_file).resolve()}")
    if by_certificate:
        lines.append(f"cafile {Path(broker.ca_file).resolve()}")
        lines.append("require_certificate true")
        if not broker.username:
            # Without the second line one device's certificate can take over another's session.
            lines += ["use_identity_as_username true", "use_username_as_clientid true"]
    if password_file is not None:
        lines.append(f"password_file {password_file.resolve()}")
    if acl_file is not None:
        lines.append(f"acl_file {acl_file.resolve()}")
    return "\n".join(lines) + "\n"


def requires_certificate(broker: BrokerConfig) -> bool:
    """Whether a broker started from this configuration asks its clients for a certificate."""
    return bool(broker.server_cert_file and broker.ca_file and broker.cert_file)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read."""
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)


async def _write_password(broker: BrokerConfig, path: Path) -> None:
    program = find_program("mosquitto_passwd")
    if program is None:
        raise ConfigError(
            "broker.username: mosquitto_passwd is needed to hash the password and is not "
            "installed; install it (package mosquitto)"
        )
    write_private(path, f"{broker.username}:{broker.password}\n")
    # Hashed in place: on the command line everybody could read the password.
    process = await asyncio.create_subprocess_exec(
        program, "-U", str(path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    if process.returncode:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - one small file
        raise ConfigError(f"broker.password: mosquitto_passwd failed: {output.decode().strip()}")


def _word(value: bool) -> str:  # noqa: FBT001 - nothing else to say
    return "true" if value else "false"
