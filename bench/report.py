"""The table for people and the file for machines."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.measure import Row

SCHEMA = 1
REFERENCE = {
    "what": "legacy Flower gRPC server, 20 clients, updates of 399,940 bytes of float32",
    "unit": "updates per server-CPU-second",
    "value": 520,
    "note": "measured earlier on this kind of machine (2 shared cores); not measured by this run",
}
"""What the gateway's ingest is compared with."""


def as_document(rows: Sequence[Row], about: dict[str, Any], *, quick: bool) -> dict[str, Any]:
    """Return everything as plain values for JSON."""
    return {
        "schema": SCHEMA,
        "quick": quick,
        "machine": about,
        "reference": REFERENCE,
        "rows": [row.as_dict() for row in rows],
    }


def write_json(document: dict[str, Any], file: Path) -> None:
    """Write the document, replacing an earlier one."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(document, indent=2) + "\n")


def print_table(document: dict[str, Any], console: Console) -> None:
    """Print machine, rows and reference."""
    about = document["machine"]
    console.print(
        f"{about['processor']}, {about['cores']} cores, {about['memory_gb']} GB, load"
        f" {about['load_1_min']} before and {about.get('load_1_min_after', '-')} after;"
        f" Python {about['python']}, numpy {about['numpy']}; {about['system']}"
    )
    table = Table(title="hedgerow bench" + (" --quick: a smoke test" if document["quick"] else ""))
    table.add_column("figure", no_wrap=True)
    table.add_column("what")
    for name in ("median", "min..max"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("unit")
    table.add_column("note", style="dim")
    previous = ""
    for row in document["rows"]:
        figure = row["figure"]
        if previous and figure != previous:
            table.add_section()
        table.add_row(
            "" if figure == previous else figure,
            row["what"],
            _short(row["median"]),
            f"{_short(row['min'])}..{_short(row['max'])} ({len(row['values'])})",
            row["unit"],
            row["note"],
        )
        previous = figure
    console.print(table)
    reference = document["reference"]
    console.print(
        f"For comparison: {reference['what']}: {reference['value']} {reference['unit']};"
        f" {reference['note']}."
    )


def _short(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
