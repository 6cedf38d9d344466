"""Every check fires: a check that cannot fail would be a defect of its own."""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest

from aggregator.intake import read_partial
from aggregator.lineage import Lineage
from aggregator.merger import Merger
from aggregator.rows import AcceptPartial, CommitVersion, DropPartials
from edge_node.rows import CloseUpdate, PutUpdate
from hedgerow.core.codec import encode
from hedgerow.core.messages import Header, Partial, Receipt, Receipts, UpdateId
from hedgerow.core.strategy import FTTE
from sims.checks import Replay, ViolationError, Watch, WatchedLedger, WatchedNodeDisk
from sims.disks import LedgerDisk, NodeDisk
from tests.protocol.scenarios import (
    MANIFEST,
    PLAN,
    first_params,
    make_config,
    make_lineage,
    make_partial,
    make_update,
)

NODE, EPOCH = "node-1", 7


def update_id(seq: int = 1) -> UpdateId:
    return UpdateId(NODE, EPOCH, seq)


def put(seq: int = 1, base: int = 0) -> PutUpdate:
    return PutUpdate(update_id(seq), base, encode(make_update(seq, base)))


def closed(seq: int = 1, outcome: str = "applied", reason: str = "") -> CloseUpdate:
    return CloseUpdate(update_id(seq), outcome, reason)


class Books:
    """A node's disk and an aggregator's, both watched. The replay is on where `replay` is."""

    def __init__(self, *, strict: bool = True, replay: bool = False) -> None:
        self.watch = Watch(strict=strict)
        self.disk = NodeDisk(NODE)
        self.disk.epochs = {EPOCH: ""}
        self.node = WatchedNodeDisk(self.disk, self.watch)
        self.lineage = make_lineage(1)
        first, params = self.lineage.current, first_params()
        self.ledger_disk = LedgerDisk(first, params, MANIFEST)
        self.replay = (
            Replay(FTTE, lambda: Lineage(make_config(), PLAN), first, params, self.watch)
            if replay
            else None
        )
        self.ledger = WatchedLedger(self.ledger_disk, self.watch, self.replay)
        self.merger = Merger(FTTE, params, self.lineage)

    def accept(self, *seqs: int, number: int = 1) -> Partial:
        """Make a partial of updates of version 0 durable."""
        updates = [make_update(seq) for seq in seqs]
        partial = make_partial(updates, self.lineage, partial_id=f"gw-1-1-{number}")
        self.ledger.write([AcceptPartial(partial)])
        return partial

    def commit_of(self, *partials: Partial) -> CommitVersion:
        """Return the honest commit of the next version."""
        entries = [read_partial(partial, self.lineage) for partial in partials]
        return self.merger.fold(entries, term=1)

    def commit(self, *partials: Partial) -> CommitVersion:
        row = self.commit_of(*partials)
        self.ledger.write([row])
        self.lineage.add(row.descriptor, needed_from=0)
        self.merger.params = row.params
        return row


@contextmanager
def violated(text: str) -> Iterator[None]:
    with pytest.raises(ViolationError, match=text):
        yield


@pytest.fixture
def books() -> Books:
    return Books()


def test_an_honest_life_is_not_objected_to() -> None:
    books = Books(replay=True)
    books.node.write([put(1), put(2), put(3)])
    books.commit(books.accept(1, 2))
    books.watch.sent(Receipts(receipts=[Receipt(update_id(1), "settled")]))
    books.node.write([closed(1), closed(3, "rejected", "stale")])
    books.ledger.write([DropPartials(1, 0)])
    books.watch.balance([books.disk])
    assert books.watch.violations == []
    assert books.watch.applied == {update_id(1), update_id(2)}
    assert books.watch.applied_by_node == {NODE: 2}


# A node's rows.


def test_c1_an_update_is_issued_once(books: Books) -> None:
    books.node.write([put(1)])
    with violated("C1: .*seq=1.* was issued twice"):
        books.node.write([put(1)])


def test_c6_an_update_ends_once(books: Books) -> None:
    books.node.write([put(1), closed(1, "expired")])
    with violated("C6: .*ended twice"):
        books.node.write([closed(1, "expired")])


def test_c6_an_update_ends_after_it_was_issued(books: Books) -> None:
    with violated("C6: .*before it was issued"):
        books.node.write([closed(1, "expired")])


def test_c2_a_node_believes_applied_only_what_is_in_the_ledger(books: Books) -> None:
    books.node.write([put(1)])
    with violated("C2: .*believed applied"):
        books.node.write([closed(1)])


@pytest.mark.parametrize(("outcome", "reason"), [("rejected", "stale"), ("expired", "")])
def test_c6_what_is_in_the_ledger_is_not_lost(books: Books, outcome: str, reason: str) -> None:
    books.node.write([put(1)])
    books.commit(books.accept(1))
    with violated(f"C6: .* is {outcome}, yet in the ledger"):
        books.node.write([closed(1, outcome, reason)])


def test_c6_a_rejection_has_a_reason(books: Books) -> None:
    books.node.write([put(1)])
    with violated("C6: .*without a reason"):
        books.node.write([closed(1, "rejected")])


# The aggregator's rows.


def test_c1_an_update_is_applied_once(books: Books) -> None:
    books.node.write([put(1)])
    books.commit(books.accept(1))
    again = books.accept(1, number=2)
    with violated("C1: .*is applied twice"):
        books.commit(again)


def test_c1_a_partial_is_accepted_once(books: Books) -> None:
    books.node.write([put(1)])
    books.accept(1)
    with violated("C1: partial gw-1-1-1 is accepted, but is waiting already"):
        books.accept(1)


def test_c2_a_durable_version_has_its_ledger_rows() -> None:
    class Forgetful(LedgerDisk):
        def write_ledger(self, row: CommitVersion) -> None:
            return

    books = Books()
    books.ledger_disk.__class__ = Forgetful
    books.node.write([put(1)])
    with violated("C2: .*is merged durably, but is not in the ledger"):
        books.commit(books.accept(1))


def test_c3_nothing_is_invented(books: Books) -> None:
    with violated("C3: .*was never issued so"):
        books.commit(books.accept(1))


def test_c3_an_update_keeps_its_base_version(books: Books) -> None:
    books.node.write([put(1, base=5)])
    with violated("C3: .*of version 0 was never issued so"):
        books.commit(books.accept(1))


def test_c4_a_version_is_given_out_once(books: Books) -> None:
    books.node.write([put(1), put(2)])
    row = books.commit(books.accept(1))
    partial = books.accept(2, number=2)
    again = CommitVersion(row.descriptor, row.params, (partial.id,), tuple(partial.headers))
    with violated("C4: version 1 was given out twice"):
        books.ledger.write([again])


def test_c4_a_version_merges_what_is_on_disk(books: Books) -> None:
    books.node.write([put(1)])
    partial = make_partial([make_update(1)], books.lineage)
    with violated("C4: version 1 merges partial gw-1-1-1, which is not on disk"):
        books.commit(partial)


def test_c6_what_was_given_up_is_not_applied(books: Books) -> None:
    books.node.write([put(1), closed(1, "expired")])
    with violated("C6: .*is expired, and now applied"):
        books.commit(books.accept(1))


# Receipts.


def test_c2_settled_is_said_of_the_ledgers_updates_only(books: Books) -> None:
    books.node.write([put(1)])
    partial = books.accept(1)
    books.watch.sent(Receipts(receipts=[Receipt(update_id(1), "admitted")]))
    with violated("C2: .*is called settled"):
        books.watch.sent(Receipts(receipts=[Receipt(update_id(1), "settled")]))
    books.commit(partial)
    books.watch.sent(Receipts(receipts=[Receipt(update_id(1), "settled")]))


# The balance.


def test_c6_an_update_that_vanished_from_the_outbox_is_missed(books: Books) -> None:
    books.node.write([put(1), put(2)])
    books.watch.balance([books.disk])
    del books.disk.outbox[update_id(2)]
    with violated(
        "C6: node-1 issued 2, but applied 0, rejected, expired or coalesced 0, waiting 1"
    ):
        books.watch.balance([books.disk])


def test_an_applied_update_that_still_waits_for_its_receipt_counts_once(books: Books) -> None:
    books.node.write([put(1)])
    books.commit(books.accept(1))
    assert books.disk.outbox
    books.watch.balance([books.disk])


# C4: the replay.


def test_c4_a_version_that_differs_in_one_bit_is_found() -> None:
    books = Books(replay=True)
    books.node.write([put(1)])
    row = books.commit_of(books.accept(1))
    params = row.params.copy()
    where = MANIFEST.slices[PLAN.names[0]].start
    params[where] = np.nextafter(params[where], np.float32(9))
    descriptor = msgspec.structs.replace(row.descriptor, units=_described(row, params))
    books.ledger.write([CommitVersion(descriptor, params, row.partial_ids, row.headers)])
    with violated("C4: version 1 is not the replay of its inputs"):
        books.ledger.write([DropPartials(1, 0)])


def _described(row: CommitVersion, params: np.ndarray) -> dict[str, object]:
    digests = MANIFEST.digests(params)
    units = row.descriptor.units
    return {n: msgspec.structs.replace(units[n], digest=digests[n]) for n in units}


def test_c4_a_wrong_digest_is_found() -> None:
    books = Books(replay=True)
    books.node.write([put(1)])
    row = books.commit_of(books.accept(1))
    unit = PLAN.names[0]
    wrong = msgspec.structs.replace(row.descriptor.units[unit], digest="0" * 32)
    units = {**row.descriptor.units, unit: wrong}
    descriptor = msgspec.structs.replace(row.descriptor, units=units)
    books.ledger.write([CommitVersion(descriptor, row.params, row.partial_ids, row.headers)])
    assert books.replay is not None
    with violated("C4: version 1 is described wrongly"):
        books.replay.verify()


def test_the_replay_waits_for_inputs_as_old_as_the_aggregator_does() -> None:
    """A save that fails is tried again, much later: by then the update in it may be older than tau_max."""
    books = Books(replay=True)
    books.node.write([put(seq) for seq in range(1, 21)])
    late = make_partial([make_update(20)], books.lineage, partial_id="gw-1-1-99")
    for seq in range(1, 19):
        books.commit(books.accept(seq, number=seq))
    books.ledger.write([DropPartials(18, 0)])
    books.ledger.write([AcceptPartial(late)])
    books.commit(late)
    assert books.replay is not None
    books.replay.verify()
    assert books.watch.violations == []


# Collecting.


def test_without_strictness_violations_are_collected_up_to_a_bound() -> None:
    books = Books(strict=False, replay=True)
    books.node.write([put(1)])
    for _ in range(30):
        books.node.write([put(1)])
    books.commit(make_partial([make_update(1)], books.lineage))
    assert books.replay is not None
    books.replay.verify()
    assert len(books.watch.violations) == 20
    assert set(books.watch.violations) == {f"C1: {update_id(1)} was issued twice"}


def test_headers_of_a_later_row_are_checked_too(books: Books) -> None:
    header = Header(update_id(9), 0, 16, 1.0)
    with violated("C3: .*seq=9"):
        books.watch.ledger([header])
