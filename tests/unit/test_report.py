import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from aggregator.status import CurvePoint, GatewayView, NodeView, Status
from hedgerow.core.messages import NodeState
from hedgerow.custody.law import NodeAccount
from hedgerow.up.law import Account
from hedgerow.up.picture import Picture, evenly_by_bytes, in_bytes, sparkline
from hedgerow.up.plot import write_plot
from hedgerow.up.poll import History, Meter, Point, Traffic
from hedgerow.up.report import Costs, Report, as_json, as_table, make_report
from hedgerow.up.view import draw


def node_view(up: int, down: int = 0, name: str = "node-01") -> NodeView:
    counters = {"mqtt_bytes_up": up, "mqtt_bytes_down": down, "issued": 5, "outbox": 1}
    state = NodeState(node=name, epoch=1, state="ready", counters=counters)
    return NodeView(state, "gw-1", 0.1, 4, 0, {})


def status(
    *,
    term: int = 1,
    done: str = "target",
    nodes: list[NodeView] | None = None,
    gateway: Mapping[str, int] | None = None,
) -> Status:
    return Status(
        site="home",
        model="digits",
        version=3,
        term=term,
        uptime_s=9.0,
        done=done,
        metric="accuracy",
        target=0.9,
        plan_units=["a.bias"],
        plan_parameters=200,
        model_parameters=1000,
        buffered_updates=0,
        merge_at=4,
        updates_applied=4,
        staleness_histogram={1: 1, 0: 3},
        counters={},
        curve=[
            CurvePoint(version, {"accuracy": value, "loss": 1.0}, 4, 0, 0.0)
            for version, value in [(0, 0.1), (1, 0.8), (3, 0.92)]
        ],
        gateways=[GatewayView("gw-1", True, 0.1, 1, dict(gateway or {}))],  # noqa: FBT003 - a field
        nodes=nodes if nodes is not None else [node_view(900, 700)],
    )


def report(problems: list[str] | None = None, done: str = "target") -> Report:
    traffic = Traffic({})
    picture = status(done=done, gateway={"http_bytes_up": 300, "http_bytes_down": 600, "held": 2})
    traffic.take(picture)
    return make_report(
        picture,
        Account([NodeAccount("node-01", 5, 4, 0, 0, 1)], problems or []),
        traffic,
        [Point(0, 0.1, 0, 0.5), Point(3, 0.92, 900, 4.0)],
        broker="mosquitto on mqtt://127.0.0.1:1883",
        training_memory={"plan": 10_000, "full": 40_000},
        restarts={"gw-1": 2},
        costs=Costs(12.5, 20.0, 1 << 29, {"node-01": 1 << 27}),
    )


def text_of(made: Report) -> str:
    console = Console(width=140, file=StringIO(), record=True)
    console.print(as_table(made))
    return console.export_text()


def test_bytes_stand_beside_those_of_fedavg_with_the_same_updates() -> None:
    made = report()
    full = 4 * 1000 * 4
    for tier, up, down in [
        (made.nodes_to_gateways, 900, 700),
        (made.gateways_to_aggregator, 300, 600),
    ]:
        assert (tier.up_bytes, tier.down_bytes) == (up, down)
        assert (tier.fedavg_up_bytes, tier.fedavg_down_bytes) == (full, full)


def test_the_json_holds_the_verdicts_and_the_figures() -> None:
    tables = json.loads(as_json(report()))
    assert tables["target_met"] is True
    assert tables["law_holds"] is True
    assert (tables["before"], tables["after"], tables["best"]) == (0.1, 0.92, 0.92)
    assert tables["staleness_histogram"] == {"0": 3, "1": 1}
    assert tables["account"]["nodes"][0]["outbox"] == 1


@pytest.mark.parametrize(
    ("done", "said"),
    [("", "not reached yet"), ("max-versions", "MISSED (max-versions)"), ("max-time", "MISSED")],
)
def test_a_limit_is_not_the_target(done: str, said: str) -> None:
    made = report(done=done)
    assert not made.target_met
    assert said in text_of(made)


def test_the_table_tells_what_was_asked() -> None:
    text = text_of(report())
    for said in [
        "0.1000 -> 0.9200",
        "reached",
        "gw-1 2x",
        "20.0%",
        "25.0%",
        "law holds",
        "node-01",
    ]:
        assert said in text


def test_a_broken_law_is_told_in_its_own_words() -> None:
    made = report(["node-01 epoch 1: issued 5 is not 4"])
    assert not made.law_holds
    assert "BROKEN" in text_of(made)
    assert "issued 5 is not 4" in text_of(made)


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    write_plot(report(), tmp_path / "report.png")
    assert (tmp_path / "report.png").read_bytes().startswith(b"\x89PNG")


lives = st.lists(st.lists(st.integers(0, 1000), min_size=1, max_size=5), min_size=1, max_size=4)


@given(lives)
def test_a_meter_adds_up_lives_that_each_begin_at_zero(grown: list[list[int]]) -> None:
    meter, expected = Meter(), 0
    for life in grown:
        meter.take({"b": 0})
        running = 0
        for step in life:
            running += step
            meter.take({"b": running})
        expected += running
    assert meter.totals["b"] == expected


def test_traffic_survives_a_restart_of_the_aggregator_and_of_a_gateway() -> None:
    traffic = Traffic({"gw-1": {"http_bytes_up": 1000}})
    traffic.take(status(term=1, gateway={"http_bytes_up": 500}))
    # The gateway restarted: the aggregator's sum went on. Then the aggregator did, and the sum began anew.
    traffic.take(status(term=1, gateway={"http_bytes_up": 700}))
    traffic.take(status(term=2, gateway={}))
    traffic.take(status(term=2, gateway={"http_bytes_up": 250}))
    traffic.take(status(term=2, gateway={"http_bytes_up": 300}))
    assert traffic.total("http_bytes_up") == 1000 + 700 + 50


def test_traffic_of_nodes_is_their_own_whoever_observes() -> None:
    traffic = Traffic({})
    for term, up in [(1, 100), (1, 400), (2, 450), (2, 20)]:
        traffic.take(status(term=term, nodes=[node_view(up)]))
    assert traffic.by_source()["node-01"]["mqtt_bytes_up"] == 450 + 20


def test_a_version_is_a_point_once_with_the_cost_at_first_sight() -> None:
    history = History()
    assert len(history.take(status(), 900, 4.0)) == 3
    assert history.take(status(), 1000, 5.0) == []
    assert [point.bytes_up for point in history.points] == [900, 900, 900]


@given(st.lists(st.floats(0, 1), max_size=200), st.integers(2, 80))
def test_a_sparkline_is_never_wider_than_asked(values: list[float], width: int) -> None:
    assert len(sparkline(values, width)) == min(len(values), width)


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10**9)), min_size=1, max_size=50))
def test_a_curve_over_bytes_begins_and_ends_with_the_curve(steps: list[tuple[float, int]]) -> None:
    sent = sorted(count for _, count in steps)
    points = [Point(i, value, sent[i], 0.0) for i, (value, _) in enumerate(steps)]
    values = evenly_by_bytes(points, 20)
    assert len(values) == 20
    assert values[-1] == points[-1].value


@pytest.mark.parametrize(
    ("count", "said"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 KB"), (2_500_000, "2.5 MB")]
)
def test_bytes_in_words(count: int, said: str) -> None:
    assert in_bytes(count) == said


def test_the_live_view_shows_nodes_gateways_and_events() -> None:
    picture = Picture("mosquitto", "http://127.0.0.1:1/", Traffic({}), History())
    console = Console(width=160, file=StringIO(), record=True)
    console.print(draw(picture))
    picture.take(status(done="", nodes=[node_view(1, name=f"node-{i:02d}") for i in range(40)]))
    picture.events.append("gw-1 was killed by SIGKILL")
    console.print(draw(picture))
    text = console.export_text()
    for said in [
        "starting",
        "node-00",
        "and 24 more",
        "gw-1",
        "version 3",
        "SIGKILL",
        "0.9200 of 0.9",
    ]:
        assert said in text
