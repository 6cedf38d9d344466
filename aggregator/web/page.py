"""The status page: one picture of the run, rendered here whole; a browser needs nothing else."""

import itertools
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from aggregator.status import NodeView, Status
from aggregator.web import curve, words
from aggregator.web.notices import account_words, holds, notices

REFRESH_S = 5
MAX_NODES = 200
"""Nodes in the table; those in trouble come first, so what is left out is the healthy rest."""

_ENDLESS = 1 << 62
_TROUBLE = {"lost": 0, "disconnected": 1}

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_ENVIRONMENT.filters.update(
    ago=words.ago,
    span=words.span,
    size=words.size,
    state_words=words.state_words,
    metric_text=words.metric_text,
    kind_words=words.kind_words,
)
_ENVIRONMENT.globals.update(plural=words.plural, plan_words=words.plan_words)


@dataclass(frozen=True, slots=True)
class Bar:
    """One bar of the staleness histogram; `share` of the highest bar, in percent."""

    label: str
    count: int
    share: float


@dataclass(frozen=True, slots=True)
class Problem:
    """Something left out, and why."""

    where: str
    what: str
    why: str
    count: int


def render_page(status: Status) -> str:
    """Return the page as HTML."""
    values = curve.metric_values(status.curve, status.metric)
    value = values[-1][1] if values else None
    nodes = sorted(status.nodes, key=_node_order)
    return _ENVIRONMENT.get_template("page.html").render(
        status=status,
        refresh_s=REFRESH_S,
        value=value,
        sentence=words.sentence(status, value),
        notices=notices(status),
        account=account_words(status.account),
        account_holds=holds(status.account),
        curve=curve.draw(values, status.target),
        nodes=nodes[:MAX_NODES],
        nodes_left_out=max(0, len(nodes) - MAX_NODES),
        states=Counter(words.state_words(node.state.state) for node in nodes),
        bars=staleness_bars(status.staleness_histogram),
        problems=problems(status),
    )


def staleness_bars(histogram: dict[int, int]) -> list[Bar]:
    """Return bars for staleness 0, 1, 2 and so on; beyond 9 they are joined in ranges."""
    edges = [*range(10), 10, 20, 50, 100, _ENDLESS]
    bars = []
    for low, high in itertools.pairwise(edges):
        count = sum(n for staleness, n in histogram.items() if low <= staleness < high)
        bars.append((_range_label(low, high), count))
    while bars and bars[-1][1] == 0:
        bars.pop()
    most = max((count for _, count in bars), default=0)
    return [Bar(label, count, 100 * count / most) for label, count in bars]


def _range_label(low: int, high: int) -> str:
    if high == low + 1:
        return str(low)
    return f"{low} or more" if high == _ENDLESS else f"{low} to {high - 1}"


def problems(status: Status) -> list[Problem]:
    """Return what was left out here and at the gateways, the most frequent first."""
    sources = [("aggregator", status.counters)]
    sources += [(gateway.gateway, gateway.counters) for gateway in status.gateways]
    found = []
    for where, counters in sources:
        for counter, count in counters.items():
            said = words.problem(counter)
            if said is not None and count > 0:
                found.append(Problem(where, *said, count))
    return sorted(found, key=lambda problem: (-problem.count, problem.where, problem.what))


def _node_order(node: NodeView) -> tuple[int, str]:
    return _TROUBLE.get(node.state.state, len(_TROUBLE)), node.state.node
