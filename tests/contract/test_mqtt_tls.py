"""TLS with an authority of our own: whom client and broker believe."""

from pathlib import Path

import msgspec
import pytest

from hedgerow.core.config import BrokerConfig
from hedgerow.core.errors import ConfigError
from hedgerow.runtime.broker import BrokerStartError, start_broker
from tests.contract.brokers import KINDS, Kind, Peer, kill, peer, require, running_broker
from tests.contract.certificates import Certificates


def _config(certificates: Certificates, kind: Kind, client: str = "") -> BrokerConfig:
    cert_file, key_file = certificates.client(client) if client else ("", "")
    return BrokerConfig(
        kind=kind,
        ca_file=certificates.ca,
        cert_file=cert_file,
        key_file=key_file,
        server_cert_file=certificates.server,
        server_key_file=certificates.server_key,
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_large_messages_pass_and_a_killed_broker_is_found_again(
    kind: Kind, certificates: Certificates, tmp_path: Path
) -> None:
    require(kind)
    async with running_broker(_config(certificates, kind), tmp_path) as broker:
        assert broker.url.startswith("mqtts://")
        assert broker.config.tls
        async with peer(broker.config, "one", "t") as one:
            sent = [bytes([number]) * 100_000 for number in range(20)]
            for payload in sent:
                assert one.session.publish("t", payload)
            await one.until(lambda: len(one.messages) == len(sent))
            assert one.payloads == sent
            await kill(broker)
            await broker.restart()
            await one.until(lambda: one.ups == 2)
            one.session.publish("t", b"again")
            await one.until(lambda: b"again" in one.payloads)


@pytest.mark.parametrize("kind", KINDS)
async def test_only_a_certificate_of_the_authority_gets_in(
    kind: Kind, certificates: Certificates, tmp_path: Path
) -> None:
    require(kind)
    async with running_broker(_config(certificates, kind, "gw-1"), tmp_path) as broker:
        for name in ("node-1", "node-2"):
            cert_file, key_file = certificates.client(name)
            known = msgspec.structs.replace(broker.config, cert_file=cert_file, key_file=key_file)
            async with peer(known, name, "t") as one:
                one.session.publish("t", b"x")
                await one.until_heard(b"x")
        cert_file, key_file = certificates.client("stranger")
        stranger = msgspec.structs.replace(broker.config, cert_file=cert_file, key_file=key_file)
        nobody = msgspec.structs.replace(broker.config, cert_file="", key_file="")
        for config in (stranger, nobody):
            async with peer(config, "node-1", wait=False) as refused:
                await refused.until_down()
                assert refused.ups == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_password_over_tls_needs_no_client_certificate(
    kind: Kind, certificates: Certificates, tmp_path: Path
) -> None:
    require(kind)
    config = msgspec.structs.replace(
        _config(certificates, kind),
        username="farm",
        password="secret",  # noqa: S106
    )
    async with running_broker(config, tmp_path) as broker:
        async with peer(broker.config, "right"):
            pass
        wrong = msgspec.structs.replace(broker.config, password="guess")  # noqa: S106
        async with peer(wrong, "wrong", wait=False) as refused:
            await refused.until(lambda: bool(refused.downs))
            assert "broker.password" in refused.downs[0]


async def test_a_client_does_not_believe_an_unknown_broker(
    certificates: Certificates, tmp_path: Path
) -> None:
    require("mosquitto")
    async with running_broker(_config(certificates, "mosquitto"), tmp_path) as broker:
        doubtful = msgspec.structs.replace(broker.config, ca_file="")
        plain = msgspec.structs.replace(broker.config, tls=False, protocol="5")
        async with peer(doubtful, "doubtful", wait=False) as one:
            await one.until(lambda: bool(one.downs))
            assert "CERTIFICATE_VERIFY_FAILED" in one.downs[0]
        async with peer(plain, "plain", wait=False) as one:
            await one.until(lambda: bool(one.downs))
            assert "without an answer" in one.downs[0]


async def test_a_server_certificate_for_another_name_is_said_so(
    certificates: Certificates, tmp_path: Path
) -> None:
    require("mosquitto")
    cert_file, key_file = certificates.client("node-1")
    config = msgspec.structs.replace(
        _config(certificates, "mosquitto"), server_cert_file=cert_file, server_key_file=key_file
    )
    with pytest.raises(BrokerStartError, match=r"broker\.server_cert_file does not fit"):
        await start_broker(config, tmp_path)


@pytest.mark.parametrize("field", ["ca_file", "cert_file"])
async def test_files_a_client_cannot_use_are_named(field: str, tmp_path: Path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate")
    for path in (junk, tmp_path / "missing.pem"):
        config = msgspec.structs.replace(BrokerConfig(tls=True), **{field: str(path)})
        with pytest.raises(ConfigError, match=rf"broker\.{field}: .*{path.name}"):
            Peer(config, "one")
