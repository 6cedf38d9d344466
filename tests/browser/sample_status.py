"""A picture of a run in the middle of training, with some trouble."""

from aggregator.account import Account
from aggregator.status import CurvePoint, GatewayView, NodeView, PlanRow, PlanView, Status
from hedgerow.core.messages import NodeState, NodeStateName


def sample_node(number: int, state: NodeStateName, seen_s: float = 3.0) -> NodeView:
    told = NodeState(
        node=f"barn-{number:02}",
        epoch=1,
        state=state,
        gateway=f"gw-{number % 2}",
        version=12 - number % 3,
        peak_bytes=1_430_000 * (number % 5),
        counters={"outbox": number % 4, "issued": 40},
    )
    return NodeView(
        state=told,
        gateway=told.gateway,
        seen_s=seen_s,
        applied=4 * number,
        staleness=number % 6 - 1,
        traffic={},
    )


def sample_plan() -> PlanView:
    return PlanView(
        since_version=5,
        value_share=0.84,
        classes=[
            PlanRow("default", 4, 842, 65_536, 61_000),
            PlanRow("sensor", 2, 130, 16_384, 9_200),
        ],
        searched_version=10,
        reason="interval",
        changed=False,
        answers=2,
        answers_needed=3,
    )


def sample() -> Status:
    states: list[NodeStateName] = ["ready", "training", "sleeping", "lost", "disconnected", "ready"]
    curve = [
        CurvePoint(v, {"accuracy": 0.9 - 0.75 * 0.78**v, "loss": 1.0}, 4 * v, 0, 10.0 * v)
        for v in range(13)
    ]
    return Status(
        site="north-farm",
        model="digits",
        version=12,
        term=2,
        uptime_s=7_423.0,
        done="",
        metric="accuracy",
        target=0.92,
        plan_units=["l1.bias", "l2.bias", "head.weight", "head.bias"],
        plan_parameters=842,
        model_parameters=9_034,
        buffered_updates=2,
        merge_at=4,
        updates_applied=48,
        staleness_histogram={0: 21, 1: 14, 2: 7, 3: 4, 14: 2},
        counters={"version_committed": 12, "update_rejected:stale": 3, "http_refused:token": 1},
        curve=curve,
        gateways=[
            GatewayView("gw-0", connected=True, seen_s=1.2, nodes=3, counters={}),
            GatewayView(
                "gw-1",
                connected=False,
                seen_s=410.0,
                nodes=3,
                counters={"update_rejected:norm": 2, "lease_expired:silent": 5},
            ),
        ],
        account=Account(
            issued=60,
            applied=46,
            rejected=5,
            expired=1,
            coalesced=2,
            outbox=6,
            ledger_applied=48,
            rejected_for={"stale": 3, "norm": 2},
        ),
        plan=sample_plan(),
        nodes=[sample_node(n, state, 3.0 if n != 3 else 5_400.0) for n, state in enumerate(states)],
    )
