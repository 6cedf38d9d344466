"""Child process: light nodes with a quota and outboxes on disk, whose books can be read when all is over.

They are those of light_nodes, but each keeps its outbox as a real node does, makes so many updates and no
more, and counts what it sends. What they have done so far is written twice a second to a file: `Report`. Run
by broker_kills until it is terminated.
"""

import argparse
import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec

from bench.light_nodes import Surrogate, make_node, manifest_of, name_of
from edge_node.outbox import Outbox
from edge_node.rows import CloseUpdate, PutUpdate
from hedgerow.core.effects import Train, Trained
from hedgerow.core.messages import Chunk
from hedgerow.runtime.configfile import load_config
from hedgerow.runtime.mqtt_link import MqttLink
from hedgerow.runtime.service import run_daemon

_REPORT_S = 0.5


class Report(msgspec.Struct, kw_only=True):
    """What all nodes of the process have done; `bodies` counts whole updates sent, also again."""

    issued: int
    held: int
    bodies: float


class CountedOutbox:
    """A `Store` port: a real outbox, and how many updates it has taken and let go."""

    def __init__(self, outbox: Outbox) -> None:
        self.issued = 0
        self.held = 0
        self.outbox = outbox

    async def save(self, rows: tuple[Any, ...]) -> None:
        """Make the rows durable."""
        await self.outbox.save(rows)
        issued = sum(isinstance(row, PutUpdate) for row in rows)
        self.issued += issued
        self.held += issued - sum(isinstance(row, CloseUpdate) for row in rows)


class Limited:
    """A `Compute` port that finishes so many trainings; the next one never ends."""

    def __init__(self, seed: int, quota: int) -> None:
        self._surrogate = Surrogate(seed)
        self._left = quota
        self.probe, self.evaluate = self._surrogate.probe, self._surrogate.evaluate

    async def train(self, job: Train) -> Trained:
        """Return a small random delta, or nothing ever."""
        if self._left <= 0:
            await asyncio.Event().wait()
        self._left -= 1
        return await self._surrogate.train(job)


class CountingLink:
    """A `Link` that counts the updates sent through it."""

    def __init__(self, link: MqttLink) -> None:
        self.bodies = 0.0
        self._link = link
        self.announce, self.follow, self.unfollow = link.announce, link.follow, link.unfollow

    def send(self, peer: str, message: Any) -> None:
        """Send."""
        if isinstance(message, Chunk):
            self.bodies += 1 / message.count
        self._link.send(peer, message)


async def _run(options: argparse.Namespace) -> None:
    config, manifest = load_config(options.config), manifest_of(options.shapes)
    outboxes: list[CountedOutbox] = []
    links: list[CountingLink] = []

    def counting(link: MqttLink) -> CountingLink:
        links.append(CountingLink(link))
        return links[-1]

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as tasks:
        for number in range(options.first, options.first + options.count):
            name = name_of(number)
            outboxes.append(CountedOutbox(Outbox(options.folder / name, name)))
            stack.push_async_callback(outboxes[-1].outbox.close)
            books = await outboxes[-1].outbox.load()
            compute = Limited(number, options.quota)
            driver, link = make_node(
                config, manifest, number, books, outboxes[-1], compute, counting
            )
            driver.start()
            tasks.create_task(link.run())
            tasks.create_task(driver.run())
        tasks.create_task(_report(options.report, outboxes, links))


async def _report(file: Path, outboxes: list[CountedOutbox], links: list[CountingLink]) -> None:
    fresh = file.with_suffix(".new")
    while True:
        report = Report(
            issued=sum(outbox.issued for outbox in outboxes),
            held=sum(outbox.held for outbox in outboxes),
            bodies=sum(link.bodies for link in links),
        )
        fresh.write_bytes(msgspec.msgpack.encode(report))
        fresh.replace(file)
        await asyncio.sleep(_REPORT_S)


def main() -> int:
    """Read the arguments and run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", type=Path)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--quota", type=int, required=True, help="updates of each node")
    parser.add_argument("--shapes", required=True, help="NAME=AxB,NAME=C: the model's units")
    parser.add_argument("--folder", type=Path, required=True, help="where the outboxes are")
    parser.add_argument("--report", type=Path, required=True)
    return run_daemon(_run(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
