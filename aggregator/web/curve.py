"""The curve of a metric over versions, as positions in percent of its frame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from aggregator.status import CurvePoint

_MAX_POINTS = 400
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Tick:
    """A label and where it stands, in percent from the left or from the bottom."""

    text: str
    at: float


@dataclass(frozen=True, slots=True)
class Curve:
    """What the template draws. `path` are the points of an SVG polyline in a frame of 100 by 100."""

    path: str
    last: Tick
    last_y: float
    y_ticks: list[Tick]
    x_ticks: list[Tick]
    target_at: float | None


def metric_values(curve: Sequence[CurvePoint], metric: str) -> list[tuple[int, float]]:
    """Return version and value of each evaluation that has a finite value of the metric."""
    found = ((point.version, point.metrics.get(metric, math.nan)) for point in curve)
    return [(version, value) for version, value in found if math.isfinite(value)]


def draw(values: Sequence[tuple[int, float]], target: float | None) -> Curve | None:
    """Return the curve of at least one value; None without any."""
    if not values:
        return None
    heights = [value for _, value in values] + ([] if target is None else [target])
    ticks = _nice_ticks(min(heights), max(heights))
    low, high = ticks[0], ticks[-1]
    first, last = values[0][0], max(values[-1][0], values[0][0] + 1)

    def x_of(version: float) -> float:
        return 100 * (version - first) / (last - first)

    def y_of(value: float) -> float:
        return 100 * (value - low) / (high - low)

    digits = max(0, -math.floor(math.log10(ticks[1] - ticks[0])))
    shown = _thin(values)
    version, value = values[-1]
    return Curve(
        path=" ".join(f"{x_of(v):.2f},{100 - y_of(y):.2f}" for v, y in shown),
        last=Tick(f"{value:.{digits + 1}f}", x_of(version)),
        last_y=y_of(value),
        y_ticks=[Tick(f"{tick:.{digits}f}", y_of(tick)) for tick in ticks],
        x_ticks=[Tick(str(v), x_of(v)) for v in _whole_ticks(first, last)],
        target_at=None if target is None else y_of(target),
    )


def _thin(values: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    step = math.ceil(len(values) / _MAX_POINTS)
    return [*values[:-1:step], values[-1]]


def _nice_ticks(low: float, high: float) -> list[float]:
    """Return evenly spaced round numbers around [low, high]."""
    room = (high - low) or abs(high) or 1.0
    step = _nice_step(room / _TICKS)
    start, stop = math.floor(low / step), math.ceil(high / step)
    return [n * step for n in range(start, max(stop, start + 1) + 1)]


def _whole_ticks(first: int, last: int) -> list[int]:
    step = max(1, round(_nice_step((last - first) / _TICKS)))
    return list(range(-(-first // step) * step, last + 1, step))


def _nice_step(least: float) -> float:
    """Return the smallest of 1, 2, 5 times a power of ten that is at least `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
