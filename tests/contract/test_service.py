"""The end of a daemon."""

import asyncio
from collections.abc import Mapping
from typing import Any

from hedgerow.core.effects import Effect
from hedgerow.runtime.driver import Driver
from hedgerow.runtime.ports import NoChannels
from hedgerow.runtime.service import run_driver


class Idle:
    """A protocol that wants nothing."""

    def start(self, now_us: int) -> None: ...
    def receive(self, peer: str, message: Any, now_us: int) -> None: ...
    def timer_fired(self, name: str, now_us: int) -> None: ...
    def job_done(self, result: Any, now_us: int) -> None: ...
    def effects(self) -> list[Effect]:
        return []


class Nowhere(NoChannels):
    def send(self, peer: str, message: Any) -> None: ...


class NoStore:
    async def save(self, rows: tuple[Any, ...]) -> None:
        raise RuntimeError(f"nothing asks for it, got {rows}")


class Silent:
    def record(self, event: str, amount: int, fields: Mapping[str, Any]) -> None: ...


async def test_a_link_says_goodbye_while_its_task_still_runs() -> None:
    driver = Driver(Idle(), link=Nowhere(), store=NoStore(), compute=None, recorder=Silent())
    running: list[bool] = []
    alive = asyncio.Event()

    async def link() -> None:
        alive.set()
        try:
            await asyncio.Event().wait()
        finally:
            alive.clear()

    async def goodbye() -> None:
        running.append(alive.is_set())

    asyncio.get_running_loop().call_later(0.05, driver.stop)
    await run_driver(driver, link(), goodbye=goodbye)
    assert running == [True]
    assert not alive.is_set()


async def test_a_goodbye_that_fails_does_not_hide_the_end() -> None:
    driver = Driver(Idle(), link=Nowhere(), store=NoStore(), compute=None, recorder=Silent())

    async def goodbye() -> None:
        raise OSError("the broker is gone")

    asyncio.get_running_loop().call_later(0.01, driver.stop)
    await run_driver(driver, goodbye=goodbye)
