"""The HTTP link: the real client against the real server, over real sockets on loopback."""

import asyncio

import aiohttp
import pytest
from aiohttp import web

from aggregator.web.streams import MAX_QUEUED
from hedgerow.core.codec import encode
from hedgerow.core.effects import LinkDown, LinkUp, Undelivered
from hedgerow.core.messages import (
    BlobPart,
    BlobsWanted,
    Bundle,
    FleetReport,
    Partial,
    PartialReply,
    Receipt,
    Receipts,
    Subscribe,
    UpdateId,
)
from hedgerow.core.units import digest
from hedgerow.runtime.http import MAX_PARTIALS
from hedgerow.runtime.http_wire import frame
from tests.contract.http_site import (
    BAD,
    UNIT,
    connected,
    http_config,
    partial,
    receipts,
    running,
    stand_in,
    until,
)


@pytest.mark.parametrize("verdict", ["accepted", "known", "overlap", "rejected"])
async def test_a_partial_is_answered(verdict: str) -> None:
    async with (
        running(http_config()) as site,
        connected(site.client_config()) as (client, inbox, _),
    ):
        site.verdict = verdict
        client.send("aggregator", partial())
        reply = await inbox.wait(PartialReply)
        assert reply.status == verdict
        assert reply.receipts == [Receipt(UpdateId("node-1", 1, 0), "settled")]
        assert site.inbox.items == [("gw/gw-1", partial())]
        assert client.bytes_up == len(encode(partial()))
        assert client.bytes_down == len(encode(reply))


async def test_a_peers_partial_is_answered_to_who_hands_it_over_or_comes_back() -> None:
    async with (
        running(http_config()) as site,
        connected(site.client_config()) as (client, inbox, _),
    ):
        carried = Bundle(gateway="gw-1", path=["gw-2", "gw-1"], partials=[partial(gateway="gw-2")])
        client.send("aggregator", carried)
        assert (await inbox.wait(PartialReply)).partial_id == "p1"
        assert site.inbox.items == [("gw/gw-1", carried)]
        site.verdict = "disk"
        client.send("aggregator", carried)
        lost = await inbox.wait(Undelivered)
        assert lost.message == carried
        assert lost.retry_after_us == 7_000_000


@pytest.mark.parametrize(
    ("verdict", "status"), [("accepted", 200), ("known", 200), ("overlap", 409), ("rejected", 422)]
)
async def test_the_status_of_an_answer_tells_what_became_of_the_partial(
    verdict: str, status: int
) -> None:
    async with running(http_config()) as site, aiohttp.ClientSession() as session:
        site.verdict = verdict
        url = f"{site.url}/v1/partials?gateway=gw-1"
        async with session.post(url, data=encode(partial())) as response:
            assert response.status == status


async def test_an_aggregator_that_does_not_decide_asks_to_come_again() -> None:
    http = http_config(timeout_s=0.4)
    async with running(http) as site, connected(site.client_config(timeout_s=5.0)) as joined:
        client, inbox, _ = joined
        site.verdict = ""
        client.send("aggregator", partial())
        lost = await inbox.wait(Undelivered)
        assert lost.message == partial()
        assert "503" in lost.detail
        assert lost.retry_after_us == 1_000_000
        site.send("gw/gw-1", PartialReply(partial_id="p1", status="known"))
        assert site.metrics.counters()["http_dropped:no-post"] == 1


@pytest.mark.parametrize(
    ("status", "retry_after", "wait_us", "said"),
    [
        (429, "7", 7_000_000, "HTTP 429: later"),
        (503, "999999", 3_600_000_000, "HTTP 503"),
        (503, "Wed, 21 Oct 2015 07:28:00 GMT", 0, "HTTP 503"),
        (500, "", 0, "HTTP 500"),
        (302, "", 0, "HTTP 302"),
        (200, "", 0, "answer cannot be read"),
    ],
)
async def test_what_a_proxy_in_between_answers_is_a_failure_with_its_retry_after(
    status: int, retry_after: str, wait_us: int, said: str
) -> None:
    async def proxy(_request: web.Request) -> web.Response:
        headers = {"Location": "/elsewhere"} | ({"Retry-After": retry_after} if retry_after else {})
        return web.Response(status=status, text="later", headers=headers)

    async with (
        stand_in(web.post("/v1/partials", proxy)) as http,
        connected(http) as (client, inbox, _),
    ):
        client.send("aggregator", partial())
        lost = await inbox.wait(Undelivered)
        assert lost.retry_after_us == wait_us
        assert said in lost.detail


async def test_without_an_aggregator_everything_is_undelivered() -> None:
    async with running(http_config()) as site:
        http = site.client_config()
    async with connected(http) as (client, inbox, metrics):
        wanted = BlobsWanted(model="m", digests=[f"{n:032x}" for n in range(40)])
        for message in (partial(), wanted, Subscribe(gateway="gw-1", after=0)):
            client.send("aggregator", message)
        client.send("aggregator", FleetReport(gateway="gw-1", boot=1, nodes=[]))
        await inbox.wait(Undelivered, 2)
        await inbox.wait(LinkDown)
        lost = {type(item.message): item.message for item in inbox.of(Undelivered)}
        assert lost[Partial] == partial()
        assert sorted(lost[BlobsWanted].digests) == wanted.digests
        assert inbox.of(LinkUp) == []
        await until(lambda: metrics.counters().get("fleet_report_dropped:undelivered") == 1)


async def test_more_partials_than_may_be_on_their_way_are_refused_at_once() -> None:
    async with (
        running(http_config()) as site,
        connected(site.client_config()) as (client, inbox, _),
    ):
        for number in range(MAX_PARTIALS + 3):
            client.send("aggregator", partial(number))
        assert len(inbox.of(Undelivered)) == 3
        await inbox.wait(PartialReply, MAX_PARTIALS)
        client.send("aggregator", partial(99))
        await inbox.wait(PartialReply, MAX_PARTIALS + 1)


async def test_units_arrive_checked_and_missing_ones_are_named() -> None:
    async with (
        running(http_config()) as site,
        connected(site.client_config()) as (client, inbox, _),
    ):
        client.send("aggregator", BlobsWanted(model="m", digests=[digest(UNIT)]))
        part = await inbox.wait(BlobPart)
        assert part == BlobPart(digest=digest(UNIT), index=0, count=1, body=UNIT)
        for number, (missing, said) in enumerate([("c" * 32, "404"), (BAD, "503")], 1):
            client.send("aggregator", BlobsWanted(model="m", digests=[missing]))
            lost = await inbox.wait(Undelivered, number)
            assert lost.message.digests == [missing]
            assert said in lost.detail
        assert site.metrics.counters()["blob_unreadable"] == 1
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{site.url}/v1/blobs/{digest(UNIT)}") as response,
        ):
            assert response.headers["Cache-Control"] == "public, max-age=31536000, immutable"


async def test_a_damaged_unit_is_not_taken() -> None:
    async def blob(_request: web.Request) -> web.Response:
        return web.Response(body=b"something else")

    async with (
        stand_in(web.get("/v1/blobs/{digest}", blob)) as http,
        connected(http) as (client, inbox, _),
    ):
        client.send("aggregator", BlobsWanted(model="m", digests=["a" * 32]))
        assert "damaged" in (await inbox.wait(Undelivered)).detail
        assert inbox.of(BlobPart) == []


async def test_a_stream_brings_messages_until_it_ends_and_can_be_opened_again() -> None:
    async with running(http_config(), keepalive_s=0.05) as site:
        http = site.client_config()
        async with connected(http, silence_s=2.0) as (client, inbox, _):
            client.send("aggregator", Subscribe(gateway="gw-1", after=4))
            await inbox.wait(LinkUp)
            assert await site.inbox.wait(Subscribe) == Subscribe(gateway="gw-1", after=4)
            for version in range(20):
                site.send("gw/gw-1", receipts(version))
            await inbox.wait(Receipts, 20)
            assert [m.version for m in inbox.of(Receipts)] == list(range(20))
            client.send("aggregator", Subscribe(gateway="gw-1", after=9))
            await inbox.wait(LinkUp, 2)
            await site.inbox.wait(Subscribe, 2)
            site.send("gw/gw-1", receipts(77))
            assert (await inbox.wait(Receipts, 21)).version == 77
            assert inbox.of(LinkDown) == []
            assert site.inbox.items[-1][1] == Subscribe(gateway="gw-1", after=9)
        await until(lambda: site.inbox.items[-1] == ("gw/gw-1", LinkDown()))
        site.send("gw/gw-1", receipts(78))
        assert site.metrics.counters()["http_dropped:no-stream"] == 1


async def test_the_client_hears_of_an_aggregator_that_stops() -> None:
    async with running(http_config()) as site:
        stack = connected(site.client_config())
        client, inbox, _ = await stack.__aenter__()
        client.send("aggregator", Subscribe(gateway="gw-1", after=0))
        await inbox.wait(LinkUp)
    await inbox.wait(LinkDown)
    await stack.__aexit__(None, None, None)


async def test_a_silent_stream_is_given_up_and_a_quiet_one_is_not() -> None:
    async with (
        running(http_config(), keepalive_s=60.0) as silent,
        running(http_config(), keepalive_s=0.1) as quiet,
        connected(silent.client_config(), silence_s=1.5) as (gives_up, lost, metrics),
        connected(quiet.client_config(), silence_s=1.5) as (stays, kept, _),
    ):
        stays.send("aggregator", Subscribe(gateway="gw-1", after=0))
        await kept.wait(LinkUp)
        gives_up.send("aggregator", Subscribe(gateway="gw-1", after=0))
        await lost.wait(LinkDown)
        assert metrics.counters() == {"version_stream_ended": 1}
        assert kept.of(LinkDown) == []


async def test_a_gateway_that_does_not_read_is_cut_off_and_may_come_back() -> None:
    async with running(http_config()) as site:
        url = site.url.removeprefix("http://")
        host, port = url.split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(b"GET /v1/versions/stream?gateway=gw-1&after=0 HTTP/1.1\r\nHost: x\r\n\r\n")
        await site.inbox.wait(Subscribe)
        big = BlobPart(digest="a" * 32, index=0, count=1, body=bytes(200_000))
        sent = 0
        while not site.metrics.counters().get("http_dropped:slow-consumer"):
            site.send("gw/gw-1", big)
            sent += 1
            await asyncio.sleep(0)
            assert sent < 20 * MAX_QUEUED
        await site.inbox.wait(LinkDown)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1 << 40)
        writer.close()
        async with connected(site.client_config()) as (client, inbox, _):
            client.send("aggregator", Subscribe(gateway="gw-1", after=0))
            await inbox.wait(LinkUp)
            await site.inbox.wait(Subscribe, 2)
            site.send("gw/gw-1", receipts(5))
            assert (await inbox.wait(Receipts)).version == 5


@pytest.mark.parametrize(
    ("sent", "ends"),
    [
        (frame(b"\xc1 no message") + frame(encode(receipts(3))), False),
        (frame(b"\x01" * 100)[:50], True),
        ((1 << 30).to_bytes(4, "big") + b"x" * 10, True),
    ],
)
async def test_a_bad_message_is_left_out_and_a_bad_frame_ends_the_stream(
    sent: bytes, *, ends: bool
) -> None:
    done = asyncio.Event()

    async def stream(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(sent)
        if not ends:
            await done.wait()
        return response

    async with (
        stand_in(web.get("/v1/versions/stream", stream)) as http,
        connected(http) as (client, inbox, metrics),
    ):
        client.send("aggregator", Subscribe(gateway="gw-1", after=0))
        if ends:
            await inbox.wait(LinkDown)
            assert inbox.of(Receipts) == []
        else:
            assert (await inbox.wait(Receipts)).version == 3
            assert metrics.counters() == {"peer_fault:malformed": 1}
        done.set()


async def test_reports_reach_the_aggregator() -> None:
    async with (
        running(http_config()) as site,
        connected(site.client_config()) as (client, _, metrics),
    ):
        report = FleetReport(gateway="gw-1", boot=3, nodes=[], counters={"held": 2})
        client.send("aggregator", report)
        client.send("aggregator", report)
        assert await site.inbox.wait(FleetReport) == report
        assert metrics.counters() == {"fleet_report_dropped:busy": 1}


async def test_what_has_no_way_to_the_aggregator_is_our_own_fault() -> None:
    async with connected(http_config(url="http://127.0.0.1:1")) as (client, _, _):
        with pytest.raises(TypeError, match="Receipts"):
            client.send("aggregator", receipts(1))
        with pytest.raises(ValueError, match="node/node-1"):
            client.send("node/node-1", partial())
