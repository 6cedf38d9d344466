"""Checks that this machine can do its part, one finding per line."""

import asyncio
import importlib.util
import json
import os
import platform
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from hedgerow.core.config import Config
from hedgerow.core.errors import ConfigError
from hedgerow.runtime.broker_probe import probe
from hedgerow.runtime.cache import cache_folder
from hedgerow.runtime.http_wire import base_url, client_tls
from hedgerow.runtime.mosquitto import find_program

_TIMEOUT_S = 5.0
_TRAIN_TIMEOUT_S = 120.0
_FREE_BYTES = 200 << 20
_OLDEST = (3, 11)
# In a process of its own: tinygrad reads its environment once and keeps what it compiled.
_TRIAL = """
import sys, pathlib
from hedgerow.runtime.compiler import prepare_tinygrad
print(prepare_tinygrad(pathlib.Path(sys.argv[1])))
from tinygrad import Tensor, Device
assert (Tensor([1.0, 2.0]) * 3).tolist() == [3.0, 6.0]
print(Device.DEFAULT)
"""


@dataclass(frozen=True)
class Finding:
    """One thing looked at; `detail` names the fix where it is not ok."""

    what: str
    ok: bool
    detail: str


def examine(config: Config | None) -> list[Finding]:
    """Look at this machine and, with a configuration, at its broker and aggregator."""
    findings = [_python(), _training(), _broker_program(), _disk()]
    if config is not None:
        findings += [asyncio.run(_broker(config)), _aggregator(config)]
    return findings


def _python() -> Finding:
    detail = f"{platform.python_version()} on {platform.machine()} ({sys.executable})"
    return Finding("python", sys.version_info >= _OLDEST, detail)


def _training() -> Finding:
    """Compile and run a kernel: a compiler that is there may still not work."""
    if importlib.util.find_spec("tinygrad") is None:
        return Finding(
            "training", ok=True, detail="not installed: a gateway only; nodes need hedgerow[train]"
        )
    try:
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-c", _TRIAL, str(cache_folder())],
            capture_output=True,
            text=True,
            timeout=_TRAIN_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Finding(
            "training", ok=False, detail=f"a kernel took more than {_TRAIN_TIMEOUT_S:g} s"
        )
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return Finding("training", ok=False, detail=last[0])
    compiler, device = done.stdout.strip().splitlines()[-2:]
    return Finding("training", ok=True, detail=f"tinygrad on {device} with {compiler}")


def _broker_program() -> Finding:
    mosquitto = find_program("mosquitto")
    if mosquitto:
        return Finding("broker program", ok=True, detail=mosquitto)
    if importlib.util.find_spec("amqtt") is not None:
        return Finding(
            "broker program", ok=True, detail="embedded (amqtt); Mosquitto is not installed"
        )
    detail = "none: `hedgerow up` needs Mosquitto or hedgerow[broker], or the address of a broker"
    return Finding("broker program", ok=False, detail=detail)


def _disk() -> Finding:
    """Outbox, ledger and caches are written here or in the cache folder."""
    places = {str(Path.cwd()), str(_existing(cache_folder()))}
    free = min(shutil.disk_usage(place).free for place in places)
    unwritable = [place for place in places if not os.access(place, os.W_OK)]
    if unwritable:
        return Finding("disk", ok=False, detail=f"{unwritable[0]} cannot be written")
    enough = free >= _FREE_BYTES
    detail = f"{free >> 20} MB free" + (
        "" if enough else f"; at least {_FREE_BYTES >> 20} MB are needed"
    )
    return Finding("disk", enough, detail)


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


async def _broker(config: Config) -> Finding:
    broker = config.broker
    if broker.kind != "external":
        return Finding(
            "broker", ok=True, detail=f"`hedgerow up` starts it (broker.kind = {broker.kind!r})"
        )
    where = f"{broker.host}:{broker.port}"
    try:
        await probe(broker)
    except (OSError, EOFError, ConfigError) as error:
        detail = f"{where} does not accept us: {error or type(error).__name__}; see [broker]"
        return Finding("broker", ok=False, detail=detail)
    return Finding("broker", ok=True, detail=f"{where} accepts us")


def _aggregator(config: Config) -> Finding:
    url = f"{base_url(config.http)}/v1/fleet"
    headers = {"Authorization": f"Bearer {config.http.token}"} if config.http.token else {}
    request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http.url is checked
    try:
        tls: ssl.SSLContext | None = client_tls(config.http) if url.startswith("https") else None
        with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=tls) as answer:  # noqa: S310 - as above
            version = json.loads(answer.read())["version"]
    except urllib.error.HTTPError as error:
        hint = "; http.token must be the same there and here" if error.code == 401 else ""  # noqa: PLR2004
        return Finding("aggregator", ok=False, detail=f"{url} answers {error.code}{hint}")
    except (OSError, ValueError, KeyError, ConfigError) as error:
        return Finding(
            "aggregator", ok=False, detail=f"{url} cannot be reached: {error}; see [http]"
        )
    return Finding("aggregator", ok=True, detail=f"{url} answers, version {version}")
