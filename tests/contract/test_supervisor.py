import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from hedgerow.up.supervisor import Child, Patience, Supervisor, spawn

QUICK = Patience(first_delay_s=0.01, longest_delay_s=0.02, settled_s=30.0, short_lives=3)
FOREVER = "import time; time.sleep(600)"
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


def child(folder: Path, name: str, program: str) -> Child:
    log = folder / name / "log.txt"
    command = [sys.executable, "-S", "-c", textwrap.dedent(program)]
    return Child(name, partial(spawn, command, log, dict(os.environ)), log)


@asynccontextmanager
async def supervised(patience: Patience = QUICK) -> AsyncIterator[tuple[Supervisor, list[str]]]:
    told: list[str] = []
    supervisor = Supervisor(told.append, patience)
    try:
        yield supervisor, told
    finally:
        await supervisor.close()


async def until(true: Callable[[], object], bound_s: float = 30.0) -> None:
    async with asyncio.timeout(bound_s):
        while not true():
            await asyncio.sleep(0.01)


async def pid_of(supervisor: Supervisor, name: str, other_than: int = 0) -> int:
    await until(lambda: supervisor.pids.get(name, other_than) != other_than)
    return supervisor.pids[name]


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_what_is_killed_runs_again_and_is_counted(tmp_path: Path) -> None:
    async with supervised() as (supervisor, told):
        supervisor.add(child(tmp_path, "one", FOREVER))
        first = await pid_of(supervisor, "one")
        os.kill(first, signal.SIGKILL)
        second = await pid_of(supervisor, "one", other_than=first)
        assert runs(second)
        assert supervisor.restarts == {"one": 1}
        assert told == ["one was killed by SIGKILL; restart in 0.01 s"]
    assert not runs(second)


async def test_what_never_lives_is_given_up_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with supervised() as (supervisor, _):
        supervisor.add(child(tmp_path, "sick", "print('no such plan'); raise SystemExit(1)"))
        why = await asyncio.wait_for(asyncio.shield(supervisor.failed), 30)
        assert "sick ended with code 1 and is given up" in why
        assert why.count("no such plan") == QUICK.short_lives
        assert supervisor.restarts == {"sick": QUICK.short_lives - 1}


async def test_a_bad_configuration_is_not_tried_again(tmp_path: Path) -> None:
    async with supervised() as (supervisor, _):
        supervisor.add(child(tmp_path, "wrong", "raise SystemExit(2)"))
        assert "code 2" in await asyncio.wait_for(asyncio.shield(supervisor.failed), 30)
        assert not supervisor.restarts


async def test_what_cannot_be_started_is_given_up(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    async with supervised() as (supervisor, _):
        supervisor.add(Child("none", partial(spawn, ["/no/such/program"], log, {}), log))
        assert "could not be started" in await asyncio.wait_for(
            asyncio.shield(supervisor.failed), 30
        )


def test_the_wait_doubles_up_to_a_bound() -> None:
    patience = Patience(first_delay_s=0.5, longest_delay_s=3.0)
    assert [patience.delay_s(n) for n in (1, 2, 3, 4, 90)] == [0.5, 1.0, 2.0, 3.0, 3.0]


async def test_a_life_long_enough_forgives_the_short_ones(tmp_path: Path) -> None:
    patience = Patience(first_delay_s=0.01, settled_s=0.0, short_lives=2)
    async with supervised(patience) as (supervisor, _):
        supervisor.add(child(tmp_path, "flaky", "raise SystemExit(1)"))
        await until(lambda: supervisor.restarts["flaky"] >= 4)
        assert not supervisor.failed.done()


async def test_stopping_asks_first_and_does_not_restart(tmp_path: Path) -> None:
    polite = """
    import signal, sys, time
    def leave(*_):
        print("bye", flush=True)
        sys.exit(0)
    signal.signal(signal.SIGTERM, leave)
    print("ready", flush=True)
    time.sleep(600)
    """
    async with supervised() as (supervisor, told):
        one = child(tmp_path, "one", polite)
        supervisor.add(one)
        await until(lambda: one.log.exists() and "ready" in one.log.read_text())
        await supervisor.stop(["one"], grace_s=30)
        assert supervisor.pids == {}
        assert one.log.read_text() == "ready\nbye\n"
        assert told == []
        assert not supervisor.restarts


async def test_what_does_not_listen_is_killed_after_the_bound(tmp_path: Path) -> None:
    async with supervised() as (supervisor, told):
        deaf = child(tmp_path, "deaf", STUBBORN)
        supervisor.add(deaf)
        await until(lambda: deaf.log.exists() and "deaf" in deaf.log.read_text())
        pid = supervisor.pids["deaf"]
        await supervisor.stop(["deaf"], grace_s=0.2)
        assert not runs(pid)
        assert told == ["deaf did not stop within 0.2 s and was killed"]


async def test_tiers_stop_one_after_the_other(tmp_path: Path) -> None:
    async with supervised() as (supervisor, _):
        for name in ("node", "gateway", "broker"):
            supervisor.add(child(tmp_path, name, FOREVER))
        await until(lambda: len(supervisor.pids) == 3)
        for name, left in [
            ("node", {"gateway", "broker"}),
            ("gateway", {"broker"}),
            ("broker", set()),
        ]:
            await supervisor.stop([name], grace_s=30)
            assert set(supervisor.pids) == left


async def test_a_stop_during_the_wait_for_a_restart_ends_it(tmp_path: Path) -> None:
    patience = Patience(first_delay_s=3600.0, longest_delay_s=3600.0)
    async with supervised(patience) as (supervisor, told):
        supervisor.add(child(tmp_path, "one", "raise SystemExit(1)"))
        await until(lambda: told)
        await asyncio.wait_for(supervisor.stop(["one"], grace_s=30), 30)
        assert supervisor.pids == {}


async def test_a_process_that_runs_already_is_taken_over(tmp_path: Path) -> None:
    one = child(tmp_path, "one", FOREVER)
    running: Process = await one.start()
    async with supervised() as (supervisor, _):
        supervisor.add(one, running)
        assert supervisor.pids == {"one": running.pid}
        running.kill()
        assert await pid_of(supervisor, "one", other_than=running.pid) != running.pid


async def test_a_childs_own_children_end_with_it(tmp_path: Path) -> None:
    parent = f"""
    import subprocess, sys, time
    print(subprocess.Popen([sys.executable, "-S", "-c", {FOREVER!r}]).pid, flush=True)
    time.sleep(600)
    """
    async with supervised() as (supervisor, _):
        one = child(tmp_path, "one", parent)
        supervisor.add(one)
        await until(lambda: one.log.exists() and one.log.read_text().endswith("\n"))
        grandchild = int(one.log.read_text())
        os.kill(supervisor.pids["one"], signal.SIGKILL)
        await until(lambda: not runs(grandchild))


@pytest.mark.parametrize("program", [FOREVER, STUBBORN], ids=["polite", "deaf"])
def test_nothing_outlives_a_killed_supervisor(tmp_path: Path, program: str) -> None:
    script = f"""
    import asyncio, os, sys
    from functools import partial
    from pathlib import Path
    from hedgerow.up.supervisor import Child, Supervisor, spawn

    async def main():
        supervisor = Supervisor(print)
        command = [sys.executable, "-S", "-c", {program!r}]
        log = Path({str(tmp_path)!r}) / "log.txt"
        supervisor.add(Child("one", partial(spawn, command, log, dict(os.environ)), log))
        while "one" not in supervisor.pids:
            await asyncio.sleep(0.01)
        print(supervisor.pids["one"], flush=True)
        await asyncio.sleep(600)

    asyncio.run(main())
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert runs(pid)
        parent.kill()
    deadline = time.monotonic() + 30
    while runs(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(pid)
