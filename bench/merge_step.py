"""The aggregator's merge against a numpy in-place add of the same bytes."""

from statistics import median

import numpy as np

from bench.measure import Row, Settings, cpu_s_per_call
from bench.subjects import CLIP_NORM, FLUSH_COUNT, GATEWAY, MODEL, Subject
from hedgerow.core.codec import decode, encode
from hedgerow.core.merge import MergeContext, merge
from hedgerow.core.messages import Header, Partial, UpdateId
from hedgerow.core.partial import Frame, PartialAggregate, add, contribution, from_wire, to_wire
from hedgerow.core.rules import Rules
from hedgerow.core.staleness import StalenessLaw

FIGURE = "merge"
BODIES = (Subject("400 KB", 1333, "fp32"), Subject("4 MB", 13333, "fp32"))
RULES = Rules(staleness=StalenessLaw(gamma=0.8), clip_norm=CLIP_NORM)


def measure(settings: Settings) -> list[Row]:
    """Measure both sizes of a partial aggregate's body."""
    return [row for body in BODIES for row in _measure(body, settings)]


def _measure(body: Subject, settings: Settings) -> list[Row]:
    settings.say(f"merge: a body of {body.name}")
    part, message = _partial(body)
    data = encode(message)
    plans = {body.plan.plan_id: body.plan}
    context = MergeContext(
        manifest=body.plan.manifest,
        version=1,
        law=RULES.staleness,
        plans=plans,
        rules=lambda _version: RULES,
        learning_rate=1.0,
    )
    params = body.params()
    left = np.frombuffer(message.sums[0].total, "<i4").copy()
    right = left.copy()

    def read() -> PartialAggregate:
        received = decode(data)
        assert isinstance(received, Partial)
        return from_wire(received.sums, plans)

    timed = {
        "numpy in-place add": cpu_s_per_call(lambda: np.add(left, right, out=left), settings),
        "decode a partial": cpu_s_per_call(read, settings),
        "add it to another": cpu_s_per_call(lambda: add(part, part), settings),
        "merge into the params": cpu_s_per_call(lambda: merge(params, part, context), settings),
    }
    base = median(timed["numpy in-place add"])
    rows = []
    for what, seconds in timed.items():
        ratio = f"{median(seconds) / base:.1f} times the numpy add"
        milliseconds = tuple(1000 * value for value in seconds)
        note = (
            f"{len(left) * 4:,} bytes of int32" if seconds is timed["numpy in-place add"] else ratio
        )
        rows.append(Row(FIGURE, f"{body.name}: {what}", "CPU-ms", milliseconds, note))
    whole = [sum(values) for values in zip(*list(timed.values())[1:], strict=True)]
    ratios = tuple(value / base for value in whole)
    rows.append(Row(FIGURE, f"{body.name}: all three", "times the numpy add", ratios))
    return rows


def _partial(body: Subject) -> tuple[PartialAggregate, Partial]:
    """Return the sum of a gateway's flush of 16 updates, and the message that carries it."""
    frame = Frame(ref_version=1, gamma=RULES.staleness.gamma, rules=RULES)
    delta = body.params()
    headers = [Header(UpdateId(f"light-{i}", 1, 1), 1, 32, 1.0) for i in range(FLUSH_COUNT)]
    part = add(*(contribution(header, delta, body.plan, RULES, frame) for header in headers))
    message = Partial(
        id="p-1",
        gateway=GATEWAY,
        model=MODEL,
        at_version=1,
        headers=headers,
        sums=to_wire(part),
    )
    return part, message
