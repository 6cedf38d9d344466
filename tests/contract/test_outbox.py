"""The outbox on disk: what was saved is found again, a transaction is taken whole or not at all."""

import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path

import pytest

from edge_node.outbox import FILE_NAME, Outbox
from edge_node.rows import (
    Books,
    CloseUpdate,
    EpochBooks,
    KeepPersonal,
    KeepResidual,
    KeepUnit,
    NewEpoch,
    PutUpdate,
)
from hedgerow.core.messages import UpdateId
from hedgerow.core.versions import FIRST_PROVISIONAL
from hedgerow.runtime.ports import StoreError


def own(seq: int, epoch: int = 7) -> UpdateId:
    return UpdateId("node-1", epoch, seq)


def put(seq: int, body: bytes = b"body", base_version: int = 0, epoch: int = 7) -> PutUpdate:
    return PutUpdate(own(seq, epoch), base_version, body)


FIRST = put(1, b"first")


async def opened(folder: Path) -> tuple[Outbox, Books]:
    """Open an outbox whose first epoch is 7."""
    outbox = Outbox(folder, "node-1")
    await outbox.load()
    await outbox.close()
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        connection.execute("UPDATE epoch SET epoch = 7")
    outbox = Outbox(folder, "node-1")
    return outbox, await outbox.load()


async def changed(folder: Path, outbox: Outbox, sql: str) -> Outbox:
    """Close the outbox, change its file, and open it again."""
    await outbox.close()
    with closing(sqlite3.connect(folder / FILE_NAME)) as connection, connection:
        connection.executescript(sql)
    return Outbox(folder, "node-1")


async def reopened(folder: Path, outbox: Outbox) -> Outbox:
    await outbox.close()
    return Outbox(folder, "node-1")


async def test_updates_units_and_residuals_are_found_again(tmp_path: Path) -> None:
    outbox, before = await opened(tmp_path)
    await outbox.save((FIRST, KeepResidual("a", b"left"), KeepResidual("b", b"out")))
    await outbox.save((KeepUnit("c", b"unit"), put(2, b"second", 1)))
    await outbox.save((CloseUpdate(own(1), "applied"), KeepResidual("a", b"more")))
    outbox = await reopened(tmp_path, outbox)
    books = await outbox.load()
    await outbox.close()
    assert (books.epoch, books.issued, books.applied, books.last_base_version) == (7, 2, 1, 1)
    assert books.outbox == {2: b"second"}
    assert books.units == {"c": b"unit"}
    assert books.residuals == {"a": b"more", "b": b"out"}
    assert books.found
    assert books.fresh_epoch not in (7, before.fresh_epoch)


async def test_personal_units_are_found_again_as_they_were_last(tmp_path: Path) -> None:
    outbox, _ = await opened(tmp_path)
    await outbox.save((KeepPersonal("a", b"old"), KeepPersonal("b", b"own"), FIRST))
    await outbox.save((KeepPersonal("a", b"new"), put(2, b"second", 1)))
    with pytest.raises(StoreError):
        await outbox.save((KeepPersonal("a", b"never"), FIRST))
    outbox = await reopened(tmp_path, outbox)
    assert (await outbox.load()).personal == {"a": b"new", "b": b"own"}
    await outbox.close()


async def test_a_residual_ends(tmp_path: Path) -> None:
    outbox, _ = await opened(tmp_path)
    await outbox.save((KeepResidual("a", b"left"), KeepResidual("b", b"")))
    await outbox.save((KeepResidual("a", None), KeepResidual("never", None)))
    assert (await outbox.load()).residuals == {"b": b""}
    await outbox.close()


async def test_an_update_that_cannot_be_saved_leaves_the_residual_as_it_was(
    tmp_path: Path,
) -> None:
    outbox, _ = await opened(tmp_path)
    await outbox.save((FIRST, KeepResidual("a", b"left")))
    with pytest.raises(StoreError):
        await outbox.save((KeepResidual("a", b"later"), FIRST))
    books = await outbox.load()
    await outbox.close()
    assert books.residuals == {"a": b"left"}
    assert books.outbox == {1: b"first"}


# Epochs.


async def test_a_new_file_has_an_epoch_of_its_own(tmp_path: Path) -> None:
    epochs = set()
    for name in ("a", "b"):
        outbox = Outbox(tmp_path / name, "node-1")
        books = await outbox.load()
        await outbox.close()
        epochs |= {books.epoch, books.fresh_epoch}
        assert not books.found
    assert len(epochs) == 4


async def test_books_of_all_epochs_are_kept_apart(tmp_path: Path) -> None:
    outbox, _ = await opened(tmp_path)
    await outbox.save((put(1), put(2, b"second"), put(3)))
    await outbox.save((CloseUpdate(own(1), "rejected", "fork"), NewEpoch(8, "fork")))
    await outbox.save((put(1, b"again", epoch=8), CloseUpdate(own(3), "coalesced")))
    outbox = await reopened(tmp_path, outbox)
    books = await outbox.load()
    await outbox.close()
    former = EpochBooks("node-1", 7, 3, 0, {"fork": 1}, 0, {2: b"second"}, 1, "fork")
    assert books.former == (former,)
    assert (books.epoch, books.issued, books.outbox, books.ended) == (8, 1, {1: b"again"}, "")
    assert [book.epoch for book in books.epochs] == [7, 8]


async def test_an_epoch_that_cannot_be_saved_is_not_there(tmp_path: Path) -> None:
    outbox, _ = await opened(tmp_path)
    with pytest.raises(StoreError):
        await outbox.save((NewEpoch(8, "fork"), NewEpoch(8, "fork")))
    assert (await outbox.load()).epoch == 7
    await outbox.close()


async def test_versions_of_islands_are_remembered_apart(tmp_path: Path) -> None:
    outbox, _ = await opened(tmp_path)
    await outbox.save((put(1, base_version=4), put(2, base_version=FIRST_PROVISIONAL + 2)))
    books = await outbox.load()
    await outbox.close()
    assert (books.last_base_version, books.last_provisional) == (4, FIRST_PROVISIONAL + 2)


# Damage.


async def test_a_body_that_changed_on_the_disk_is_known_to_be_damaged(tmp_path: Path) -> None:
    outbox, _ = await opened(tmp_path)
    await outbox.save((FIRST, put(2, b"second")))
    flip = "UPDATE issued SET body = x'6669727375' WHERE seq = 1"
    outbox = await changed(tmp_path, outbox, flip)
    books = await outbox.load()
    await outbox.close()
    assert books.outbox == {1: b"", 2: b"second"}
    assert books.epoch == 7


async def test_a_gap_ends_the_epoch_and_what_is_missing_is_held_without_a_body(
    tmp_path: Path,
) -> None:
    outbox, _ = await opened(tmp_path)
    await outbox.save((FIRST, put(2), put(3), CloseUpdate(own(2), "applied")))
    outbox = await changed(tmp_path, outbox, "DELETE FROM issued WHERE seq IN (1, 2)")
    books = await outbox.load()
    (former,) = books.former
    assert (former.epoch, former.ended, former.issued) == (7, "gap", 3)
    assert former.outbox == {1: b"", 2: b"", 3: b"body"}
    assert (books.ended, books.issued, books.found) == ("gap", 0, False)
    assert books.epoch != 7
    again = await outbox.load()
    await outbox.close()
    assert (again.epoch, again.ended, again.former) == (books.epoch, "", books.former)


async def test_a_backup_put_back_is_another_epoch_once(tmp_path: Path) -> None:
    outbox, _ = await opened(tmp_path)
    await outbox.save((FIRST,))
    outbox = await changed(tmp_path, outbox, "INSERT INTO meta VALUES ('restored', '1')")
    books, again = await outbox.load(), await outbox.load()
    await outbox.close()
    assert (books.ended, books.former[0].ended, books.former[0].outbox) == (
        "restored",
        "restored",
        {1: b"first"},
    )
    assert (again.ended, again.epoch, len(again.former)) == ("", books.epoch, 1)


async def test_a_row_of_an_absurd_number_does_not_stop_the_start(tmp_path: Path) -> None:
    outbox, _ = await opened(tmp_path)
    await outbox.save((FIRST, put(2)))
    outbox = await changed(
        tmp_path, outbox, "UPDATE issued SET seq = 1152921504606846976 WHERE seq = 2"
    )
    books = await outbox.load()
    await outbox.close()
    assert books.ended == "gap"
    (former,) = books.former
    assert former.issued == len(former.outbox) == 1002


_FIRST_RELEASE = """
CREATE TABLE identity (node TEXT PRIMARY KEY, epoch INTEGER NOT NULL);
CREATE TABLE issued (
    seq INTEGER PRIMARY KEY, base_version INTEGER NOT NULL, body BLOB,
    outcome TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT ''
);
CREATE TABLE unit (name TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE residual (name TEXT PRIMARY KEY, body BLOB NOT NULL);
CREATE TABLE personal (name TEXT PRIMARY KEY, body BLOB NOT NULL);
INSERT INTO identity VALUES ('node-1', 7);
INSERT INTO issued VALUES (1, 3, NULL, 'applied', ''), (2, 4, x'68656c64', '', '');
"""


async def test_a_file_of_the_first_release_is_taken_over(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection, connection:
        connection.executescript(_FIRST_RELEASE)
    outbox = Outbox(tmp_path, "node-1")
    books = await outbox.load()
    await outbox.save((put(3, b"third", 5), CloseUpdate(own(2), "applied")))
    after = await outbox.load()
    await outbox.close()
    assert (books.epoch, books.issued, books.applied, books.found) == (7, 2, 1, True)
    assert (books.outbox, books.last_base_version) == ({2: b"held"}, 4)
    assert (after.applied, after.outbox, after.former) == (2, {3: b"third"}, ())


# A full disk.


async def test_on_a_full_disk_ends_are_written_and_make_room(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "node-1", max_bytes=1 << 20, ballast_bytes=1 << 16)
    epoch = (await outbox.load()).epoch
    body, seq = bytes(100_000), 0
    with suppress(StoreError):
        while seq < 99:
            seq += 1
            await outbox.save((put(seq, body, epoch=epoch),))
    assert 5 <= seq <= 11
    assert sorted((await outbox.load()).outbox) == list(range(1, seq))
    ends = (CloseUpdate(own(1, epoch), "coalesced"), CloseUpdate(own(2, epoch), "coalesced"))
    await outbox.save((*ends, put(seq, body, epoch=epoch)))
    await outbox.save((CloseUpdate(own(3, epoch), "applied"),))
    await outbox.save((NewEpoch(epoch + 1, "fork"),))
    books = await outbox.load()
    await outbox.close()
    (former,) = books.former
    assert sorted(former.outbox) == list(range(4, seq + 1))
    assert (former.coalesced, former.applied) == (2, 1)


async def test_a_node_starts_on_a_disk_that_others_have_filled(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "node-1")
    epoch = (await outbox.load()).epoch
    await outbox.save((put(1, b"first", epoch=epoch),))
    await outbox.close()
    free_bytes = shutil.disk_usage(tmp_path).free
    outbox = Outbox(tmp_path, "node-1", ballast_bytes=free_bytes + (1 << 30))
    books = await outbox.load()
    assert (books.epoch, books.outbox) == (epoch, {1: b"first"})
    with pytest.raises(StoreError, match="full"):
        await outbox.save((put(2, b"second", epoch=epoch),))
    await outbox.save((CloseUpdate(own(1, epoch), "applied"),))
    assert (await outbox.load()).applied == 1
    await outbox.close()
