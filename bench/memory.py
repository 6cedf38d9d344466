"""Memory of each tier with 10 and with 1,000 light nodes: broker, aggregator, one gateway, one real node.

The light nodes are real node protocols over real MQTT, without tinygrad, many in one process. RSS counts
shared pages in full, PSS each process's part of them.
"""

import resource
import time
from collections.abc import Callable, Mapping, Sequence

import psutil

from bench.light_nodes import shapes_of
from bench.measure import BenchError, Row, Settings
from bench.processes import Fleet
from bench.subjects import GATEWAY, Subject

FIGURE = "memory"
DEMO = Subject("demo", 256, "int8")
_COUNTS = (10, 1000)
_PER_PROCESS = 250
_VERSIONS = 3
_SAMPLES = 10
_SAMPLE_PAUSE_S = 0.3
_BOUND_S = 120.0
_NODE = "node-01"
_MB = 1e6


def measure(settings: Settings) -> list[Row]:
    """Measure both sizes of the fleet; a quick run only the small one."""
    counts = _COUNTS[:1] if settings.quick else _COUNTS
    return [row for count in counts for row in _measure(count, settings)]


def _measure(count: int, settings: Settings) -> list[Row]:
    settings.say(f"memory: {count} light nodes")
    # The broker inherits this: it has a connection for each of them.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    tables = DEMO.tables() | {
        "plan": {"preset": "biases+last"},
        "node": {"sleep_s": count / 100},
        "aggregation": {"buffer_size": count // 2},
        "gateway": {},
    }
    with Fleet(settings.folder / str(count), settings.broker, tables) as fleet:
        fleet.start_all()
        fleet.start_tier("node", _NODE)
        light = _start_light_nodes(fleet, count)
        fleet.wait_for(_NODE, lambda: _is_warm(fleet, count), _BOUND_S)
        versions = fleet.status().version
        processes: dict[str, Sequence[psutil.Process]] = {
            "broker": [fleet.broker],
            "aggregator": [fleet.processes["aggregator"]],
            "gateway": [fleet.processes[GATEWAY]],
            "one real node": [fleet.processes[_NODE]],
            "all light nodes": light,
        }
        note = f"after {versions} versions; broker {fleet.broker_kind}"
        return _sampled(processes, count, note)


def _start_light_nodes(fleet: Fleet, count: int) -> Sequence[psutil.Process]:
    shapes = shapes_of(DEMO.plan.manifest)
    started = []
    for first in range(0, count, _PER_PROCESS):
        arguments = ["--first", str(first), "--count", str(min(_PER_PROCESS, count - first))]
        module = ["-m", "bench.light_nodes", str(fleet.config_file), "--shapes", shapes]
        started.append(fleet.start(f"light-{first}", *module, *arguments))
    return started


def _is_warm(fleet: Fleet, count: int) -> bool:
    """Whether every node has reported, and some versions were merged since the first."""
    for name, process in fleet.processes.items():
        if process.poll() is not None:
            raise BenchError(f"{name} ended with code {process.returncode}")
    time.sleep(_SAMPLE_PAUSE_S)
    status = fleet.status()
    trained = sum(node.state.counters.get("issued", 0) > 0 for node in status.nodes)
    return trained > count and status.version >= _VERSIONS


def _sampled(processes: Mapping[str, Sequence[psutil.Process]], count: int, note: str) -> list[Row]:
    kinds: dict[str, Callable[[psutil.Process], float]] = {
        "RSS": lambda process: process.memory_info().rss / _MB,
        "PSS": lambda process: process.memory_full_info().pss / _MB,
    }
    sums: dict[tuple[str, str], list[float]] = {}
    for _ in range(_SAMPLES):
        for name, group in processes.items():
            for kind, read in kinds.items():
                sums.setdefault((name, kind), []).append(sum(map(read, group)))
        time.sleep(_SAMPLE_PAUSE_S)
    return [
        Row(FIGURE, f"{count} light nodes: {name}", f"MB {kind}", tuple(values), note)
        for (name, kind), values in sums.items()
    ]
