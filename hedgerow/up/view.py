"""How a run is shown: a live view on a terminal, or one line per version."""

import sys
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from aggregator.status import NodeView, Status
from hedgerow.up.picture import Picture, evenly_by_bytes, in_bytes, progress, sparkline
from hedgerow.up.poll import GATEWAY_UP, NODE_UP, Point

_ROWS = 16
_SPARKS = 60
_BARS = 24
_STALENESS_ROWS = 8


class Screen(Protocol):
    """Where a run is shown."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End; the terminal is as before."""

    def show(self, picture: Picture, fresh: list[Point]) -> None:
        """Show the run; `fresh` are points of the curve not shown before."""

    def say(self, text: str) -> None:
        """Show something that happened."""


class PlainScreen:
    """One line per version and per event, for logs and pipes."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, *_: object) -> None:
        """End."""

    def show(self, picture: Picture, fresh: list[Point]) -> None:
        """Print a line for each point."""
        status = picture.status
        if status is None:
            return
        for point in fresh:
            self.say(
                f"version {point.version:4d}  {progress(status, point.value)}"
                f"  {in_bytes(point.bytes_up)} up  {point.at_s:.1f} s"
            )

    def say(self, text: str) -> None:
        """Print a line at once."""
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


class LiveScreen:
    """The live view."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the view away."""
        self._live.stop()

    def show(self, picture: Picture, fresh: list[Point]) -> None:
        """Draw the run as it stands; `fresh` is part of it already."""
        del fresh
        self._live.update(draw(picture))

    def say(self, text: str) -> None:
        """Print a line above the view, where it stays."""
        self._live.console.print(text, highlight=False, markup=False)


def draw(picture: Picture) -> RenderableType:
    """Return the whole view."""
    status = picture.status
    if status is None:
        return Panel(
            f"starting; broker {picture.broker}  {picture.elapsed_s:.0f} s", title="hedgerow up"
        )
    parts: list[RenderableType] = [_header(picture, status), _curve(picture)]
    tables = Table.grid(padding=(0, 3))
    tables.add_row(_nodes(status), Group(_gateways(status), _staleness(status)))
    parts.append(tables)
    if picture.events:
        parts.append(Text("\n".join(picture.events), style="yellow"))
    return Panel(Group(*parts), title=f"hedgerow up: {status.site}/{status.model}", expand=False)


def _header(picture: Picture, status: Status) -> Text:
    points = picture.history.points
    value = points[-1].value if points else None
    share = status.plan_parameters / max(status.model_parameters, 1)
    return Text(
        f"version {status.version}   {progress(status, value)}   {picture.elapsed_s:.0f} s"
        f"   {status.done or 'training'}\n"
        f"broker {picture.broker}   page {picture.page}\n"
        f"plan {status.plan_parameters:,} of {status.model_parameters:,} parameters ({share:.0%})"
        f"   {status.updates_applied} updates applied,"
        f" {status.buffered_updates} of {status.merge_at} wait for the next merge",
    )


def _curve(picture: Picture) -> Text:
    values = evenly_by_bytes(picture.history.points, _SPARKS)
    end = in_bytes(picture.traffic.total(NODE_UP))
    metric = picture.status.metric if picture.status else ""
    return Text(f"{sparkline(values, _SPARKS)}  {metric} over {end} sent by nodes", style="green")


def _nodes(status: Status) -> Table:
    table = Table(
        "node", "state", "gateway", "issued", "applied", "outbox", "stale", "seen", box=None
    )
    # Those that have been silent longest are the ones to look at.
    shown = sorted(status.nodes, key=lambda node: -node.seen_s)[:_ROWS]
    for node in sorted(shown, key=lambda node: node.state.node):
        table.add_row(*_node_row(node))
    if len(status.nodes) > _ROWS:
        table.add_row(f"and {len(status.nodes) - _ROWS} more")
    return table


def _node_row(node: NodeView) -> list[str]:
    counters = node.state.counters
    return [
        node.state.node,
        node.state.state,
        node.gateway,
        str(counters.get("issued", 0)),
        str(node.applied),
        str(counters.get("outbox", 0)),
        "-" if node.staleness < 0 else str(node.staleness),
        f"{node.seen_s:.0f} s",
    ]


def _gateways(status: Status) -> Table:
    table = Table("gateway", "link", "nodes", "sent", "seen", box=None)
    for gateway in status.gateways[:_ROWS]:
        seen = "never" if gateway.seen_s < 0 else f"{gateway.seen_s:.0f} s"
        sent = in_bytes(gateway.counters.get(GATEWAY_UP, 0))
        link = "up" if gateway.connected else "down"
        table.add_row(gateway.gateway, link, str(gateway.nodes), sent, seen)
    return table


def _staleness(status: Status) -> Table:
    table = Table("staleness", "updates", "", box=None)
    histogram = sorted(status.staleness_histogram.items())
    most = max((count for _, count in histogram), default=1)
    for staleness, count in histogram[:_STALENESS_ROWS]:
        table.add_row(str(staleness), str(count), "█" * max(round(count / most * _BARS), 1))
    rest = sum(count for _, count in histogram[_STALENESS_ROWS:])
    if rest:
        table.add_row("more", str(rest), "")
    return table
