"""The outbox on disk: what was saved is found again, a transaction is taken whole or not at all."""

from pathlib import Path

import pytest

from edge_node.outbox import Outbox, read_books
from edge_node.rows import CloseUpdate, KeepPersonal, KeepResidual, KeepUnit, PutUpdate
from hedgerow.runtime.ports import StoreError

FIRST = PutUpdate(1, 0, b"first")


async def reopened(folder: Path, outbox: Outbox) -> Outbox:
    await outbox.close()
    return Outbox(folder, "node-1")


async def test_updates_units_and_residuals_are_found_again(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "node-1")
    epoch = (await outbox.load()).epoch
    await outbox.save((FIRST, KeepResidual("a", b"left"), KeepResidual("b", b"out")))
    await outbox.save((KeepUnit("c", b"unit"), PutUpdate(2, 1, b"second")))
    await outbox.save((CloseUpdate(1, "applied"), KeepResidual("a", b"more")))
    outbox = await reopened(tmp_path, outbox)
    books = await outbox.load()
    await outbox.close()
    assert (books.epoch, books.issued, books.applied, books.last_base_version) == (epoch, 2, 1, 1)
    assert books.outbox == {2: b"second"}
    assert books.units == {"c": b"unit"}
    assert books.residuals == {"a": b"more", "b": b"out"}
    assert read_books(tmp_path) == books


async def test_personal_units_are_found_again_as_they_were_last(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "node-1")
    await outbox.load()
    await outbox.save((KeepPersonal("a", b"old"), KeepPersonal("b", b"own"), FIRST))
    await outbox.save((KeepPersonal("a", b"new"), PutUpdate(2, 1, b"second")))
    with pytest.raises(StoreError):
        await outbox.save((KeepPersonal("a", b"never"), FIRST))
    outbox = await reopened(tmp_path, outbox)
    assert (await outbox.load()).personal == {"a": b"new", "b": b"own"}
    await outbox.close()


async def test_a_residual_ends(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, "node-1")
    await outbox.load()
    await outbox.save((KeepResidual("a", b"left"), KeepResidual("b", b"")))
    await outbox.save((KeepResidual("a", None), KeepResidual("never", None)))
    assert (await outbox.load()).residuals == {"b": b""}
    await outbox.close()


async def test_an_update_that_cannot_be_saved_leaves_the_residual_as_it_was(
    tmp_path: Path,
) -> None:
    outbox = Outbox(tmp_path, "node-1")
    await outbox.load()
    await outbox.save((FIRST, KeepResidual("a", b"left")))
    with pytest.raises(StoreError):
        await outbox.save((KeepResidual("a", b"later"), FIRST))
    books = await outbox.load()
    await outbox.close()
    assert books.residuals == {"a": b"left"}
    assert books.outbox == {1: b"first"}
