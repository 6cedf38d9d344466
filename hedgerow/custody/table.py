"""An audit as a table for people, and as JSON."""

import json
from collections.abc import Iterable
from dataclasses import asdict

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hedgerow.custody.audit import Audit, Promise

_MOST_ROWS, _MOST_VIOLATIONS = 60, 5
_TERMS = ("issued", "applied", "rejected", "expired", "coalesced", "outbox")
_RESTORED = ("forgotten", "unknown")


def as_json(audit: Audit) -> str:
    """Return the audit as JSON text."""
    told = asdict(audit)
    told["holds"] = audit.holds
    for promise, table in zip(audit.promises, told["promises"], strict=True):
        table["kept"] = promise.kept
    return json.dumps(told, indent=2)


def as_table(audit: Audit) -> RenderableType:
    """Return the audit for people: the nodes, then a line for each promise."""
    parts: list[RenderableType] = [_nodes(audit)]
    parts += [line for promise in audit.promises for line in _lines(promise)]
    parts += [Text(f"note: {note}") for note in audit.notes]
    return Group(*parts)


def _nodes(audit: Audit) -> Table:
    table = Table(title="updates", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    # These two are there only where a disk was put back.
    restored = [term for term in _RESTORED if any(getattr(n, term) for n in audit.nodes)]
    terms = [*_TERMS, *restored]
    table.add_column("node")
    for term in terms:
        table.add_column(term, justify="right")
    rows = [(node.node, *(getattr(node, term) for term in terms)) for node in audit.nodes]
    for row in rows[:_MOST_ROWS]:
        table.add_row(*(str(cell) for cell in row))
    if len(rows) > _MOST_ROWS:
        table.add_row(f"and {len(rows) - _MOST_ROWS} more")
    table.add_section()
    table.add_row("all", *(str(sum(row[place + 1] for row in rows)) for place in range(len(terms))))
    return table


def _lines(promise: Promise) -> Iterable[Text]:
    verdict = "kept  " if promise.kept else "BROKEN"
    style = "green" if promise.kept else "bold red"
    yield Text.assemble((verdict, style), f" {promise.name:3} {promise.says} ({promise.checked})")
    for text in promise.violations[:_MOST_VIOLATIONS]:
        yield Text(f"           {text}", style="red")
    more = len(promise.violations) - _MOST_VIOLATIONS
    if more > 0:
        yield Text(f"           and {more} more")
