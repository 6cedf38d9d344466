"""What an update must be before it may be summed here."""

from gateway.held import Held
from gateway.relay import Relay
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Update
from hedgerow.core.outlet import Outlet
from hedgerow.core.planbook import check_plan
from hedgerow.core.quantize import update_norm
from hedgerow.core.versions import is_provisional

_NORM_TOLERANCE = 1.001


def check_version(relay: Relay, model: str, base_version: int, plan_id: str) -> None:
    """Raise PeerError unless an update of this version and plan can be used, now or ever."""
    if model != relay.model:
        raise PeerError("wrong-model", f"update of {model}, this is {relay.model}")
    if is_provisional(base_version):
        check_plan(relay.island_base(base_version), plan_id)
        return
    if relay.is_future(base_version):
        raise PeerError("future-version", f"base version {base_version} is not known here yet")
    if not relay.is_stale(base_version):
        check_plan(relay.descriptor(base_version), plan_id)


def is_sound(relay: Relay, held: Held, outlet: Outlet) -> bool:
    """Whether a held update's delta was found right: not on admission, if it was too old then or spooled."""
    if not held.checked:
        try:
            held.checked = check_update(relay, held.update)
        except PeerError as error:
            outlet.record("update_unfit", reason=error.reason, detail=error.detail)
    return held.checked


def check_update(relay: Relay, update: Update) -> bool:
    """Check an update's delta; False for one too old to be: only the aggregator knows its fate.

    Raises PeerError for one that does not fit its plan, is not finite, or is longer than the clip norm.
    """
    version = update.base_version
    if is_provisional(version):
        # Whatever its age: no other tier can say anything of it.
        base = relay.island_base(version)
    elif relay.is_stale(version):
        return False
    else:
        base = relay.descriptor(version)
    check_plan(base, update.plan_id)
    length = update_norm(update, relay.plan(update.plan_id))
    limit = base.rules.clip_norm * _NORM_TOLERANCE
    if length > limit:
        raise PeerError("norm", f"norm {length:.3g} is above the clip norm {limit:.3g}")
    return True
