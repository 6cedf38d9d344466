"""`hedgerow up`: a run from its configuration to its report and exit code."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE
from collections import Counter
from contextlib import suppress

from rich.console import Console

from aggregator.status import Status
from hedgerow.core.config import Config
from hedgerow.runtime.broker import BrokerStartError
from hedgerow.up import children, law
from hedgerow.up.options import Options
from hedgerow.up.plot import write_plot
from hedgerow.up.ports import Ports
from hedgerow.up.report import Costs, Report, as_json, as_table, make_report
from hedgerow.up.runfolder import RunFolder, open_run
from hedgerow.up.session import RunError, Session, running_fleet
from hedgerow.up.view import LiveScreen, PlainScreen, Screen

OK, FAILED, INTERRUPTED = 0, 1, 130
_MEMORY_TIMEOUT_S = 300.0


def run_up(options: Options) -> int:
    """Run a fleet and return the exit code. Raises ConfigError before anything is started."""
    console = Console(soft_wrap=True, highlight=False)
    with open_run(options) as (folder, config):
        live = console.is_terminal and not options.plain
        screen: Screen = LiveScreen(console) if live else PlainScreen()
        try:
            return asyncio.run(_run(options, folder, config, screen, console))
        except (RunError, BrokerStartError) as error:
            sys.stderr.write(f"hedgerow: {error}\n")
            return FAILED


async def _run(
    options: Options, folder: RunFolder, config: Config, screen: Screen, console: Console
) -> int:
    with Ports() as ports:
        async with running_fleet(folder, config, ports, screen) as session:
            with screen:
                await session.train()
                await session.drain()
                await session.stop()
    costs = _keep_totals(session)
    interrupted = session.interrupted.is_set()
    status = session.picture.status
    report = await _report(session, status, costs) if status is not None else None
    if report is not None:
        _write(report, folder, options)
        console.print(as_table(report))
        console.print(f"\nreport, plot and logs: {folder.path}")
    if interrupted:
        console.print(f"interrupted; to go on: hedgerow up --resume --dir {folder.path}")
        return INTERRUPTED
    return OK if report is not None and report.target_met and report.law_holds else FAILED


def _keep_totals(session: Session) -> Costs:
    """Add this session to the run's sums, durably, and return what the run has cost so far."""
    state = session.folder.state
    state.wall_s += session.elapsed_s()
    state.cpu_s += session.usage.cpu_s()
    state.restarts = dict(Counter(state.restarts) + session.supervisor.restarts)
    session.keep_figures()
    return Costs(
        wall_s=state.wall_s,
        cpu_s=state.cpu_s,
        peak_rss_bytes=session.usage.peak_rss_bytes,
        peak_rss_by_process=session.usage.peak_by_process,
    )


async def _report(session: Session, status: Status, costs: Costs) -> Report:
    account = law.check_run(session.folder.path, children.node_names(session.config))
    # An interrupted run is answered at once; the measurement takes seconds.
    memory = {} if session.interrupted.is_set() else await _training_memory(session.folder)
    return make_report(
        status,
        account,
        session.picture.traffic,
        session.picture.history.points,
        broker=session.picture.broker,
        training_memory=memory,
        restarts=session.folder.state.restarts,
        costs=costs,
    )


async def _training_memory(folder: RunFolder) -> dict[str, int]:
    """Measure peak training memory of the plan and of the whole model, {} where that fails."""
    command = [sys.executable, "-m", "edge_node.memory_report", str(folder.config_file)]
    log = folder.path / "memory-report.txt"
    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *command, stdout=PIPE, stderr=errors, env=children.environment(folder)
        )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), _MEMORY_TIMEOUT_S)
        return {name: int(json.loads(output)[name]) for name in ("plan", "full")}
    except (TimeoutError, ValueError, KeyError):
        sys.stderr.write(f"hedgerow: training memory could not be measured, see {log}\n")
        return {}
    finally:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()


def _write(report: Report, folder: RunFolder, options: Options) -> None:
    text = as_json(report)
    (folder.path / "report.json").write_text(text)
    if options.json_file is not None:
        options.json_file.write_text(text)
    write_plot(report, folder.path / "report.png")
