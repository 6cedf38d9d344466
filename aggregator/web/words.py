"""Plain words for what the page shows: for the person in the field, not for us."""

from aggregator.status import PlanView, Status

_REASONS = {
    "malformed": "the message could not be read",
    "too-large": "the message was too large",
    "checksum": "it was damaged on the way",
    "wrong-source": "the sender used another's name",
    "wrong-model": "it was meant for another model",
    "unknown-plan": "it was trained under a plan that is not known here",
    "unknown-version": "it was trained on a version that is not known here",
    "future-version": "it claims a version that does not exist yet",
    "shape": "it does not fit the model",
    "not-finite": "training went wrong: it contains values that are not numbers",
    "norm": "it is far larger than any honest update",
    "stale": "it is too old: the model has moved on",
    "fork": "another update has its name",
    "inconsistent": "it contradicts itself",
    "busy": "too much at once; it is offered again later",
    "slow": "no decision in time; it is offered again later",
    "token": "the access token was missing or wrong",
    "no-stream": "the gateway was not connected; it catches up when it is back",
    "slow-consumer": "the gateway read too slowly; it was disconnected and catches up",
    "no-post": "the gateway had stopped waiting; it asks again",
    "undelivered": "the aggregator could not be reached",
    "silent": "the node did not report in time",
    "disk": "the disk refused to write",
    "new-life": "it speaks of versions that are lost; it is built again from newer ones",
    "restore": "a backup was restored",
    "gateway-ahead": "a gateway knew newer versions",
    "lost-frames": "the disk has lost what was written last",
    "damaged-version": "the newest version was damaged on the disk",
    "partial": "a sum that waited was damaged on the disk",
    "partial-missing": "a sum that waited is gone from the disk",
    "version": "a version's description was damaged on the disk",
    "version-missing": "a version's description is gone from the disk",
    "compute": "the computation failed",
    "overlap": "parts were known already; it is built again without them",
    "known": "all of it was known already",
    "full": "there was no room for it",
    "offline": "the node had lost its gateway",
    "thin-link": "the node's link is too thin for it",
    "repeated": "the node had answered already",
    "unknown-round": "it belongs to a question that is closed",
    "fixed-plan": "the plan is fixed",
}

_EVENTS = {
    "update_rejected": "Update rejected",
    "update_refused": "Update refused for now",
    "update_expired": "Update given up by its node",
    "partial_answered": "Partial sum not taken",
    "partial_refused": "Partial sum refused for now",
    "partial_set_aside": "Partial sum on the disk set aside",
    "fork_alarm": "Fork alarm",
    "restored_backup": "Ledger older than the fleet",
    "ledger_damaged": "Damage found in the ledger",
    "peer_fault": "Message refused",
    "http_refused": "Request refused",
    "http_dropped": "Answer not delivered",
    "fleet_report_dropped": "Status report lost",
    "lease_expired": "Training not finished in time",
    "save_failed": "Not saved",
    "store_quarantined": "Damaged store set aside",
    "blob_unreadable": "Damaged model file",
    "evaluation_failed": "Evaluation failed",
    "test_failed": "Test on own examples failed",
    "personal_dropped": "Own pieces of the model set aside",
    "training_failed": "Training failed",
    "probe_failed": "Answer to a probe failed",
    "probe_refused": "Answer to a probe not used",
    "probe_answer_dropped": "Answer to a probe lost",
    "probe_skipped": "Probe not answered",
    "mqtt_dropped_oversize": "Message too large for the broker",
    "mqtt_dropped_queued": "Messages dropped while the broker was away",
    "mqtt_dropped_unacknowledged": "Messages the broker never confirmed",
    "mqtt_malformed_packets": "Unreadable message from the broker",
}

_STATES = {
    "ready": "ready",
    "training": "training now",
    "sleeping": "asleep",
    "disconnected": "signed off",
    "lost": "lost: no sign of life",
}
_KINDS = {"global": "as published", "personal": "with the node's own pieces"}
_ENDS = {
    "target": "the goal is reached",
    "max-versions": "the most versions that were asked for are made",
    "max-time": "the time that was given is over",
}
_SEARCHES = {
    "first-values": "the first answers of the nodes",
    "interval": "it was time",
    "stall": "training had stopped to improve",
    "budget": "the old one needed more memory than is allowed",
    "nothing-fits": "nothing that fits promises any gain",
}
_UNITS = ((86_400.0, "day"), (3_600.0, "hour"), (60.0, "minute"), (1.0, "second"))
_JUST_NOW_S = 5.0
_KIBI = 1024.0
_THREE_DIGITS = 100


def ago(seconds: float) -> str:
    """Return how long ago, in words; a negative number is never."""
    if seconds < 0:
        return "never"
    if seconds < _JUST_NOW_S:
        return "just now"
    return f"{span(seconds)} ago"


def span(seconds: float) -> str:
    """Return a length of time in its largest sensible unit."""
    for size, name in _UNITS:
        # 90 seconds still read better as seconds than as "1 minute".
        if seconds >= 1.5 * size or name == "second":
            return plural(round(seconds / size), name)
    raise AssertionError("seconds fit everything")


def plural(count: int, noun: str) -> str:
    """Return the count with its noun, as in "1 node" and "2 nodes"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size(count: int) -> str:
    """Return a number of bytes in words; "-" for none measured."""
    if count <= 0:
        return "-"
    value, unit = float(count), "bytes"
    for larger in ("KB", "MB", "GB"):
        if value < _KIBI:
            break
        value, unit = value / _KIBI, larger
    digits = 0 if unit == "bytes" or value >= _THREE_DIGITS else 1
    return f"{value:.{digits}f} {unit}"


def state_words(state: str) -> str:
    """Return what a node's state means."""
    return _STATES.get(state, state)


def kind_words(kind: str) -> str:
    """Return which model was tested on a node's own examples."""
    return _KINDS.get(kind, kind)


def problem(counter: str) -> tuple[str, str] | None:
    """Return what a counter says was left out and why; None for one that tells of no loss."""
    event, _, reason = counter.partition(":")
    if event not in _EVENTS or (event == "partial_answered" and reason == "accepted"):
        return None
    return _EVENTS[event], _REASONS.get(reason, reason.replace("-", " "))


def metric_text(value: float | None) -> str:
    """Return a metric with three digits; "-" for none."""
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"


def plan_words(plan: PlanView) -> str:
    """Return since when a searched plan is in use, what it is worth, and what the last search came to."""
    told = [
        (
            f"Chosen for the memory of the devices, in use since version {plan.since_version}; worth"
            f" {plan.value_share:.0%} of what training everything would be."
        )
    ]
    if plan.searched_version >= 0:
        result = "the plan was changed" if plan.changed else "the plan stays"
        why = _SEARCHES.get(plan.reason, plan.reason)
        told.append(
            f"Last looked for a better one at version {plan.searched_version}: {result} ({why})."
        )
    if plan.answers_needed:
        told.append(
            f"The nodes are being asked: {plan.answers} of {plan.answers_needed} answers are here."
        )
    return " ".join(told)


def sentence(status: Status, value: float | None) -> str:
    """Return what is going on, in one plain sentence; `value` is the newest of the shown metric."""
    progress = f"version {status.version}, {_progress(status, value)}"
    if status.done:
        return f"Finished: {_ENDS.get(status.done, status.done)}. The model is {progress}."
    if not any(gateway.connected for gateway in status.gateways):
        return f"Waiting for a gateway: none is connected. The model is at {progress}."
    if not any(node.state.state in ("ready", "training", "sleeping") for node in status.nodes):
        return f"Waiting for nodes: none has reported. The model is at {progress}."
    missing = status.merge_at - status.buffered_updates
    if missing <= 0:
        return f"Training: {progress}; merging the next version now."
    return f"Training: {progress}; waiting for {plural(missing, 'more update')}."


def _progress(status: Status, value: float | None) -> str:
    if value is None:
        return f"{status.metric} not measured yet"
    if status.target is None:
        return f"{status.metric} {metric_text(value)}"
    return f"{status.metric} {metric_text(value)} (goal {metric_text(status.target)})"
