"""What each site's nodes have, read from its broker while a fleet runs."""

import io

import numpy as np
from rich.console import Console

from hedgerow.core.versions import is_provisional
from sims.datasets import NODES_PER_SITE, SITES, digits_by_site
from sims.report.sites import site_tables
from sims.result import Report
from sims.run import run_strategy
from sims.scenariofile import load_scenario, with_overrides
from sims.traces import Traces

HOUR_S = 3600.0


def run_briefly() -> Report:
    scenario = with_overrides(
        load_scenario("islands"),
        {
            "scenario.duration_s": 8 * HOUR_S,
            "scenario.evaluate_every_s": 2 * HOUR_S,
            "scenario.compute": "surrogate",
            "faults.0.at_s": 2 * HOUR_S,
            "faults.1.at_s": 2 * HOUR_S,
            "faults.0.for_s": 3 * HOUR_S,
            "faults.1.for_s": 3 * HOUR_S,
            "island.after_s": 600.0,
            "node.sleep_s": 600.0,
        },
    )
    result = run_strategy(scenario, "ftte", traces=Traces(None))
    return Report(
        scenario="islands",
        about="",
        seed=1,
        nodes=30,
        gateways=6,
        metric="accuracy",
        target=0.9,
        duration_s=8 * HOUR_S,
        command="",
        strategies={"ftte": result},
    )


def test_the_site_that_is_cut_off_has_versions_of_its_own_for_a_while() -> None:
    report = run_briefly()
    result = report.strategies["ftte"]
    assert result.violations == []
    first, *others = result.sites
    provisional = {point.t_s: point.provisional for point in first.points}
    assert provisional[4 * HOUR_S]
    assert not provisional[2 * HOUR_S]
    assert not provisional[8 * HOUR_S]
    assert not any(point.provisional for curve in others for point in curve.points)
    assert all(is_provisional(p.version) == p.provisional for p in first.points)
    cut, before = (next(p for p in first.points if p.t_s == h * HOUR_S) for h in (4, 2))
    assert cut.in_outboxes > before.in_outboxes
    out = io.StringIO()
    Console(file=out, width=200).print(*site_tables([report]))
    assert "broker-1" in out.getvalue()


def test_digits_are_at_home_at_one_site() -> None:
    found = digits_by_site()
    site = found["groups"] % SITES
    assert sorted(set(found["groups"])) == list(range(SITES * NODES_PER_SITE))
    for digit in range(10):
        shares = np.bincount(site[found["targets"] == digit], minlength=SITES) / np.sum(
            found["targets"] == digit
        )
        assert shares.argmax() == digit % SITES
        assert 0.7 < shares.max() < 0.9
