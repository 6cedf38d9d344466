"""The gateway as a process."""

import random
import secrets
from pathlib import Path
from typing import Any

from gateway.protocol import GatewayProtocol
from gateway.rows import Spooled
from gateway.spool import Spool
from hedgerow.core import names
from hedgerow.core.config import Config
from hedgerow.core.messages import GatewayState
from hedgerow.runtime.driver import Driver
from hedgerow.runtime.health import HealthServer
from hedgerow.runtime.http import AggregatorClient
from hedgerow.runtime.logs import configure_logs
from hedgerow.runtime.metrics import Metrics
from hedgerow.runtime.mqtt_link import MqttLink
from hedgerow.runtime.service import run_daemon, run_driver

_BOOT_BITS = 48


class GatewayLink:
    """MQTT towards nodes and peers, HTTP towards the aggregator."""

    def __init__(self, mqtt: MqttLink, http: AggregatorClient) -> None:
        self.announce = mqtt.announce
        self.follow = mqtt.follow
        self.unfollow = mqtt.unfollow
        self._mqtt = mqtt
        self._http = http

    def send(self, peer: str, message: Any) -> None:
        """Send by the way that leads to `peer`."""
        way = self._http if peer == names.AGGREGATOR else self._mqtt
        way.send(peer, message)


def main(config: Config, *, identity: str, folder: Path, index: int = 0) -> int:
    """Run one gateway until SIGTERM or SIGINT."""
    configure_logs("gateway", identity, json=config.logs.json, level=config.logs.level)
    return run_daemon(_run(config, identity, folder))


async def _open_spool(config: Config, folder: Path, metrics: Metrics) -> tuple[Spool, Spooled]:
    """Open the store; damage is counted, and costs no update, for the nodes have them all."""
    spool = Spool(folder, config.storage)
    if spool.quarantined is not None:
        metrics.record("store_quarantined", 1, {"path": str(spool.quarantined), "level": "error"})
    if spool.lost_frames:
        metrics.record("store_frames_lost", spool.lost_frames, {"level": "error"})
    return spool, await spool.load()


async def _run(config: Config, identity: str, folder: Path) -> None:
    metrics = Metrics()
    spool, spooled = await _open_spool(config, folder, metrics)
    boot = secrets.randbits(_BOOT_BITS)
    mqtt = MqttLink(
        config.broker,
        config.fleet.site,
        "gateway",
        identity,
        GatewayState(gateway=identity, boot=boot, state="lost"),
        deliver=lambda peer, message: driver.deliver(peer, message),
        fault=lambda peer, error: driver.fault(peer, error),
        record=lambda event, amount: metrics.record(event, amount, {}),
    )
    http = AggregatorClient(
        config.http, identity, lambda peer, message: driver.deliver(peer, message), metrics
    )

    def meter() -> dict[str, int]:
        traffic = {"http_bytes_up": http.bytes_up, "http_bytes_down": http.bytes_down}
        return {**metrics.counters(), **mqtt.meter(), **traffic}

    protocol = GatewayProtocol(
        identity,
        boot,
        config.gateway,
        model=config.fleet.model,
        chunk_bytes=config.broker.chunk_bytes,
        packet_bytes=config.broker.max_packet_bytes,
        rng=random.Random(boot),
        meter=meter,
        spooled=spooled,
        island=config.island,
    )
    link = GatewayLink(mqtt, http)
    driver = Driver(protocol, link=link, store=spool, compute=None, recorder=metrics)
    health = HealthServer(
        config.gateway.metrics_host,
        config.gateway.metrics_port,
        lambda: protocol.ready,
        metrics,
        degraded=lambda: "spool full" if spool.full else "",
    )
    metrics.record("started", 1, {"health": await health.start(), "level": "info"})
    try:
        await run_driver(driver, mqtt.run(), goodbye=mqtt.close)
    finally:
        await health.stop()
        await http.close()
        await spool.close()


if __name__ == "__main__":
    raise SystemExit("run `hedgerow gateway CONFIG --id ID --dir FOLDER`")
