"""The status page: what it says, that it trusts nobody's names, and that a browser can show it."""

import shutil
import subprocess
from pathlib import Path

import msgspec
import pytest

from aggregator.status import LocalMetric
from aggregator.web import words
from aggregator.web.curve import draw
from aggregator.web.page import MAX_NODES, problems, render_page, staleness_bars
from tests.browser.sample_status import sample, sample_node, sample_plan

_CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Training: version 12, accuracy 0.862 (goal 0.920); waiting for 2 more updates."),
        ({"buffered_updates": 3}, "waiting for 1 more update."),
        ({"buffered_updates": 5}, "merging the next version now."),
        ({"target": None}, "accuracy 0.862;"),
        ({"curve": []}, "accuracy not measured yet"),
        ({"done": "target"}, "Finished: the goal is reached. The model is version 12"),
        ({"gateways": []}, "Waiting for a gateway: none is connected."),
        ({"nodes": [sample_node(1, "lost")]}, "Waiting for nodes: none has reported."),
    ],
)
def test_one_sentence_says_what_is_going_on(changes: dict[str, object], said: str) -> None:
    assert said in render_page(msgspec.structs.replace(sample(), **changes))


def test_nodes_own_tests_are_shown_where_there_are_any() -> None:
    assert "own examples" not in render_page(sample())
    found = [
        LocalMetric("accuracy", "global", 0.8125, 0.4375, 9),
        LocalMetric("accuracy", "personal", 0.9375, 0.875, 9),
    ]
    page = render_page(msgspec.structs.replace(sample(), local_metrics=found))
    said = ("own examples", "as published", "with the node's own pieces".replace("'", "&#39;"))
    for text in (*said, "0.812", "0.438", "0.938", "0.875"):
        assert text in page


def test_the_page_of_a_run_that_has_only_begun_can_be_shown() -> None:
    empty = msgspec.structs.replace(
        sample(),
        version=0,
        curve=[],
        gateways=[],
        nodes=[],
        staleness_histogram={},
        counters={},
        target=None,
        plan_parameters=0,
        model_parameters=0,
    )
    text = render_page(empty)
    for said in ("No gateway has connected yet", "No node has reported yet", "Nothing so far"):
        assert said in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "in use since version 5; worth 84% of what training everything would be."),
        ({}, "Last looked for a better one at version 10: the plan stays (it was time)."),
        ({"changed": True, "reason": "stall"}, "the plan was changed (training had stopped"),
        ({}, "The nodes are being asked: 2 of 3 answers are here."),
    ],
)
def test_a_searched_plan_says_since_when_and_why(changes: dict[str, object], said: str) -> None:
    plan = msgspec.structs.replace(sample_plan(), **changes)
    shown = render_page(msgspec.structs.replace(sample(), plan=plan))
    assert said in shown
    assert "59.6 KB" in shown
    assert said not in render_page(msgspec.structs.replace(sample(), plan=None))


def test_names_from_elsewhere_are_shown_as_text_and_nothing_is_loaded() -> None:
    evil = "<script>alert(1)</script>"
    text = render_page(msgspec.structs.replace(sample(), model=evil, plan_units=[evil], done=evil))
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    for loading in ("http:", "https:", "src=", "@import", "url("):
        assert loading not in text


def test_troubled_nodes_come_first_and_the_table_is_bounded() -> None:
    nodes = [sample_node(n, "ready") for n in range(MAX_NODES + 20)] + [
        sample_node(999, "lost", 7200.0)
    ]
    text = render_page(msgspec.structs.replace(sample(), nodes=nodes))
    assert text.index("barn-999") < text.index("barn-00")
    assert "and 21 more nodes" in text
    assert "2 hours ago" in text


def test_drops_are_told_with_their_reasons_from_everywhere() -> None:
    told = [(p.where, p.what, p.why, p.count) for p in problems(sample())]
    assert told == [
        ("gw-1", "Training not finished in time", "the node did not report in time", 5),
        ("aggregator", "Update rejected", "it is too old: the model has moved on", 3),
        ("gw-1", "Update rejected", "it is far larger than any honest update", 2),
        ("aggregator", "Request refused", "the access token was missing or wrong", 1),
    ]


def test_staleness_is_joined_in_ranges() -> None:
    bars = staleness_bars({0: 5, 2: 10, 15: 1, 30: 2, 500: 1})
    shown = {bar.label: bar.count for bar in bars if bar.count}
    assert shown == {"0": 5, "2": 10, "10 to 19": 1, "20 to 49": 2, "100 or more": 1}
    assert max(bar.share for bar in bars) == 100
    assert staleness_bars({}) == []


@pytest.mark.parametrize(
    ("values", "target"),
    [
        ([(3, 0.5)], None),
        ([(0, 0.0)], None),
        ([(0, -2.5), (9, 1e6)], 5.0),
        ([(v, 0.1) for v in range(3000)], 0.92),
    ],
)
def test_every_curve_lies_in_its_frame(
    values: list[tuple[int, float]], target: float | None
) -> None:
    curve = draw(values, target)
    assert curve is not None
    points = [tuple(map(float, pair.split(","))) for pair in curve.path.split()]
    assert len(points) <= 402
    positions = [x for point in points for x in point]
    positions += [tick.at for tick in (*curve.y_ticks, *curve.x_ticks, curve.last)]
    positions += [] if curve.target_at is None else [curve.target_at]
    assert all(-1e-6 <= at <= 100 + 1e-6 for at in positions)
    assert len({tick.text for tick in curve.y_ticks}) == len(curve.y_ticks)
    assert draw([], target) is None


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-1, "never"),
        (2, "just now"),
        (80, "80 seconds ago"),
        (100, "2 minutes ago"),
        (7200, "2 hours ago"),
        (200_000, "2 days ago"),
    ],
)
def test_times_are_words(seconds: float, said: str) -> None:
    assert words.ago(seconds) == said


def test_sizes_are_words() -> None:
    sizes = [words.size(count) for count in (0, 900, 2048, 5 << 20, 300 << 20, 3 << 40)]
    assert sizes == ["-", "900 bytes", "2.0 KB", "5.0 MB", "300 MB", "3072 GB"]


@pytest.mark.browser
@pytest.mark.skipif(_CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [390, 1200])
def test_a_real_browser_shows_it_without_a_sideways_scroll(tmp_path: Path, width: int) -> None:
    # Chromium's window is never narrower than 500: the phone is a frame of its width.
    (tmp_path / "page.html").write_text(render_page(sample()))
    frame = tmp_path / "frame.html"
    frame.write_text(
        f"<body style='margin:0'><iframe src=page.html style='width:{width}px;height:2600px;border:0'"
        " onload='const page = frames[0].document; document.title ="
        ' page.documentElement.scrollWidth + " " + page.querySelectorAll("tbody tr").length\'>'
        "</iframe>"
    )
    picture = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    flags += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    flags += [f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files"]
    flags += [f"--window-size={max(width, 500)},2600", "--hide-scrollbars"]
    assert _CHROMIUM is not None
    for what in (["--dump-dom"], [f"--screenshot={picture}"]):
        done = subprocess.run(
            [_CHROMIUM, *flags, *what, frame.as_uri()], capture_output=True, check=True, timeout=60
        )
        if what == ["--dump-dom"]:
            rows = len(sample().nodes) + len(sample().gateways) + len(sample_plan().classes) + 4
            assert f"<title>{width} {rows + 3}</title>" in done.stdout.decode()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size > 20_000
