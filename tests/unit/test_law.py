from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hedgerow.core.messages import Header, Partial, UpdateId
from hedgerow.custody.books import Issued, LedgerBook, NodeBook, Settled
from hedgerow.custody.law import check_books

NODE, EPOCH = "node-01", 7
FATES = {
    "settled": Issued(0, "applied"),
    "merged": Issued(0),
    "rejected": Issued(0, "rejected", "stale"),
    "forked": Issued(0, "rejected", "fork"),
    "expired": Issued(0, "expired", "outbox-full"),
    "coalesced": Issued(0, "coalesced"),
    "waiting": Issued(0),
}
IN_LEDGER = {"settled", "merged", "forked"}


def ledger_of(ids: Iterable[UpdateId], **keys: Any) -> LedgerBook:
    rows = {one: Settled(Header(one, 0, 1, 1.0), 1) for one in ids}
    return replace(LedgerBook(Path("aggregator"), rows), **keys)


def ids(*seqs: int, node: str = NODE, epoch: int = EPOCH) -> list[UpdateId]:
    return [UpdateId(node, epoch, seq) for seq in seqs]


def account_of(history: Iterable[str]) -> tuple[NodeBook, list[UpdateId]]:
    """The books and ledger of updates with these fates, in the order of their issue."""
    fates = dict(enumerate(history, start=1))
    book = NodeBook(NODE, EPOCH, {seq: FATES[fate] for seq, fate in fates.items()})
    return book, ids(*(seq for seq, fate in fates.items() if fate in IN_LEDGER))


SOUND, LEDGER = account_of(
    ["settled", "settled", "settled", "merged", "rejected", "expired", "coalesced", "waiting"]
)


def problems(book: NodeBook, ledger: Iterable[UpdateId], **keys: Any) -> list[str]:
    return [str(one) for one in check_books([book], ledger_of(ledger, **keys)).violations]


def changed(seq: int, row: Issued | None) -> NodeBook:
    rows = {**SOUND.rows, seq: row} if row is not None else dict(SOUND.rows)
    if row is None:
        del rows[seq]
    return replace(SOUND, rows=rows)


def test_sound_books_pass_and_are_added_up() -> None:
    account = check_books([SOUND], ledger_of(LEDGER))
    assert account.violations == []
    (node,) = account.nodes
    assert (node.issued, node.applied, node.rejected, node.expired) == (8, 4, 1, 1)
    assert (node.coalesced, node.outbox) == (1, 1)


@pytest.mark.parametrize(
    ("tampered", "said"),
    [
        (
            changed(4, None),
            "C3: node-01 epoch 7: the ledger holds 1 updates that it never issued: 4",
        ),
        (changed(5, None), "law: node-01 epoch 7: issued 8 is not 7"),
        (changed(5, None), "1 updates left no trace: 5"),
        (changed(5, FATES["settled"]), "C2: node-01 epoch 7: counts seq 5 as applied"),
        (changed(4, FATES["rejected"]), "C2: node-01 epoch 7: counts seq 4 as rejected (stale)"),
        (changed(4, FATES["expired"]), "C2: node-01 epoch 7: counts seq 4 as expired"),
        (changed(4, FATES["coalesced"]), "C2: node-01 epoch 7: counts seq 4 as coalesced"),
        (
            changed(5, Issued(0, "rejected")),
            "C6: node-01 epoch 7: seq 5 was rejected without a reason",
        ),
        (changed(5, Issued(0, "gone")), "C6: node-01 epoch 7: seq 5 ended as 'gone'"),
        (changed(4, Issued(1)), "C3: node-01 epoch 7: seq 4 in the ledger is not the update"),
        (changed(10, FATES["waiting"]), "law: node-01 epoch 7: issued 10 is not 9"),
        (changed(0, FATES["waiting"]), "issued 8 is not 9"),
    ],
)
def test_every_term_of_the_books_is_checked(tampered: NodeBook, said: str) -> None:
    found = problems(tampered, LEDGER)
    assert any(said in problem for problem in found), found


@pytest.mark.parametrize(
    ("ledger", "said"),
    [
        (ids(1, 2, 4), "issued 8 is not 7"),
        (ids(1, 2, 4), "C2: node-01 epoch 7: counts seq 3 as applied"),
        (ids(1, 2, 3, 4, 11), "never issued: 11"),
        (ids(0, 1, 2, 3, 4), "never issued: 0"),
        ([*LEDGER, *ids(1, node="node-02")], "C3: node-02 epoch 7: the ledger holds 1 updates"),
        ([*LEDGER, *ids(1, epoch=8)], "C3: node-01 epoch 8: the ledger holds 1 updates"),
    ],
)
def test_every_row_of_the_ledger_is_checked(ledger: list[UpdateId], said: str) -> None:
    found = problems(SOUND, ledger)
    assert any(said in problem for problem in found), found


def test_hashes_tell_two_updates_of_one_name_apart() -> None:
    held = changed(4, Issued(0, hash=5))
    (four,) = ids(4)
    for content, wrong in ((5, False), (0, False), (6, True)):
        ledger = ledger_of(LEDGER)
        ledger.rows[four] = Settled(Header(four, 0, 1, 1.0, hash=content), 1)
        assert bool(check_books([held], ledger).violations) == wrong, content


def test_an_update_is_in_one_partial_aggregate_only() -> None:
    def partial(name: str, *seqs: int) -> Partial:
        headers = [Header(one, 0, 1, 1.0) for one in ids(*seqs)]
        return Partial(id=name, gateway="gw-1", model="m", at_version=0, headers=headers)

    assert (
        problems(SOUND, LEDGER, merged={1: [partial("a", 1, 2)]}, waiting=[partial("b", 8)]) == []
    )
    twice = problems(SOUND, LEDGER, merged={1: [partial("a", 1, 2), partial("b", 2)]})
    assert twice == ["C1: node-01 epoch 7 seq 2 is in 2 partial aggregates"]
    again = problems(SOUND, LEDGER, waiting=[partial("a", 1)])
    assert again == ["C1: node-01 epoch 7 seq 1 is in the ledger and waits to be merged again"]


def test_what_books_of_an_ended_epoch_do_not_know_is_counted() -> None:
    ended = replace(SOUND, ended="restored")
    account = check_books([ended], ledger_of([*LEDGER, *ids(9, 10)]))
    assert account.violations == []
    assert (account.nodes[0].unknown, account.nodes[0].applied) == (2, 4)
    assert problems(ended, [*LEDGER, *ids(0)]) != []
    assert problems(ended, LEDGER[1:]) != []


@given(st.lists(st.sampled_from(sorted(FATES)), max_size=30))
def test_any_history_conserves_updates(history: list[str]) -> None:
    assert problems(*account_of(history)) == []


histories = st.lists(st.sampled_from(sorted(FATES)), max_size=30)


@given(histories.filter(lambda history: "settled" in history), st.data())
def test_a_settled_update_missing_from_the_ledger_is_always_found(
    history: list[str], data: st.DataObject
) -> None:
    book, ledger = account_of(history)
    settled = [one for one in ledger if history[one.seq - 1] == "settled"]
    ledger.remove(data.draw(st.sampled_from(settled)))
    assert problems(book, ledger) != []


@given(histories.filter(bool), st.data())
def test_a_row_that_leaves_the_books_is_always_found(
    history: list[str], data: st.DataObject
) -> None:
    book, ledger = account_of([*history, "waiting"])
    gone = data.draw(st.integers(1, len(history)))
    rows = {seq: row for seq, row in book.rows.items() if seq != gone}
    assert problems(replace(book, rows=rows), ledger) != []
