"""Protocols that each break one rule, so that the checks can be seen to catch them.

A mutant is a set of `Parts`, or a change that no subclass can make, put on with pytest's monkeypatch.
"""

import dataclasses
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

import edge_node.outbox_state
from aggregator.acceptance import Acceptance
from aggregator.mergebuffer import MergeBuffer
from aggregator.protocol import AggregatorProtocol
from aggregator.rows import CommitVersion, Snapshot
from edge_node.epochs import Epochs
from edge_node.protocol import NodeProtocol
from edge_node.rows import Books, PutUpdate
from gateway.carrying import Carrier
from hedgerow.core import names
from hedgerow.core.effects import Effect, Save, Send
from hedgerow.core.messages import Bundle, Chunk, Partial, Receipt, Receipts, UpdateId
from sims.fleet import Parts
from tests.simulation.oracle import KeptLedger, KeptNodeDisk

SOUND = Parts(node_disk=KeptNodeDisk, ledger=KeptLedger)
"""The real protocols, on disks that keep what the oracle needs."""


@dataclass(frozen=True)
class Mutant:
    """One broken protocol."""

    name: str
    parts: Parts = SOUND
    change: Callable[[pytest.MonkeyPatch], None] = lambda _: None
    unseen: bool = False
    """Whether only the oracle can catch it: it takes the bodies of all updates, or a node's whole disk."""


def no_deduplication(patch: pytest.MonkeyPatch) -> None:
    """The aggregator believes that every update is new."""
    deduplication_by_partial_id(patch)
    patch.setattr(MergeBuffer, "is_accepting", lambda *_: False)
    patch.setattr(MergeBuffer, "holds", lambda *_: False)


def deduplication_by_partial_id(patch: pytest.MonkeyPatch) -> None:
    """The aggregator knows a repeat by the partial's id only."""
    patch.setattr(Acceptance, "_fate", lambda *_: None)
    patch.setattr(MergeBuffer, "is_accepting_any", lambda *_: False)


def deleted_on_gateway_ack(patch: pytest.MonkeyPatch) -> None:
    """The node takes the gateway's word for the aggregator's."""
    patch.setitem(edge_node.outbox_state._FINAL, "admitted", "applied")


class ShortMemory(OrderedDict[UpdateId, None]):
    """Remembers the last few settled ids only."""

    def add(self, update_id: UpdateId) -> None:
        self[update_id] = None
        if len(self) > 8:
            self.popitem(last=False)


class ForgetfulAggregator(AggregatorProtocol):
    """Forgets what it settled long ago."""

    def __init__(self, snapshot: Snapshot, *args: Any, **keys: Any) -> None:
        super().__init__(snapshot, *args, **keys)
        memory = ShortMemory()
        for row in snapshot.ledger:
            memory.add(row.header.id)
        self._buffer._settled = memory  # type: ignore[assignment]


class HastyAggregator(AggregatorProtocol):
    """Settles when it merges, not when the merge is durable."""

    def effects(self) -> list[Effect]:
        out = super().effects()
        saves = [effect for effect in out if isinstance(effect, Save)]
        commits = [row for save in saves for row in save.rows if isinstance(row, CommitVersion)]
        for commit in commits:
            receipts = [Receipt(header.id, "settled") for header in commit.headers]
            peers = [names.gateway_peer(f"gw-{number}") for number in (1, 2)]
            out += [Send(peer, Receipts(receipts=receipts)) for peer in peers]
        return out


class SplitLedger(KeptLedger):
    """Makes the version durable before its ledger rows."""

    def load(self) -> Snapshot:
        self.late: list[CommitVersion] = []
        return super().load()

    def write(self, rows: Sequence[Any]) -> None:
        late, self.late = self.late, []
        for row in late:
            super().write_ledger(row)
        super().write(rows)

    def write_ledger(self, row: CommitVersion) -> None:
        self.late.append(row)


class CarelessNode(NodeProtocol):
    """Forgets an update once it is sent."""

    def effects(self) -> list[Effect]:
        out = super().effects()
        gone = {e.message.id for e in out if isinstance(e, Send) and isinstance(e.message, Chunk)}
        receipts = [Receipt(update_id, "settled") for update_id in sorted(gone)]
        rows = self._courier.take_receipts(Receipts(receipts=receipts), now_us=0)
        if rows:
            self._saves.save(*rows)
        return out + super().effects()


class AmnesicDisk(KeptNodeDisk):
    """Counts on from what is left in the outbox after a restart, in the same epoch."""

    def write(self, rows: Sequence[Any]) -> None:
        for row in rows:
            if isinstance(row, PutUpdate):
                self.kept.pop(row.id, None)
                self.closed.pop(row.id, None)
        super().write(rows)

    def load(self) -> Books:
        books = super().load()
        return dataclasses.replace(books, issued=max(books.outbox, default=0), found=False)


def settled_by_the_relay(patch: pytest.MonkeyPatch) -> None:
    """A relay calls settled what it has only taken over."""
    take = Carrier.take

    def take_and_settle(self: Carrier, peer: str, bundle: Bundle) -> None:
        take(self, peer, bundle)
        headers = [header for partial in bundle.partials for header in partial.headers]
        receipts = [Receipt(header.id, "settled") for header in headers]
        self._outlet.do(Send(peer, Receipts(receipts=receipts)))

    patch.setattr(Carrier, "take", take_and_settle)


def added_up_by_the_relay(patch: pytest.MonkeyPatch) -> None:
    """A relay adds to the sums that it carries, and the headers say nothing of it."""
    hold = Carrier._hold

    def hold_twice(self: Carrier, partial: Partial, path: tuple[str, ...]) -> None:
        doubled = [
            replace(sums, total=(2 * np.frombuffer(sums.total, "<i4")).astype("<i4").tobytes())
            for sums in partial.sums
        ]
        hold(self, replace(partial, sums=doubled), path)

    patch.setattr(Carrier, "_hold", hold_twice)


def epoch_kept(patch: pytest.MonkeyPatch) -> None:
    """A node goes on in its epoch although its disk was put back, or another update has its id."""
    patch.setattr(Epochs, "_renew", lambda self, _: self._be_certain())


def _with(**changes: Any) -> Parts:
    return dataclasses.replace(SOUND, **changes)


MUTANTS = [
    Mutant("settled before the commit", _with(aggregator=HastyAggregator)),
    Mutant("no deduplication", change=no_deduplication),
    Mutant("deduplication by partial id", change=deduplication_by_partial_id),
    Mutant("deduplication by a small memory", _with(aggregator=ForgetfulAggregator)),
    Mutant("deleted on send", _with(node=CarelessNode)),
    Mutant("deleted on the gateway's word", change=deleted_on_gateway_ack),
    Mutant("ledger not atomic", _with(ledger=SplitLedger)),
    Mutant("sequence without epoch", _with(node_disk=AmnesicDisk)),
    Mutant("settled by the relay", change=settled_by_the_relay),
    Mutant("added up by the relay", change=added_up_by_the_relay, unseen=True),
    Mutant("epoch kept after a fork", change=epoch_kept, unseen=True),
]
