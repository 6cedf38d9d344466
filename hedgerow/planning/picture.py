"""The network as text: one line per stage, with its units and what of it is trained."""

from collections.abc import Collection
from itertools import groupby

from rich.table import Table
from rich.text import Text

from hedgerow.planning.report import PlanReport, StageRow
from hedgerow.planning.sizes import in_kib

_TRAINED, _FROZEN, _PERSONAL = "■", "□", "▣"
_STYLES = {_TRAINED: "bold green", _FROZEN: "dim", _PERSONAL: "bold magenta"}


def network_picture(report: PlanReport, trained: Collection[str]) -> Table:
    """Return the stages from the input on, the units of each as squares: filled ones are trained."""
    chosen, personal = frozenset(trained), frozenset(report.personal)
    table = Table(
        title="the network, from the input on",
        title_justify="left",
        caption=f"{_TRAINED} trained  {_FROZEN} frozen"
        + (f"  {_PERSONAL} personal" if personal else "")
        + "; stages before the first trained one are computed once",
        caption_justify="left",
    )
    table.add_column("stage")
    table.add_column("units")
    for name in ("trained", "activations", "MFLOP"):
        table.add_column(name, justify="right")
    for stage in report.stages:
        table.add_row(*_line(stage, chosen, personal))
    return table


def _line(stage: StageRow, chosen: frozenset[str], personal: frozenset[str]) -> list[Text]:
    held = sum(size for _, size in stage.units)
    own = sum(size for name, size in stage.units if name in chosen | personal)
    style = "bold" if own else "dim"
    return [
        Text(stage.name, style),
        _units(stage, chosen, personal),
        Text(f"{own:,} of {held:,}", style),
        Text(in_kib(stage.activation_bytes), style),
        Text(f"{stage.mflop:.3g}", style),
    ]


def _units(stage: StageRow, chosen: frozenset[str], personal: frozenset[str]) -> Text:
    """Return each tensor's name and a square for each of its units."""
    text = Text()
    for tensor, units in groupby((name for name, _ in stage.units), _tensor):
        text.append(f"{tensor.removeprefix(f'{stage.name}.')} ", "dim")
        for name in units:
            mark = _TRAINED if name in chosen else _PERSONAL if name in personal else _FROZEN
            text.append(mark, _STYLES[mark])
        text.append("  ")
    return text


def _tensor(unit: str) -> str:
    return unit.partition("[")[0]
