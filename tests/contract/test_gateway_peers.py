"""Gateways among themselves over a real Mosquitto with its access rules."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from hedgerow.core import names
from hedgerow.core.codec import encode
from hedgerow.core.config import BrokerConfig
from hedgerow.core.effects import LinkUp
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BlobPart,
    BlobsWanted,
    Bundle,
    GatewayState,
    PartialReply,
    Receipt,
    Receipts,
    UpdateId,
)
from hedgerow.core.units import digest
from hedgerow.runtime.acl import acl_text
from hedgerow.runtime.mqtt_link import MqttLink
from tests.contract.brokers import Watched, peer, require, running_broker
from tests.contract.certificates import Certificates
from tests.contract.http_site import partial

SITE, ROOT = "home", "hedgerow/1/home"


class Gateway(Watched):
    """A gateway's link and what arrived over it."""

    def __init__(self, name: str, broker: BrokerConfig) -> None:
        super().__init__()
        self.inbox: list[tuple[str, Any]] = []
        self.counted: list[str] = []
        will = GatewayState(gateway=name, boot=1, state="lost")
        self.link = MqttLink(
            broker,
            SITE,
            "gateway",
            name,
            will,
            deliver=self._deliver,
            fault=self._fault,
            record=self._record,
        )

    def _deliver(self, sender: str, message: Any) -> None:
        self.inbox.append((sender, message))
        self.changed()

    def _fault(self, _sender: str, error: PeerError) -> None:
        raise error

    def _record(self, event: str, _amount: int) -> None:
        self.counted.append(event)
        self.changed()

    async def until_heard(self, sender: str, message: Any) -> None:
        await self.until(lambda: (sender, message) in self.inbox)


@asynccontextmanager
async def gateway(name: str, broker: BrokerConfig) -> AsyncIterator[Gateway]:
    made = Gateway(name, broker)
    made.link.follow(names.gateway_state_channel("+"))
    running = asyncio.create_task(made.link.run())
    try:
        await made.until_heard(names.BROKER, LinkUp())
        yield made
    finally:
        await made.link.close()
        await running


def as_one(name: str, certificates: Certificates, config: BrokerConfig) -> BrokerConfig:
    cert_file, key_file = certificates.client(name)
    return replace(config, cert_file=cert_file, key_file=key_file)


@asynccontextmanager
async def guarded_broker(folder: Path, certificates: Certificates) -> AsyncIterator[BrokerConfig]:
    """A broker that lets each certificate do what its role may, for gateways gw-1 and gw-2."""
    require("mosquitto")
    config = BrokerConfig(
        kind="mosquitto",
        ca_file=certificates.ca,
        server_cert_file=certificates.server,
        server_key_file=certificates.server_key,
    )
    acl = acl_text(SITE, ["gw-1", "gw-2"])
    async with running_broker(as_one("gw-1", certificates, config), folder, acl=acl) as broker:
        yield broker.config


async def test_gateways_hand_one_another_partials_receipts_and_versions(
    tmp_path: Path, certificates: Certificates
) -> None:
    unit = bytes(range(256))
    async with (
        guarded_broker(tmp_path, certificates) as broker,
        gateway("gw-1", broker) as one,
        gateway("gw-2", as_one("gw-2", certificates, broker)) as two,
    ):
        state = GatewayState(gateway="gw-1", boot=1, state="ready", uplink=True, hops=0)
        one.link.announce(names.gateway_state_channel("gw-1"), state)
        await two.until_heard("gw/gw-1", state)
        bundle = Bundle(gateway="gw-2", path=["gw-2"], partials=[partial(gateway="gw-2")])
        two.link.send("gw/gw-1", bundle)
        await one.until_heard("gw/gw-2", bundle)
        back: list[Any] = [
            PartialReply(partial_id="p1", status="accepted"),
            Receipts(receipts=[Receipt(UpdateId("node-1", 1, 0), "settled")]),
        ]
        for message in back:
            one.link.send("gw/gw-2", message)
            await two.until_heard("gw/gw-1", message)
        name = digest(unit)
        two.link.follow(names.blob_channel("m", name, "+"))
        wanted = BlobsWanted(model="m", digests=[name])
        two.link.send("gw/gw-1", wanted)
        await one.until_heard("gw/gw-2", wanted)
        part = BlobPart(digest=name, index=0, count=1, body=unit)
        one.link.announce(names.blob_channel("m", name, 0), part)
        await two.until_heard("blob", part)
        assert set(one.counted + two.counted) == {"mqtt_connects"}


async def test_nobody_else_may_speak_or_listen_there(
    tmp_path: Path, certificates: Certificates
) -> None:
    async with (
        guarded_broker(tmp_path, certificates) as broker,
        gateway("gw-1", broker) as one,
        gateway("gw-2", as_one("gw-2", certificates, broker)) as two,
        peer(as_one("node-1", certificates, broker), "node-1", f"{ROOT}/gw/+/peer/+") as node,
    ):
        forged = Bundle(gateway="gw-2", path=["gw-2"], partials=[partial(gateway="gw-2")])
        node.session.publish(f"{ROOT}/gw/gw-1/peer/gw-2", encode(forged))
        await node.until(lambda: node.counts["mqtt_publish_refused"] == 1)
        two.link._session.publish(f"{ROOT}/gw/gw-1/peer/gw-3", encode(forged))
        await two.until(lambda: "mqtt_publish_refused" in two.counted)
        honest = replace(forged, partials=[partial(2, gateway="gw-2")])
        two.link.send("gw/gw-1", honest)
        await one.until_heard("gw/gw-2", honest)
        assert [message for _, message in one.inbox if isinstance(message, Bundle)] == [honest]
        assert node.payloads == []
