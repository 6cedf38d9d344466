"""Child process: light nodes that send updates over MQTT without training anything.

Each behaves on the wire as a node does: it announces "training", some time later "ready" and an update in
chunks, and goes on when the update is admitted. Run by gateway_ingest until it is terminated.
"""

import argparse
import asyncio
import random
from pathlib import Path
from typing import Any, Literal

from bench.subjects import GATEWAY, SITE, UpdateMaker, node_state
from hedgerow.core import names
from hedgerow.core.chunks import chunk_update
from hedgerow.core.codec import encode
from hedgerow.core.config import Config
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Descriptor, NodeState, Receipts, Update, UpdateId
from hedgerow.core.plan import Plan
from hedgerow.core.units import Manifest
from hedgerow.runtime.configfile import load_config
from hedgerow.runtime.mqtt_link import MqttLink
from hedgerow.runtime.service import run_daemon

_PATIENCE_S = 10.0


class Sender:
    """One light node; `makers` shares one payload between all of them."""

    def __init__(self, config: Config, node: str, makers: dict[str, UpdateMaker]) -> None:
        self._node = node
        self._makers = makers
        self._chunk_bytes = config.broker.chunk_bytes
        self._random = random.Random(node)
        self._newest: Descriptor | None = None
        self._told = asyncio.Event()
        self._admitted = asyncio.Event()
        self._seq = 0
        self.link = MqttLink(
            config.broker,
            SITE,
            "node",
            node,
            NodeState(node=node, epoch=1, state="lost"),
            deliver=self._take,
            fault=self._fault,
            record=lambda _event, _amount: None,
        )
        self.link.follow(names.descriptor_channel(GATEWAY, config.fleet.model))

    async def send_for_ever(self, training_s: float) -> None:
        """Send one update after another, each after a "training" of `training_s` on average."""
        await self._told.wait()
        while True:
            self._announce("training", 0)
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * training_s)
            self._seq += 1
            update = self._update()
            self._announce("ready", 0)
            self._admitted.clear()
            while not self._admitted.is_set():
                self._send(update)
                self._announce("ready", 1)
                try:
                    await asyncio.wait_for(self._admitted.wait(), _PATIENCE_S)
                except TimeoutError:
                    continue

    def _update(self) -> Update:
        newest = self._newest
        assert newest is not None
        if newest.plan_id not in self._makers:
            shapes = {name: unit.shape for name, unit in newest.units.items()}
            plan = Plan.of(Manifest.of(shapes), newest.plan)
            self._makers[newest.plan_id] = UpdateMaker(plan, newest.encoding)
        maker = self._makers[newest.plan_id]
        return maker.update(UpdateId(self._node, 1, self._seq), newest.version)

    def _send(self, update: Update) -> None:
        for chunk in chunk_update(update, encode(update), self._chunk_bytes):
            self.link.send(names.gateway_peer(GATEWAY), chunk)

    def _announce(self, state: Literal["training", "ready"], outbox: int) -> None:
        message = node_state(self._node, state, self._seq, outbox)
        self.link.announce(names.node_state_channel(self._node), message)

    def _take(self, _peer: str, message: Any) -> None:
        match message:
            case Descriptor():
                self._newest = message
                self._told.set()
            case Receipts(receipts=receipts):
                for receipt in receipts:
                    if receipt.status == "rejected":
                        raise SystemExit(f"an update was rejected: {receipt}")
                    if receipt.status == "settled":
                        self._announce("ready", 0)
                    elif receipt.status == "admitted" and receipt.id.seq == self._seq:
                        self._admitted.set()

    def _fault(self, peer: str, error: PeerError) -> None:
        raise SystemExit(f"a message of {peer} cannot be read: {error}")


async def _run(config: Config, count: int, training_s: float) -> None:
    makers: dict[str, UpdateMaker] = {}
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            sender = Sender(config, f"light-{number:03d}", makers)
            tasks.create_task(sender.link.run())
            tasks.create_task(sender.send_for_ever(training_s))


def main() -> int:
    """Read the arguments and run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--training-s", type=float, required=True)
    options = parser.parse_args()
    return run_daemon(_run(load_config(options.config), options.nodes, options.training_s))


if __name__ == "__main__":
    raise SystemExit(main())
