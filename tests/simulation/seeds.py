"""Random faults for as many seeds as one likes, on all cores: `python -m tests.simulation.seeds`.

Every seed is a trial under each law of staleness. A failure is printed with the command that replays it; the
exit code is 1 when there was one.
"""

import argparse
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sims.checks import ViolationError
from tests.simulation.trials import LAWS, undergo, unseen

OK, FAILED = 0, 1
TRIAL_BOUND_S = 300
"""A trial takes half a second; one that takes so long does not end."""

ENOUGH = 0.99
"""So many of the trials must have seen all that they are about."""


@dataclass(frozen=True)
class Outcome:
    """What one trial came to: `broken` is the promise that was not kept, "" if all were."""

    seed: int
    law: str
    broken: str = ""
    unseen: list[str] = field(default_factory=list)
    issued: int = 0
    applied: int = 0
    virtual_s: float = 0.0
    struck: dict[str, int] = field(default_factory=dict)

    @property
    def replay(self) -> str:
        """The command that runs this trial alone."""
        return f"python -m tests.simulation.seeds --law {self.law} --replay {self.seed}"


def attempt(seed: int, law: str) -> Outcome:
    """Run one trial; whatever goes wrong in it is its outcome."""
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(TRIAL_BOUND_S)
    try:
        fleet, storms = undergo(seed, law)
    except ViolationError as violation:
        return Outcome(seed, law, broken=str(violation))
    except Exception:  # noqa: BLE001 - a protocol that falls over has broken its promise, however it does
        return Outcome(seed, law, broken=traceback.format_exc(limit=-6))
    finally:
        signal.alarm(0)
    issued = sum(node.disk.issued for node in fleet.nodes)
    applied = len(fleet.ledger.ledger)
    virtual_s = fleet.loop.now_us / 1e6
    missing = unseen(fleet, storms)
    return Outcome(seed, law, "", missing, issued, applied, virtual_s, dict(storms.struck))


def _too_long(*_: object) -> None:
    raise TimeoutError(f"the trial did not end within {TRIAL_BOUND_S} s")


def attempts(trials: Sequence[tuple[int, str]], workers: int) -> Iterator[Outcome]:
    """Yield the outcomes of all trials as they end, `workers` at a time."""
    with ProcessPoolExecutor(workers) as pool:
        todo = iter(trials)
        running: set[Future[Outcome]] = set()
        # Handed out as they are needed, so that an interruption ends at once.
        while True:
            while len(running) < 2 * workers and (trial := next(todo, None)) is not None:
                running.add(pool.submit(attempt, *trial))
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def summary(outcomes: Sequence[Outcome], took_s: float) -> dict[str, Any]:
    """Return the figures of all trials, for JSON."""
    struck: Counter[str] = Counter()
    for outcome in outcomes:
        struck.update(outcome.struck)
    return {
        "trials": len(outcomes),
        "seeds": len({outcome.seed for outcome in outcomes}),
        "failed": [{**asdict(o), "replay": o.replay} for o in outcomes if o.broken],
        "saw_too_little": [{"replay": o.replay, "unseen": o.unseen} for o in outcomes if o.unseen],
        "issued": sum(outcome.issued for outcome in outcomes),
        "applied": sum(outcome.applied for outcome in outcomes),
        "strikes": dict(sorted(struck.items())),
        "virtual_hours": round(sum(o.virtual_s for o in outcomes) / 3600, 1),
        "seconds": round(took_s, 1),
    }


def is_sound(figures: dict[str, Any]) -> bool:
    """Whether every promise was kept and nearly all trials saw what they are about."""
    thin = len(figures["saw_too_little"])
    return not figures["failed"] and thin <= (1 - ENOUGH) * figures["trials"]


def run(trials: Sequence[tuple[int, str]], workers: int, console: Console) -> dict[str, Any]:
    """Run all trials with a bar of progress, print failures when they happen, and return the figures."""
    columns = [TextColumn("fault seeds"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    outcomes, began = [], time.monotonic()
    with Progress(*columns, TextColumn("{task.fields[note]}"), console=console) as bar:
        task = bar.add_task("", total=len(trials), note="none failed")
        for outcome in attempts(trials, workers):
            outcomes.append(outcome)
            failed = sum(bool(one.broken) for one in outcomes)
            bar.update(task, advance=1, note=f"{failed or 'none'} failed")
            if outcome.broken:
                _tell(outcome, bar.console.print)
    outcomes.sort(key=lambda outcome: (outcome.seed, outcome.law))
    return summary(outcomes, time.monotonic() - began)


def _tell(outcome: Outcome, say: Callable[..., None]) -> None:
    say(f"FAILED law {outcome.law}, seed {outcome.seed}: {outcome.broken}", markup=False)
    say(f"  replay: {outcome.replay}", markup=False)


def _replay(seed: int, laws: Sequence[str], console: Console) -> int:
    outcomes = [attempt(seed, law) for law in laws]
    for outcome in outcomes:
        if outcome.broken:
            _tell(outcome, console.print)
        else:
            console.print(f"law {outcome.law}, seed {seed}: every promise was kept", markup=False)
            console.print_json(json.dumps(asdict(outcome)))
    return FAILED if any(outcome.broken for outcome in outcomes) else OK


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the seeds, or replay one; return the exit code."""
    options = _parser().parse_args(arguments)
    console = Console(soft_wrap=True, highlight=False)
    laws = [options.law] if options.law else list(LAWS)
    if options.replay is not None:
        return _replay(options.replay, laws, console)
    seeds = range(options.first, options.first + options.seeds)
    trials = [(seed, law) for seed in seeds for law in laws]
    figures = run(trials, options.workers, console)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps(figures, indent=2) + "\n")
    console.print(
        f"{figures['trials']} trials of {figures['seeds']} seeds, {figures['virtual_hours']} virtual hours,"
        f" {sum(figures['strikes'].values())} faults, {figures['issued']} updates issued,"
        f" {figures['applied']} applied: {len(figures['failed'])} failed,"
        f" {len(figures['saw_too_little'])} saw too little; {figures['seconds']:.0f} s;"
        f" written to {options.json}",
        markup=False,
    )
    return OK if is_sound(figures) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation.seeds", description="Random faults by the seed."
    )
    parser.add_argument("--seeds", type=int, default=1000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--law", choices=LAWS, help="one law of staleness only")
    parser.add_argument("--replay", type=int, metavar="SEED", help="run one seed, here")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", type=Path, default=Path("runs/seeds.json"), metavar="FILE")
    return parser


if __name__ == "__main__":
    sys.exit(main())
