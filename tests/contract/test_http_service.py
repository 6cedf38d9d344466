"""The HTTP service: who is served, what is refused and how, what can be read."""

import base64
import ssl
from pathlib import Path

import aiohttp
import msgspec
import pytest
from msgspec.structs import replace

from hedgerow.core.codec import decode, encode
from hedgerow.core.config import HttpConfig
from hedgerow.core.effects import LinkDown, LinkUp, Undelivered
from hedgerow.core.errors import ConfigError
from hedgerow.core.messages import (
    Bundle,
    Partial,
    PartialReply,
    Subscribe,
)
from hedgerow.core.units import digest
from hedgerow.runtime.http_wire import client_tls, server_tls
from tests.browser.sample_status import sample
from tests.contract.certificates import Certificates
from tests.contract.http_site import (
    TOKEN,
    UNIT,
    connected,
    http_config,
    partial,
    receipts,
    running,
)


@pytest.mark.parametrize("token", ["", "wrong"])
async def test_without_the_token_nothing_is_told(token: str) -> None:
    async with running(http_config(token=TOKEN)) as site:
        async with connected(site.client_config(token=token)) as (client, inbox, _):
            client.send("aggregator", partial())
            lost = await inbox.wait(Undelivered)
            assert "http.token" in lost.detail
            client.send("aggregator", Subscribe(gateway="gw-1", after=0))
            await inbox.wait(LinkDown)
        headers = {"Authorization": f"Bearer {token}"}
        async with aiohttp.ClientSession(headers=headers) as session:
            for path in ("/", "/v1/fleet", f"/v1/blobs/{digest(UNIT)}", "/v1/nothing"):
                async with session.get(site.url + path) as response:
                    assert response.status == 401
                    assert "Basic" in response.headers["WWW-Authenticate"]
            for path in ("/healthz", "/readyz", "/metrics"):
                async with session.get(site.url + path) as response:
                    assert response.status == 200
        assert site.inbox.items == []
        assert site.metrics.counters() == {"http_refused:token": 6}


async def test_with_the_token_gateways_and_browsers_are_served() -> None:
    async with running(http_config(token=TOKEN)) as site:
        async with connected(site.client_config()) as (client, inbox, _):
            client.send("aggregator", partial())
            assert (await inbox.wait(PartialReply)).status == "accepted"
        login = base64.b64encode(f"anyone:{TOKEN}".encode()).decode()
        async with (
            aiohttp.ClientSession() as session,
            session.get(site.url, headers={"Authorization": f"Basic {login}"}) as response,
        ):
            assert response.status == 200
            assert "Training: version 12" in await response.text()
            assert "default-src 'none'" in response.headers["Content-Security-Policy"]


async def test_status_health_and_counters_can_be_read() -> None:
    async with running(http_config()) as site, aiohttp.ClientSession() as session:
        async with session.get(f"{site.url}/v1/fleet") as response:
            assert msgspec.json.decode(await response.read(), type=type(sample())) == sample()
        site.metrics.record("update_rejected", 3, {"reason": "stale"})
        async with session.get(f"{site.url}/metrics") as response:
            text = await response.text()
        assert 'hedgerow_events_total{event="update_rejected",reason="stale"} 3.0' in text
        for ready, status in ((True, 200), (False, 503)):
            site.ready = ready
            async with session.get(f"{site.url}/readyz") as response:
                assert response.status == status
            async with session.get(f"{site.url}/healthz") as response:
                assert response.status == 200


async def test_the_conservation_law_can_be_read_as_gauges() -> None:
    async with running(http_config()) as site, aiohttp.ClientSession() as session:
        expected = ["reported_issued 60.0", "reported_coalesced 2.0", "ledger_applied 48.0"]
        expected += ["nodes_contradicting_the_ledger 0.0", "restored_backup 0.0"]
        expected += ['passed_on_rejected{reason="stale"} 3.0']
        for line in expected:
            assert f"hedgerow_{line}" in await _read(session, f"{site.url}/metrics")
        account = replace(site.status.account, contradicted=["node-1"], rejected_for={"norm": 1})
        site.status = replace(site.status, account=account, restored="restore")
        text = await _read(session, f"{site.url}/metrics")
        assert "hedgerow_nodes_contradicting_the_ledger 1.0" in text
        assert "hedgerow_restored_backup 1.0" in text
        assert 'reason="stale"' not in text
        page = await _read(session, site.url)
        assert "Restored: the aggregator was restored from a backup." in page
        assert "node-1 hold more updates" in page


async def _read(session: aiohttp.ClientSession, url: str) -> str:
    async with session.get(url) as response:
        return await response.text()


async def test_a_full_disk_is_told_to_who_watches() -> None:
    async with running(http_config()) as site, aiohttp.ClientSession() as session:
        site.degraded = "disk full"
        async with session.get(f"{site.url}/readyz") as response:
            assert (response.status, await response.text()) == (503, "degraded: disk full\n")
        async with session.get(f"{site.url}/healthz") as response:
            assert response.status == 200


@pytest.mark.parametrize(("verdict", "status"), [("busy", 429), ("disk", 503), ("new-life", 503)])
async def test_a_post_that_cannot_be_taken_now_is_told_when_to_come_again(
    verdict: str, status: int
) -> None:
    async with running(http_config()) as site:
        site.verdict = verdict
        async with connected(site.client_config()) as (client, inbox, _):
            for post in (partial(), bundle(partial(), "gw-1")):
                client.send("aggregator", post)
            for number in (1, 2):
                lost = await inbox.wait(Undelivered, number)
                assert f"HTTP {status}" in lost.detail
                assert lost.retry_after_us == 7_000_000
        assert site.metrics.counters()[f"http_refused:{verdict}"] == 2


def bundle(*partials: Partial | str) -> Bundle:
    """Return a bundle of these partials, handed over by the last."""
    *told, gateway = partials
    carried = [one for one in told if isinstance(one, Partial)]
    assert isinstance(gateway, str)
    return Bundle(gateway=gateway, path=[carried[0].gateway], partials=carried)


async def test_a_peers_partial_is_answered_to_the_relay_that_posted_it() -> None:
    async with running(http_config()) as site, aiohttp.ClientSession() as session:
        carried = bundle(partial(gateway="gw-7"), "gw-2")
        url = f"{site.url}/v1/partials?gateway=gw-2"
        async with session.post(url, data=encode(carried)) as response:
            assert response.status == 200
            reply = decode(await response.read())
        assert isinstance(reply, PartialReply)
        assert reply.partial_id == "p1"
        assert site.inbox.items == [("gw/gw-2", carried)]


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/v1/partials?gateway=gw-1", b"\xc1", 400, "malformed"),
        ("/v1/partials?gateway=gw-1", b"", 400, "malformed"),
        ("/v1/partials?gateway=gw-1", encode(receipts(1)), 400, "Receipts does not belong here"),
        ("/v1/fleet?gateway=gw-1", encode(partial()), 400, "FleetReport does"),
        ("/v1/partials?gateway=gw-2", encode(partial()), 403, "sent as gw-1"),
        ("/v1/partials?gateway=gw-1", encode(bundle(partial(), "gw-2")), 403, "sent as gw-2"),
        (
            "/v1/partials?gateway=gw-2",
            encode(bundle(partial(), partial(2), "gw-2")),
            400,
            "a bundle of 2 partials",
        ),
        ("/v1/partials", encode(partial()), 403, "sent as gw-1"),
        ("/v1/partials?gateway=gw-1", encode(partial(count=2000)), 413, ""),
    ],
)
async def test_what_does_not_fit_is_refused_with_the_reason(
    path: str, body: bytes, status: int, said: str
) -> None:
    async with (
        running(http_config(max_body_bytes=8192)) as site,
        aiohttp.ClientSession() as session,
    ):
        async with session.post(site.url + path, data=body) as response:
            assert response.status == status
            assert said in await response.text()
        assert site.inbox.items == []


@pytest.mark.parametrize("query", ["", "gateway=Not%20An%20Id", "gateway=gw-1&after=x"])
async def test_a_stream_needs_a_gateway_and_a_version(query: str) -> None:
    async with (
        running(http_config()) as site,
        aiohttp.ClientSession() as session,
        session.get(f"{site.url}/v1/versions/stream?{query}") as response,
    ):
        assert response.status == 400
        assert "after" in await response.text()
        assert site.inbox.items == []


async def test_a_body_too_large_tells_the_gateway_what_to_change() -> None:
    async with (
        running(http_config(max_body_bytes=8192)) as site,
        connected(site.client_config(max_body_bytes=1 << 20)) as (client, inbox, _),
    ):
        client.send("aggregator", partial(count=2000))
        assert "http.max_body_bytes" in (await inbox.wait(Undelivered)).detail


async def test_tls_with_client_certificates(certificates: Certificates) -> None:
    server = http_config(
        ca_file=certificates.ca,
        cert_file=certificates.server,
        key_file=certificates.server_key,
    )
    cert, key = certificates.client("gw-1")
    stranger, stranger_key = certificates.client("stranger")
    async with running(server) as site:
        assert site.url.startswith("https://")
        good = site.client_config(cert_file=cert, key_file=key)
        async with connected(good) as (client, inbox, _):
            client.send("aggregator", Subscribe(gateway="gw-1", after=0))
            await inbox.wait(LinkUp)
            client.send("aggregator", partial())
            await inbox.wait(PartialReply)
        bad = [
            site.client_config(cert_file="", key_file=""),
            site.client_config(cert_file=stranger, key_file=stranger_key),
            site.client_config(ca_file="", cert_file=cert, key_file=key),
        ]
        for http in bad:
            async with connected(http) as (client, inbox, _):
                client.send("aggregator", partial())
                await inbox.wait(Undelivered)
        assert len(site.inbox.of(Partial)) == 1


def test_unusable_certificates_are_named(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("no certificate")
    for name in ("missing.pem", "no.pem"):
        file = str(tmp_path / name)
        with pytest.raises(ConfigError, match=rf"http.ca_file: .*{name}"):
            client_tls(HttpConfig(ca_file=file))
        with pytest.raises(ConfigError, match=rf"http.cert_file: .*{name}"):
            server_tls(HttpConfig(cert_file=file))
    with pytest.raises(ConfigError, match="name the certificate"):
        server_tls(HttpConfig(ca_file="ca.pem"))
    assert server_tls(HttpConfig()) is None
    assert client_tls(HttpConfig()).verify_mode == ssl.CERT_REQUIRED
