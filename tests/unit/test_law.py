from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_node.rows import Books
from hedgerow.core.messages import UpdateId
from hedgerow.up.law import check_books

NODE, EPOCH = "node-01", 7


def books(
    applied: int = 0,
    rejected: int = 0,
    expired: int = 0,
    outbox: Iterable[int] = (),
    issued: int = 0,
) -> Books:
    return Books(
        node=NODE,
        epoch=EPOCH,
        issued=issued,
        applied=applied,
        rejected={"stale": rejected} if rejected else {},
        expired=expired,
        last_base_version=0,
        outbox=dict.fromkeys(outbox, b""),
        units={},
    )


def ids(*seqs: int, node: str = NODE, epoch: int = EPOCH) -> list[UpdateId]:
    return [UpdateId(node, epoch, seq) for seq in seqs]


# Of nine updates 1-3 were settled, 4 is merged but its receipt is under way, 5 was rejected, 6 and 7
# expired, 8 and 9 wait.
SOUND = books(applied=3, rejected=1, expired=2, outbox=[4, 8, 9], issued=9)
LEDGER = ids(1, 2, 3, 4)


def test_sound_books_pass_and_are_added_up() -> None:
    account = check_books([SOUND], LEDGER)
    assert account.problems == []
    (node,) = account.nodes
    assert (node.issued, node.applied, node.rejected, node.expired, node.outbox) == (9, 4, 1, 2, 2)


@pytest.mark.parametrize(
    ("tampered", "said"),
    [
        (replace(SOUND, issued=10), "issued 10 is not 9"),
        (replace(SOUND, issued=8), "issued 8 is not 9"),
        (replace(SOUND, rejected={}), "issued 9 is not 8"),
        (replace(SOUND, rejected={"stale": 1, "norm": 1}), "issued 9 is not 10"),
        (replace(SOUND, expired=1), "issued 9 is not 8"),
        (replace(SOUND, outbox={4: b"", 8: b""}), "issued 9 is not 8"),
        (replace(SOUND, outbox={4: b"", 8: b"", 9: b"", 10: b""}), "issued 9 is not 10"),
        (replace(SOUND, outbox={4: b"", 8: b"", 12: b""}), "1 are not of these: 12"),
        (replace(SOUND, outbox={8: b"", 9: b""}), "counts 3 updates as applied"),
        (replace(SOUND, applied=4), "counts 4 updates as applied"),
        (replace(SOUND, applied=2), "counts 2 updates as applied"),
    ],
)
def test_every_term_of_the_books_is_checked(tampered: Books, said: str) -> None:
    problems = check_books([tampered], LEDGER).problems
    assert any(said in problem for problem in problems), problems


@pytest.mark.parametrize(
    ("ledger", "said"),
    [
        (ids(1, 2, 4), "issued 9 is not 8"),
        (ids(1, 2, 3, 4, 4), "seq 4 is in the ledger 2 times"),
        (ids(1, 2, 3, 4, 11), "1 are not of these: 11"),
        (ids(0, 1, 2, 4), "1 are not of these: 0"),
        ([*LEDGER, *ids(1, node="node-02")], "node-02 epoch 7: the ledger holds 1 updates"),
        ([*LEDGER, *ids(1, epoch=8)], "node-01 epoch 8: the ledger holds 1 updates"),
    ],
)
def test_every_row_of_the_ledger_is_checked(ledger: list[UpdateId], said: str) -> None:
    problems = check_books([SOUND], ledger).problems
    assert any(said in problem for problem in problems), problems


fates = st.lists(
    st.sampled_from(["settled", "merged", "rejected", "expired", "waiting"]), max_size=30
)


def account_of(history: list[str]) -> tuple[Books, list[UpdateId]]:
    """The books and ledger of updates with these fates, in the order of their issue."""
    seqs = {
        fate: [seq for seq, had in enumerate(history, start=1) if had == fate]
        for fate in set(history)
    }
    book = books(
        applied=len(seqs.get("settled", [])),
        rejected=len(seqs.get("rejected", [])),
        expired=len(seqs.get("expired", [])),
        outbox=[*seqs.get("merged", []), *seqs.get("waiting", [])],
        issued=len(history),
    )
    return book, ids(*seqs.get("settled", []), *seqs.get("merged", []))


@given(fates)
def test_any_history_conserves_updates(history: list[str]) -> None:
    book, ledger = account_of(history)
    assert check_books([book], ledger).problems == []


@given(fates.filter(lambda history: "settled" in history), st.data())
def test_a_settled_update_missing_from_the_ledger_is_always_found(
    history: list[str], data: st.DataObject
) -> None:
    book, ledger = account_of(history)
    settled = [one for one in ledger if one.seq not in book.outbox]
    ledger.remove(data.draw(st.sampled_from(settled)))
    assert check_books([book], ledger).problems != []


@given(fates.filter(lambda history: {"settled", "merged"} & set(history)), st.data())
def test_an_update_counted_twice_is_always_found(history: list[str], data: st.DataObject) -> None:
    book, ledger = account_of(history)
    ledger.append(data.draw(st.sampled_from(ledger)))
    assert check_books([book], ledger).problems != []
