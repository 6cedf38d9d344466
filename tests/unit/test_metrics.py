"""Counting and logging: what is counted can be read, the number of counters is bounded."""

import io
import json
import logging
from collections.abc import Iterator

import aiohttp
import pytest
import structlog

from hedgerow.core.codec import decode, encode
from hedgerow.core.messages import FleetReport
from hedgerow.runtime.health import HealthServer
from hedgerow.runtime.logs import configure_logs
from hedgerow.runtime.metrics import MAX_KEYS, Metrics


@pytest.fixture(autouse=True)
def _logging_as_it_was() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


def test_events_are_counted_by_reason() -> None:
    metrics = Metrics()
    metrics.record("update_admitted", 1, {"node": "node-1"})
    metrics.record("update_admitted", 2, {"node": "node-2"})
    metrics.record("update_rejected", 4, {"reason": "stale"})
    assert metrics.counters() == {"update_admitted": 3, "update_rejected:stale": 4}
    text = metrics.render().decode()
    assert 'hedgerow_events_total{event="update_admitted",reason=""} 3.0' in text
    assert 'hedgerow_events_total{event="update_rejected",reason="stale"} 4.0' in text


def test_gauges_show_their_last_value() -> None:
    metrics = Metrics()
    metrics.gauge("outbox_updates", 7)
    metrics.gauge("outbox_updates", 5)
    assert "hedgerow_outbox_updates 5.0" in metrics.render().decode()


def test_invented_reasons_do_not_fill_the_memory_and_nothing_is_lost() -> None:
    metrics = Metrics()
    for number in range(3 * MAX_KEYS):
        metrics.record("peer_fault", 1, {"reason": f"reason-{number}-{'x' * 200}"})
        metrics.record(f"event-{number}", 1, {})
    counters = metrics.counters()
    assert len(counters) <= MAX_KEYS + 2
    assert sum(counters.values()) == 6 * MAX_KEYS
    assert metrics.render().count(b"hedgerow_events_total{") == len(counters)
    report = FleetReport(gateway="gw-1", boot=1, nodes=[], counters=counters)
    assert decode(encode(report)) == report


def _lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_log_lines_are_json_with_role_id_and_fields() -> None:
    stream = io.StringIO()
    configure_logs("gateway", "gw-1", json=True, level="info", stream=stream)
    metrics = Metrics()
    metrics.record("update_admitted", 1, {"node": "node-1"})
    metrics.record("peer_fault", 1, {"reason": "stale", "peer": "node/node-1"})
    metrics.record("disk_full", 2, {"level": "error", "free_bytes": 0})
    logging.getLogger("somebody").warning("from a library: %d", 3)
    fault, full, library = _lines(stream)
    said = {"event": "peer_fault", "reason": "stale", "peer": "node/node-1", "level": "info"}
    assert fault.items() >= {**said, "role": "gateway", "id": "gw-1", "amount": 1}.items()
    assert full.items() >= {"event": "disk_full", "level": "error", "free_bytes": 0}.items()
    assert library.items() >= {"event": "from a library: 3", "id": "gw-1"}.items()


def test_people_get_lines_without_colour_codes_in_a_file() -> None:
    stream = io.StringIO()
    configure_logs("node", "node-1", json=False, level="debug", stream=stream)
    Metrics().record("update_issued", 1, {"seq": 4})
    assert "update_issued" in stream.getvalue()
    assert "seq=4" in stream.getvalue()
    assert "\x1b" not in stream.getvalue()


def test_an_unknown_level_is_named() -> None:
    with pytest.raises(ValueError, match="'loud' is not one of debug"):
        configure_logs("node", "node-1", json=True, level="loud")


async def test_the_health_server_tells_life_readiness_and_counts() -> None:
    ready, metrics = False, Metrics()
    metrics.record("update_admitted", 5, {})
    server = HealthServer("127.0.0.1", 0, lambda: ready, metrics)
    url = await server.start()
    try:
        async with aiohttp.ClientSession() as session:
            answers = {}
            for path in ("healthz", "readyz", "metrics"):
                async with session.get(f"{url}/{path}") as response:
                    answers[path] = (response.status, await response.text())
            ready = True
            async with session.get(f"{url}/readyz") as response:
                assert response.status == 200
    finally:
        await server.stop()
    assert answers["healthz"] == (200, "ok\n")
    assert answers["readyz"] == (503, "not yet\n")
    assert 'hedgerow_events_total{event="update_admitted",reason=""} 5.0' in answers["metrics"][1]
