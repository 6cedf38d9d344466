"""The node's training step: its speed, and the first one with an empty and with a filled cache."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.blas import ORIGINAL_ENVIRONMENT
from bench.measure import BenchError, Row, Settings

FIGURE = "node"
_BOUND_S = 120.0


def measure(settings: Settings) -> list[Row]:
    """Train in fresh processes: some with a cache folder of their own, as many with one they share."""
    starts = 1 if settings.quick else 3
    cold = [
        _train(settings, settings.folder / f"cold-{number}", f"empty cache, start {number + 1}")
        for number in range(starts)
    ]
    shared = settings.folder / "cold-0"
    cached = [_train(settings, shared, f"filled cache, start {n + 1}") for n in range(starts)]
    share = f"demo network 64-256-10, plan biases+last ({100 * cold[0]['plan_share']:.0f} %)"
    speed = _values(cold + cached, "steps_per_cpu_s")
    rows = [Row(FIGURE, "step, batch of 16", "steps per CPU-second", speed, share)]
    for name, runs in (("empty cache", cold), ("jit from the cache", cached)):
        rows += [
            Row(FIGURE, f"first step, {name}", "s", _values(runs, "first_step_s")),
            Row(
                FIGURE,
                f"first step, {name}",
                "CPU-s",
                _values(runs, "first_step_cpu_s"),
                "compilers included",
            ),
        ]
    prepare = _values(cold + cached, "prepare_s")
    rows.append(Row(FIGURE, "imports, data and model before it", "s", prepare))
    return rows


def _values(runs: Sequence[dict[str, float]], name: str) -> tuple[float, ...]:
    return tuple(run[name] for run in runs)


def _train(settings: Settings, cache: Path, text: str) -> dict[str, float]:
    settings.say(f"node: {text}")
    command = [sys.executable, "-m", "bench.train_child", "--cache", str(cache)]
    command += ["--least-s", str(0.1 if settings.quick else 1.0)]
    try:
        answer = subprocess.run(
            command,
            capture_output=True,
            timeout=_BOUND_S,
            check=False,
            env=ORIGINAL_ENVIRONMENT,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"training took more than {_BOUND_S:g} s") from error
    if answer.returncode:
        raise BenchError(f"training failed:\n{answer.stderr.decode(errors='replace')[-2000:]}")
    figures: dict[str, float] = json.loads(answer.stdout)
    return figures
