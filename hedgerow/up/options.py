"""What `hedgerow up` was asked for, and the configuration that follows from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from hedgerow.core.config import Config
from hedgerow.core.configcheck import parse_config
from hedgerow.core.errors import ConfigError

_KINDS = ("auto", "mosquitto", "embedded")
_PORTS = {"mqtt": 1883, "mqtts": 8883}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line; None leaves the configuration's value."""

    config: str | None = None
    folder: Path | None = None
    fresh: bool = False
    resume: bool = False
    broker: str | None = None
    staleness: str | None = None
    encoding: str | None = None
    nodes: int | None = None
    gateways: int | None = None
    seed: int | None = None
    target: float | None = None
    max_versions: int | None = None
    json_file: Path | None = None
    plain: bool = False

    @property
    def run_folder(self) -> Path:
        """Where the run lives: `--dir`, or runs/NAME of the configuration."""
        if self.folder is not None:
            return self.folder
        if self.config is None:
            raise ConfigError(
                "up: name a configuration, or with --resume the --dir of an earlier run"
            )
        return Path("runs") / Path(self.config).stem


def apply_options(config: Config, options: Options) -> Config:
    """Return the configuration with the command line's values, checked again as a whole."""
    raw: dict[str, Any] = msgspec.to_builtins(config)
    if options.broker is not None:
        raw["broker"] |= broker_settings(options.broker)
    changes = [
        ("staleness", "law", options.staleness),
        ("training", "encoding", options.encoding),
        ("fleet", "nodes", options.nodes),
        ("fleet", "gateways", options.gateways),
        ("fleet", "seed", options.seed),
        ("stop", "target", options.target),
        ("stop", "max_versions", options.max_versions),
    ]
    for table, key, value in changes:
        if value is not None:
            raw[table][key] = value
    return parse_config(raw)


def broker_settings(asked: str) -> Mapping[str, Any]:
    """Return the [broker] keys of `--broker`: one of our kinds, or the address of the user's own."""
    if asked in _KINDS:
        return {"kind": asked}
    url = urlsplit(asked)
    try:
        port = url.port or _PORTS[url.scheme]
    except (KeyError, ValueError):
        port = 0
    if not url.hostname or not port:
        raise ConfigError(
            f"--broker: {asked!r} is neither {', '.join(_KINDS)} nor like mqtt://broker.example:1883"
        )
    settings: dict[str, Any] = {
        "kind": "external",
        "host": url.hostname,
        "port": port,
        "tls": url.scheme == "mqtts",
    }
    if url.username:
        settings["username"] = unquote(url.username)
        settings["password"] = unquote(url.password or "")
    return settings
