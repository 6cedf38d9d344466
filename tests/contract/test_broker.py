"""The broker as a child process: starting, ports, crashes, what it refuses, who may say what."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from hedgerow.core.config import BrokerConfig
from hedgerow.core.errors import ConfigError
from hedgerow.runtime.acl import acl_text
from hedgerow.runtime.broker import BrokerStartError, RunningBroker, start_broker
from hedgerow.runtime.mosquitto import find_program
from tests.contract.brokers import KINDS, Kind, kill, peer, require, running_broker, subscribed
from tests.contract.certificates import Certificates


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_it_runs_on_a_free_loopback_port_and_is_gone_after_stop(
    broker: RunningBroker,
) -> None:
    assert broker.host == "127.0.0.1"
    assert broker.port > 0
    assert broker.url == f"mqtt://127.0.0.1:{broker.port}"
    assert broker.config.kind == broker.kind
    pid = broker.pid
    assert pid is not None
    assert _alive(pid)
    await broker.stop()
    await broker.stop()
    assert not _alive(pid)
    with pytest.raises(OSError, match="Connect call failed"):
        await asyncio.open_connection(broker.host, broker.port)


async def test_it_comes_back_on_its_port_right_after_kill_9(
    broker: RunningBroker, tmp_path: Path
) -> None:
    for _ in range(2):
        async with peer(broker.config, "one", "t") as one:
            first = broker.pid
            await kill(broker)
            await broker.restart()
            assert broker.pid != first
            await one.until(lambda: one.ups == 2)
    await kill(broker)
    # A supervisor that lost its handle starts the same configuration again.
    async with running_broker(broker.config, tmp_path / "again") as again:
        assert again.port == broker.port
        async with peer(again.config, "two"):
            pass


@pytest.mark.parametrize("kind", KINDS)
async def test_a_port_somebody_else_has_is_refused_by_name(kind: Kind, tmp_path: Path) -> None:
    require(kind)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"broker\.port.*{port}.*choose another"):
            await start_broker(BrokerConfig(kind=kind, port=port), tmp_path)


async def test_a_restart_does_not_mistake_a_stranger_for_the_broker(
    broker: RunningBroker, tmp_path: Path
) -> None:
    await kill(broker)
    async with running_broker(broker.config, tmp_path / "stranger") as stranger:
        with pytest.raises(ConfigError, match=r"broker\.port"):
            await broker.restart()
        assert stranger.pid is not None
        assert _alive(stranger.pid)


async def test_a_broker_that_dies_at_once_is_reported_with_its_log(
    tmp_path: Path, certificates: Certificates
) -> None:
    require("mosquitto")
    config = BrokerConfig(
        kind="mosquitto",
        server_cert_file=certificates.server,
        server_key_file=certificates.client("node-1")[1],
        ca_file=certificates.ca,
    )
    with pytest.raises(BrokerStartError, match=r"(?s)ended with code \d+\n.*server key file"):
        await start_broker(config, tmp_path)


async def test_auto_takes_mosquitto_where_it_is_installed(tmp_path: Path) -> None:
    async with running_broker(BrokerConfig(), tmp_path) as started:
        assert started.kind == ("mosquitto" if find_program("mosquitto") else "embedded")


async def test_an_external_broker_is_left_alone(tmp_path: Path) -> None:
    for tls, port in ((False, 1883), (True, 8883)):
        config = BrokerConfig(kind="external", host="broker.example", tls=tls)
        external = await start_broker(config, tmp_path)
        assert (external.process, external.pid, external.port) == (None, None, port)
        assert external.config.host == "broker.example"
        await external.stop()
        with pytest.raises(BrokerStartError, match="not ours to start"):
            await external.restart()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (BrokerConfig(kind="embedded", tls=True), "server_cert_file"),
        (BrokerConfig(kind="embedded", server_cert_file="x"), "set both"),
        (BrokerConfig(kind="embedded", username="a:b", password="x"), "colon"),  # noqa: S106
        (BrokerConfig(kind="embedded", username="a\nlistener 1", password="x"), "control"),  # noqa: S106
        (BrokerConfig(kind="embedded", protocol="5"), "3.1.1 only"),
        (
            BrokerConfig(kind="embedded", server_cert_file="/no/a", server_key_file="/no/b"),
            "'/no/a' cannot be read",
        ),
    ],
)
async def test_settings_that_cannot_work_name_their_key(
    config: BrokerConfig, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"^broker\\..*{message}"):
        await start_broker(config, tmp_path)
    assert not _modes(tmp_path)


def test_without_amqtt_the_error_names_the_fix(tmp_path: Path) -> None:
    program = f"""
import asyncio, importlib.util, pathlib
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "amqtt" else real(name)
from hedgerow.core.config import BrokerConfig
from hedgerow.runtime.broker import start_broker
asyncio.run(start_broker(BrokerConfig(kind="embedded"), pathlib.Path({str(tmp_path)!r})))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=False)
    assert b"pip install 'hedgerow[broker]'" in done.stderr


@pytest.mark.parametrize("kind", KINDS)
async def test_user_and_password(kind: Kind, tmp_path: Path) -> None:
    require(kind)
    config = BrokerConfig(kind=kind, username="farm", password="correct horse")  # noqa: S106
    async with running_broker(config, tmp_path) as broker:
        modes = _modes(tmp_path)
        modes.pop("broker.log")
        assert modes
        assert set(modes.values()) == {0o600}
        if kind == "mosquitto":
            assert "correct horse" not in (tmp_path / "mosquitto.passwords").read_text()
        async with peer(broker.config, "right", "t") as right:
            right.session.publish("t", b"x")
            await right.until(lambda: right.payloads == [b"x"])
        for username, password in (("farm", "wrong"), ("other", "correct horse"), ("", "")):
            wrong = msgspec.structs.replace(broker.config, username=username, password=password)
            async with peer(wrong, "wrong", wait=False) as refused:
                text = await refused.until_down()
                assert "refused the connection" in text
                assert "broker.password" in text
                assert not refused.session.connected


async def test_the_acl_lets_a_node_speak_only_for_itself(
    tmp_path: Path, certificates: Certificates
) -> None:
    require("mosquitto")
    config = _as(
        "gw-1",
        certificates,
        BrokerConfig(
            kind="mosquitto",
            ca_file=certificates.ca,
            server_cert_file=certificates.server,
            server_key_file=certificates.server_key,
        ),
    )
    root = "hedgerow/1/home"
    async with running_broker(config, tmp_path, acl=acl_text("home", ["gw-1"])) as broker:
        node_1 = _as("node-1", certificates, broker.config)
        node_2 = _as("node-2", certificates, broker.config)
        async with (
            peer(broker.config, "gw-1", f"{root}/gw/gw-1/#") as gateway,
            # The same claimed id as node-1, which the certificate overrules.
            peer(node_2, "node-1", f"{root}/to/#") as other,
            peer(node_1, "node-1", f"{root}/to/#", f"{root}/node/+/state") as node,
        ):
            await subscribed(gateway, gateway, f"{root}/gw/gw-1/metrics")
            own, foreign = f"{root}/gw/gw-1/up/node-1", f"{root}/gw/gw-1/up/node-2"
            node.session.publish(foreign, b"forged")
            await node.until(lambda: node.counts["mqtt_publish_refused"] == 1)
            node.session.publish(own, b"honest")
            await gateway.until(lambda: b"honest" in gateway.payloads)
            assert b"forged" not in gateway.payloads
            for topic in (f"{root}/to/node-1/ack", f"{root}/gw/gw-1/plan/m", "elsewhere"):
                node.session.publish(topic, b"not a node's")
            await node.until(lambda: node.counts["mqtt_publish_refused"] == 4)
            gateway.session.publish(f"{root}/to/node-1/ack", b"for 1")
            gateway.session.publish(f"{root}/to/node-2/ack", b"for 2")
            await node.until(lambda: bool(node.messages))
            await other.until(lambda: bool(other.messages))
            assert node.payloads == [b"for 1"]
            assert other.payloads == [b"for 2"]
            other.session.publish(f"{root}/node/node-2/state", b"of 2", retain=True)
            node.session.publish(f"{root}/node/node-1/state", b"of 1", retain=True)
            await node.until(lambda: b"of 1" in node.payloads)
            assert b"of 2" not in node.payloads
            assert (node.ups, other.ups) == (1, 1)
            assert gateway.counts["mqtt_publish_refused"] == 0


def _modes(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}


def _as(name: str, certificates: Certificates, config: BrokerConfig) -> BrokerConfig:
    cert_file, key_file = certificates.client(name)
    return msgspec.structs.replace(config, cert_file=cert_file, key_file=key_file)
