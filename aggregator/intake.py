"""Checking a gateway's partial aggregate before any of it may count.

A header fixes an update's weight (its examples, kappa and base version, and the rules published with that
version), so the scalar sums of a partial are computed again from its headers and must agree within one
quantum per update (another processor's pow may round otherwise): a gateway can then misstate the vector
only, within the clip.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
from msgspec.msgpack import Encoder
from msgspec.structs import replace

from aggregator.islands import check_island
from aggregator.lineage import Lineage
from aggregator.mergebuffer import Buffered
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Header, Partial, Update
from hedgerow.core.partial import (
    Accumulator,
    Frame,
    Key,
    PartialAggregate,
    frame_for,
    from_wire,
    scalar_weights,
)
from hedgerow.core.planbook import check_plan
from hedgerow.core.quantize import clip_factor, decode_delta, norm
from hedgerow.core.strategy import Contribution

_HEADERS = Encoder()


def read_partial(partial: Partial, lineage: Lineage) -> Buffered:
    """Return a partial aggregate with its sums, or with its updates one by one where those are wanted.

    Raises PeerError, with nothing changed, when it does not fit the model, its versions or its headers.
    """
    if partial.model != lineage.current.model:
        raise PeerError("wrong-model", f"partial of {partial.model}")
    repeated = [i for i, n in Counter(header.id for header in partial.headers).items() if n > 1]
    if repeated:
        raise PeerError("inconsistent", f"update {repeated[0]} is named twice")
    if partial.island is not None:
        check_island(partial, partial.island, lineage)
        return Buffered(partial, {})
    if bool(partial.sums) == bool(partial.updates):
        raise PeerError("inconsistent", "a partial carries either sums or updates")
    if lineage.individual:
        if partial.sums:
            raise PeerError("inconsistent", "sums, where every update was asked for by itself")
        each = _contributions(partial, lineage)
        return Buffered(partial, {}, tuple(_clipped(one, lineage) for one in each))
    if partial.updates:
        return Buffered(partial, _sum_updates(partial, lineage))
    sums = from_wire(partial.sums, dict(lineage.plans()))
    _check_scalars(partial, sums, lineage)
    return Buffered(partial, sums)


def _frame(partial: Partial, header: Header, lineage: Lineage) -> Frame:
    base, newest = lineage.rules(header.base_version), lineage.rules(partial.at_version)
    if header.base_version > partial.at_version:
        raise PeerError("inconsistent", "an update is newer than the partial's own version")
    return frame_for(base, header.base_version, newest, partial.at_version)


def _contributions(partial: Partial, lineage: Lineage) -> Iterator[Contribution]:
    same = len(partial.headers) == len(partial.updates)
    if not same or not all(map(_is_of, partial.headers, partial.updates)):
        raise PeerError("inconsistent", "headers do not match the updates")
    for update in partial.updates:
        check_plan(lineage.descriptor(update.base_version), update.plan_id)
        plan = lineage.plans()[update.plan_id]
        yield Contribution(update.header, plan, decode_delta(update, plan))


def _clipped(one: Contribution, lineage: Lineage) -> Contribution:
    """Return an update that is taken by itself, cut to the clip norm; a sum cuts each as it adds it."""
    clip_norm = lineage.rules(one.header.base_version).clip_norm
    clip = clip_factor(norm(one.delta), clip_norm)
    return one if clip == 1 else Contribution(one.header, one.plan, one.delta * np.float32(clip))


def _is_of(header: Header, update: Update) -> bool:
    """Whether a header is an update's own.

    A gateway that does not know the base version leaves the plan out, one of an older release the hash.
    Compared are the bytes: a kappa that says nothing is not equal to itself.
    """
    own = update.header
    if not header.hash:
        own = replace(own, hash=0)
    same = {_HEADERS.encode(replace(own, plan_id=plan_id)) for plan_id in ("", update.plan_id)}
    return _HEADERS.encode(header) in same


def _sum_updates(partial: Partial, lineage: Lineage) -> PartialAggregate:
    sums = Accumulator()
    for one in _contributions(partial, lineage):
        frame = _frame(partial, one.header, lineage)
        sums.add(one.header, one.delta, one.plan, lineage.rules(one.header.base_version), frame)
    return sums.result()


def _check_scalars(partial: Partial, sums: PartialAggregate, lineage: Lineage) -> None:
    expected: dict[Key, tuple[int, ...]] = defaultdict(lambda: (0, 0, 0, 0, 0))
    for header in partial.headers:
        base = lineage.descriptor(header.base_version)
        frame = _frame(partial, header, lineage)
        plan_id = header.plan_id or base.plan_id
        check_plan(base, plan_id)
        key = (plan_id, frame.ref_version, frame.gamma)
        own = (*scalar_weights(header, base.rules, frame).fixed(), 1)
        expected[key] = tuple(a + b for a, b in zip(expected[key], own, strict=True))
    if sums.keys() != expected.keys():
        raise PeerError("inconsistent", "the buckets do not agree with the headers")
    for key, s in sums.items():
        stated = (s.weight, s.decayed, s.examples, s.squares, s.count)
        worst = max(abs(a - b) for a, b in zip(stated, expected[key], strict=True))
        if s.count != expected[key][-1] or worst > s.count:
            raise PeerError("inconsistent", "the sums do not agree with their headers")
