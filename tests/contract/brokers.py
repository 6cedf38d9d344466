"""Real brokers and sessions for tests: start them, wait for what they report, see what arrived."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest

from hedgerow.core.config import BrokerConfig
from hedgerow.runtime.broker import RunningBroker, start_broker
from hedgerow.runtime.mosquitto import find_program
from hedgerow.runtime.mqtt import Backoff, MqttSession, Will

QUICK = Backoff(first_s=0.05, longest_s=0.5, denied_s=0.5)
Kind = Literal["mosquitto", "embedded"]
KINDS: tuple[Kind, ...] = ("mosquitto", "embedded")


class Watched:
    """Something whose changes can be awaited; who changes it calls `changed`."""

    def __init__(self) -> None:
        self._change = asyncio.Event()

    def changed(self) -> None:
        self._change.set()

    async def until(self, condition: Callable[[], bool], timeout_s: float = 15.0) -> None:
        async with asyncio.timeout(timeout_s):
            while not condition():
                self._change.clear()
                await self._change.wait()


class Peer(Watched):
    """A session and everything it reported."""

    def __init__(self, broker: BrokerConfig, name: str, will: Will | None = None) -> None:
        super().__init__()
        self.messages: list[tuple[str, bytes, bool]] = []
        self.counts: Counter[str] = Counter()
        self.downs: list[str] = []
        self.ups = 0
        self.fail_on: bytes | None = None
        self.session = MqttSession(
            broker,
            client_id=name,
            will=will,
            on_message=self._message,
            on_up=self._up,
            on_down=self._down,
            record=self._record,
            backoff=QUICK,
        )

    @property
    def payloads(self) -> list[bytes]:
        return [payload for _, payload, _ in self.messages]

    async def until_down(self) -> str:
        """Wait for the first connection that was lost or did not come about; returns why."""
        await self.until(lambda: bool(self.downs))
        return self.downs[0]

    async def until_heard(self, payload: bytes) -> None:
        await self.until(lambda: payload in self.payloads)

    def _message(self, topic: str, payload: bytes, retain: bool) -> None:  # noqa: FBT001
        self.messages.append((topic, payload, retain))
        self.changed()
        if payload == self.fail_on:
            raise RuntimeError("a handler that fails")

    def _up(self) -> None:
        self.ups += 1
        self.changed()

    def _down(self, text: str) -> None:
        self.downs.append(text)
        self.changed()

    def _record(self, event: str, amount: int) -> None:
        self.counts[event] += amount
        self.changed()


@asynccontextmanager
async def peer(
    broker: BrokerConfig, name: str, *topics: str, will: Will | None = None, wait: bool = True
) -> AsyncIterator[Peer]:
    """A running session subscribed to `topics`, connected unless `wait` is False."""
    made = Peer(broker, name, will)
    for topic in topics:
        made.session.subscribe(topic)
    running = asyncio.create_task(made.session.run())
    try:
        if wait:
            await made.until(lambda: made.ups > 0)
        yield made
    finally:
        await made.session.close()
        await running


async def subscribed(receiver: Peer, sender: Peer, topic: str) -> None:
    """Wait until what `sender` publishes on `topic` reaches `receiver`."""
    marker = f"subscribed? {len(receiver.messages)}".encode()
    async with asyncio.timeout(15):
        while marker not in receiver.payloads:
            sender.session.publish(topic, marker)
            with suppress(TimeoutError):
                await receiver.until(lambda: marker in receiver.payloads, 0.2)


def require(kind: Kind) -> None:
    """Skip the test, visibly, where this kind of broker cannot run."""
    if kind == "mosquitto" and find_program("mosquitto") is None:
        pytest.skip("mosquitto is not installed")


@asynccontextmanager
async def running_broker(
    config: BrokerConfig, folder: Path, *, acl: str = ""
) -> AsyncIterator[RunningBroker]:
    """A broker that is gone afterwards."""
    started = await start_broker(config, folder, acl=acl)
    try:
        yield started
    finally:
        await started.stop()


async def kill(broker: RunningBroker) -> None:
    """Kill -9, as a crash would."""
    assert broker.process is not None
    broker.process.kill()
    await broker.process.wait()
