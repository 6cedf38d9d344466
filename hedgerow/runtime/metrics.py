"""Where events are counted and logged: the `Recorder` of every tier.

The number of counters is bounded: reasons come from neighbours, and a neighbour that invents new ones
must not fill the memory.
"""

from collections.abc import Mapping
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest

MAX_KEYS = 200
"""Distinct pairs of event and reason; those beyond are counted under the reason "other"."""

_KEY_CHARS = 64
_NOTABLE = frozenset(
    {
        "evaluated",
        "evaluation_failed",
        "training_closed",
        "training_failed",
        "rehomed",
        "replanned",
        "replan_kept",
        "mqtt_connects",
        "mqtt_reconnects",
        "mqtt_disconnects",
        "mqtt_connect_failures",
        "version_stream_ended",
        "peer_fault",
        "save_failed",
        "island_merged",
        "partial_set_aside",
        "undelivered",
    }
)
"""Events that are logged at info; all others at debug, unless a field `level` says otherwise."""


class Metrics:
    """Counts events, keeps gauges, logs each event with its fields."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._events = Counter(
            "hedgerow_events",
            "Events by name and reason.",
            ("event", "reason"),
            registry=self._registry,
        )
        self._gauges: dict[str, Gauge] = {}
        self._counts: dict[str, int] = {}
        self._log = structlog.get_logger()

    def record(self, event: str, amount: int, fields: Mapping[str, Any]) -> None:
        """Count `amount` of an event under its field `reason`, and log it at its field `level`."""
        # Cut here, not only in the key: each other reason would be a series of its own.
        reason = str(fields.get("reason", ""))[: max(_KEY_CHARS - len(event) - 1, 0)]
        key = _key(event, reason)
        if key not in self._counts and len(self._counts) >= MAX_KEYS:
            event, reason = ("other", "") if event not in self._counts else (event, "")
            key = event
        self._counts[key] = self._counts.get(key, 0) + amount
        self._events.labels(event, reason).inc(amount)
        level = fields.get("level", "info" if event in _NOTABLE else "debug")
        rest = {name: value for name, value in fields.items() if name != "level"}
        getattr(self._log, level)(event, amount=amount, **rest)

    def counters(self) -> dict[str, int]:
        """Return every count so far by "event", or "event:reason" where a reason was given."""
        return dict(self._counts)

    def gauge(self, name: str, value: float) -> None:
        """Set the gauge `hedgerow_NAME`."""
        if name not in self._gauges:
            text = f"{name.replace('_', ' ').capitalize()}."
            self._gauges[name] = Gauge(f"hedgerow_{name}", text, registry=self._registry)
        self._gauges[name].set(value)

    def gauges(self, name: str, label: str, values: Mapping[str, float]) -> None:
        """Set the gauge `hedgerow_NAME` by the values of one label; former values that are not there go."""
        if name not in self._gauges:
            text = f"{name.replace('_', ' ').capitalize()}."
            self._gauges[name] = Gauge(f"hedgerow_{name}", text, (label,), registry=self._registry)
        self._gauges[name].clear()
        for key, value in values.items():
            self._gauges[name].labels(key).set(value)

    def render(self) -> bytes:
        """Return everything in Prometheus' text format."""
        return generate_latest(self._registry)


def _key(event: str, reason: str) -> str:
    return (f"{event}:{reason}" if reason else event)[:_KEY_CHARS]
