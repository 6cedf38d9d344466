"""Reads and writes configuration files."""

import importlib.resources
import json
import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec

from hedgerow.core.config import Config
from hedgerow.core.configcheck import parse_config
from hedgerow.core.errors import ConfigError

_FILE_KEYS = {
    "broker": ("ca_file", "cert_file", "key_file", "server_cert_file", "server_key_file"),
    "http": ("ca_file", "cert_file", "key_file"),
}
_SECRET_KEYS = (("broker", "password"), ("http", "token"))
_FROM_ENVIRONMENT = "env:"


def load_config(path_or_name: str | Path) -> Config:
    """Read a .toml or .json file, or a configuration that comes with the package, such as "demo".

    Relative paths in it start at the file's own folder, which is also searched for the modules of
    "module:function". A password or token "env:NAME" is read from the environment. Raises ConfigError.
    """
    path = find_config(str(path_or_name))
    raw = read_tables(path)
    _resolve(raw, path.parent.resolve())
    try:
        config = parse_config(raw)
    except ConfigError as error:
        raise ConfigError(_prefixed(path, str(error))) from None
    folder = str(path.parent.resolve())
    if folder not in sys.path:
        sys.path.append(folder)
    return config


def write_config(config: Config, path: Path) -> None:
    """Write `config` as JSON, readable by its owner only: it may hold a password."""
    text = json.dumps(msgspec.to_builtins(config), indent=2) + "\n"
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def packaged_configs() -> dict[str, Path]:
    """Return the configurations that come with the package, by name."""
    try:
        files = [
            Path(str(file)) for file in importlib.resources.files("hedgerow.configs").iterdir()
        ]
    except ModuleNotFoundError:
        # A checkout that is not installed.
        files = list((Path(__file__).resolve().parents[2] / "configs").iterdir())
    return {file.stem: file for file in sorted(files) if file.suffix == ".toml"}


def find_config(path_or_name: str) -> Path:
    """Return the file meant by a path or a packaged name; raises ConfigError naming what there is."""
    path = Path(path_or_name)
    if path.is_file():
        return path
    known = packaged_configs()
    if path_or_name in known:
        return known[path_or_name]
    raise ConfigError(
        f"{path_or_name}: there is no such file; give a .toml or .json file, or one of"
        f" {', '.join(known)}"
    )


def read_tables(path: Path) -> dict[str, Any]:
    """Return a .toml or .json file's tables as they stand; raises ConfigError where there are none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    try:
        raw = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise ConfigError(f"{path}: is not {kind}: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: must hold tables such as 'fleet', not a {type(raw).__name__}")
    return raw


def _resolve(raw: dict[str, Any], folder: Path) -> None:
    """Make paths absolute and fetch secrets, in place; ill-typed values are left for the check."""
    for table, keys in _FILE_KEYS.items():
        for key in keys:
            _edit(raw, table, key, lambda text: str(folder / Path(text).expanduser()))
    _edit(raw, "data", "source", lambda text: _data_source(text, folder))
    for table, key in _SECRET_KEYS:
        _edit(raw, table, key, lambda text, name=f"{table}.{key}": _secret(name, text))


def _edit(raw: dict[str, Any], table: str, key: str, change: Any) -> None:
    """Replace a text that is there and not empty."""
    section = raw.get(table)
    if isinstance(section, dict) and isinstance(section.get(key), str) and section[key]:
        section[key] = change(section[key])


def _data_source(text: str, folder: Path) -> str:
    return str(folder / Path(text).expanduser()) if text.endswith((".npz", ".csv")) else text


def _secret(name: str, text: str) -> str:
    if not text.startswith(_FROM_ENVIRONMENT):
        return text
    variable = text.removeprefix(_FROM_ENVIRONMENT)
    value = os.environ.get(variable)
    if not value:
        raise ConfigError(
            f"{name}: the environment variable {variable!r} is not set or empty; set it"
        )
    return value


def _prefixed(path: Path, text: str) -> str:
    return "\n".join(f"{path}: {line}" for line in text.splitlines())
