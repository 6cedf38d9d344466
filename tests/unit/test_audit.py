"""The audit: it finds nothing wrong with what the deployed merge wrote, and every damage done to it."""

# ruff: noqa: S608 - the damage is done in plain SQL
import asyncio
import shutil
import sqlite3
import subprocess
import sys
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from msgspec.structs import replace
from safetensors.numpy import load, save

from hedgerow.core.codec import decode, encode
from hedgerow.core.errors import ConfigError
from hedgerow.core.messages import Partial, Update
from hedgerow.core.units import digest
from hedgerow.core.versions import next_life
from hedgerow.custody.audit import Audit, audit, find_fleet
from tests.unit.written_fleet import WrittenFleet, config_of, write_fleet

LEDGER, OUTBOX = "aggregator/ledger.sqlite3", "{}/outbox.sqlite"


def audited(folder: Path, **options: Any) -> Audit:
    return audit(find_fleet([folder]), **options)


def broken(found: Audit) -> dict[str, list[str]]:
    return {promise.name: promise.violations for promise in found.promises if not promise.kept}


@pytest.mark.parametrize(
    ("law", "aggregation"),
    [
        ("exponential", {}),
        ("exponential", {"variance": "kappa_inverse", "example_exponent": 1.0, "example_cap": 30}),
        ("polynomial", {}),
        ("polynomial", {"variance": "kappa_diversity", "example_exponent": 0.5, "example_cap": 40}),
        ("hinge", {"variance": "kappa_diversity"}),
        ("constant", {}),
    ],
)
async def test_what_the_deployed_merge_wrote_is_replayed_bit_by_bit(
    tmp_path: Path, law: str, aggregation: dict[str, Any]
) -> None:
    fleet = await write_fleet(tmp_path, config_of(law, **aggregation))
    found = audited(tmp_path)
    assert found.holds, broken(found)
    c4 = next(promise for promise in found.promises if promise.name == "C4")
    newest = fleet.lineage.version
    assert c4.checked == f"versions 10 to {newest}, {newest - 10} made anew"


async def test_without_a_checkpoint_everything_is_replayed(tmp_path: Path) -> None:
    await write_fleet(tmp_path, config_of(), checkpoint_versions=1000)
    assert audited(tmp_path, replay_all=True).holds


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    config = config_of("polynomial", example_exponent=0.5, example_cap=40)
    asyncio.run(write_fleet(folder, config, turns=10, checkpoint_versions=8))
    return folder


@pytest.fixture
def fleet(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "copy"))


def test_the_terms_of_the_law(fleet: Path) -> None:
    found = audited(fleet)
    assert found.holds, broken(found)
    one, two, three = found.nodes
    assert (one.rejected, one.outbox) == (1, 0)
    assert (two.expired, two.coalesced) == (1, 2)
    assert (three.rejected, three.outbox) == (0, 2)
    for node in found.nodes:
        ends = node.rejected + node.expired + node.coalesced + node.outbox
        assert node.issued == node.applied + ends
        assert node.applied > 5


def test_only_what_a_checkpoint_left_can_be_replayed(fleet: Path) -> None:
    assert set(broken(audited(fleet, replay_all=True))) == {"C4"}


def change(file: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        assert connection.execute(sql, values).rowcount == 1, sql


def ask(file: Path, sql: str) -> Any:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(sql).fetchone()


def change_partial(fleet: Path, wanted: str, alter: Callable[[Partial], Partial]) -> None:
    """Replace the first merged partial that has `wanted`, with its checksum, as a faulty program would."""
    with closing(sqlite3.connect(fleet / LEDGER)) as connection:
        rows = connection.execute(
            "SELECT position, body FROM partials WHERE merged_version IS NOT NULL"
        ).fetchall()
    for position, body in rows:
        partial = cast("Partial", decode(body))
        if getattr(partial, wanted):
            fresh = encode(alter(partial))
            change(
                fleet / LEDGER,
                "UPDATE partials SET body = ?, crc = ? WHERE position = ?",
                fresh,
                zlib.crc32(fresh),
                position,
            )
            return
    raise AssertionError(f"no partial has {wanted}")


def bumped(total: bytes) -> bytes:
    values = np.frombuffer(total, "<i4").copy()
    values[0] += 1000
    return values.tobytes()


def change_sums(fleet: Path) -> None:
    def alter(partial: Partial) -> Partial:
        first, *rest = partial.sums
        return replace(partial, sums=[replace(first, total=bumped(first.total)), *rest])

    change_partial(fleet, "sums", alter)


def change_weight(fleet: Path) -> None:
    def alter(partial: Partial) -> Partial:
        first, *rest = partial.sums
        return replace(partial, sums=[replace(first, weight=first.weight + 99), *rest])

    change_partial(fleet, "sums", alter)


def change_update(fleet: Path) -> None:
    def alter(partial: Partial) -> Partial:
        first, *rest = partial.updates
        flipped = bytes([first.payload[0] ^ 1]) + first.payload[1:]
        return replace(partial, updates=[replace(first, payload=flipped), *rest])

    change_partial(fleet, "updates", alter)


def change_island(fleet: Path) -> None:
    def alter(partial: Partial) -> Partial:
        assert partial.island is not None
        delta = np.frombuffer(partial.island.delta, "<f4") * np.float32(1.001)
        return replace(partial, island=replace(partial.island, delta=delta.tobytes()))

    change_partial(fleet, "island", alter)


def change_header(wanted: str) -> Callable[[Path], None]:
    def alter(partial: Partial) -> Partial:
        first, *rest = partial.headers
        return replace(partial, headers=[replace(first, examples=first.examples + 1), *rest])

    return lambda fleet: change_partial(fleet, wanted, alter)


def lose_header(fleet: Path) -> None:
    change_partial(fleet, "sums", lambda partial: replace(partial, headers=partial.headers[1:]))


def forget_partial(fleet: Path) -> None:
    sql = "DELETE FROM partials WHERE position = (SELECT max(position) FROM partials WHERE merged_version"
    change(fleet / LEDGER, f"{sql} = (SELECT max(version) FROM versions))")


def forget_inputs(fleet: Path) -> None:
    """All that was kept since the checkpoint, as if a checkpoint had dropped too much."""
    with closing(sqlite3.connect(fleet / LEDGER, isolation_level=None)) as connection:
        sql = "DELETE FROM partials WHERE merged_version IS NOT NULL"
        assert connection.execute(sql).rowcount > 1


def merge_twice(fleet: Path) -> None:
    """A merged partial waits once more."""
    change(
        fleet / LEDGER,
        "INSERT INTO partials (id, body, crc) SELECT id, body, crc FROM partials"
        " WHERE merged_version IS NOT NULL LIMIT 1",
    )


def flip_waiting(fleet: Path) -> None:
    sql = "SELECT position, body FROM partials WHERE merged_version IS NULL"
    position, body = ask(fleet / LEDGER, sql)
    flipped = body[:-20] + bytes([body[-20] ^ 4]) + body[-19:]
    change(fleet / LEDGER, "UPDATE partials SET body = ? WHERE position = ?", flipped, position)


def parameters(fleet: Path, version: str) -> tuple[int, Path]:
    sql = f"SELECT version, file FROM versions WHERE version = ({version})"
    number, name = ask(fleet / LEDGER, sql)
    return number, fleet / "aggregator" / "models" / f"{name}.safetensors"


def one_ulp(file: Path) -> bytes:
    tensors = load(file.read_bytes())
    name = min(tensors)
    values = tensors[name].reshape(-1)
    values[0] = np.nextafter(values[0], np.float32(9))
    return save(tensors)


NEWEST = "SELECT max(version) FROM versions"


def change_parameter(fleet: Path) -> None:
    _, file = parameters(fleet, NEWEST)
    file.write_bytes(one_ulp(file))


def change_parameter_and_name(fleet: Path) -> None:
    """A file that is what its name says, but not what the merge gave."""
    version, file = parameters(fleet, NEWEST)
    data = one_ulp(file)
    file.with_name(f"{digest(data)}.safetensors").write_bytes(data)
    sql = "UPDATE versions SET file = ? WHERE version = ?"
    change(fleet / LEDGER, sql, digest(data), version)


def change_checkpoint(fleet: Path) -> None:
    version, file = parameters(fleet, "8")
    data = one_ulp(file)
    file.with_name(f"{digest(data)}.safetensors").write_bytes(data)
    sql = "UPDATE versions SET file = ? WHERE version = ?"
    change(fleet / LEDGER, sql, digest(data), version)


def change_version(fleet: Path) -> None:
    sql = f"SELECT descriptor FROM versions WHERE version = ({NEWEST})"
    descriptor = cast("Any", decode(ask(fleet / LEDGER, sql)[0]))
    rules = replace(descriptor.rules, server_learning_rate=0.5)
    units = {name: replace(unit, digest="0" * 32) for name, unit in descriptor.units.items()}
    body = encode(replace(descriptor, rules=rules, units=units))
    sql = f"UPDATE versions SET descriptor = ?, crc = ? WHERE version = ({NEWEST})"
    change(fleet / LEDGER, sql, body, zlib.crc32(body))


def in_ledger(sql: str) -> Callable[[Path], None]:
    return lambda fleet: change(fleet / LEDGER, sql)


def in_outbox(node: str, sql: str) -> Callable[[Path], None]:
    return lambda fleet: change(fleet / OUTBOX.format(node), sql)


def flip_held_body(fleet: Path) -> None:
    file = fleet / OUTBOX.format("node-3")
    seq, body = ask(file, "SELECT max(seq), body FROM issued WHERE body IS NOT NULL")
    flipped = body[:-3] + bytes([body[-3] ^ 1]) + body[-2:]
    change(file, "UPDATE issued SET body = ? WHERE seq = ?", flipped, seq)


def exchange_held_body(fleet: Path) -> None:
    """The held update that is in the ledger is another one, with a checksum that is right."""
    file = fleet / OUTBOX.format("node-3")
    for seq, body in _rows(file, "SELECT seq, body FROM issued WHERE body IS NOT NULL"):
        if _row_of_ledger(fleet, seq):
            update = cast("Update", decode(body))
            other = encode(replace(update, examples=update.examples + 1))
            sql = "UPDATE issued SET body = ?, checksum = ? WHERE seq = ?"
            change(file, sql, other, zlib.crc32(other), seq)
            return
    raise AssertionError("no held update is in the ledger")


def _rows(file: Path, sql: str) -> list[Any]:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute(sql).fetchall()


def _row_of_ledger(fleet: Path, seq: int) -> bool:
    sql = f"SELECT count(*) FROM ledger WHERE node = 'node-3' AND seq = {seq}"
    return bool(ask(fleet / LEDGER, sql)[0])


ONE_ROW = "rowid = (SELECT max(rowid) FROM ledger WHERE node = 'node-1')"
DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a row of the ledger is gone": (in_ledger(f"DELETE FROM ledger WHERE {ONE_ROW}"), "C2"),
    "an old row of the ledger is gone": (
        in_ledger("DELETE FROM ledger WHERE rowid = (SELECT min(rowid) FROM ledger)"),
        "C2",
    ),
    "a row of another seq": (in_ledger(f"UPDATE ledger SET seq = 99 WHERE {ONE_ROW}"), "C3"),
    "a row of another node": (
        in_ledger(f"UPDATE ledger SET node = 'node-9' WHERE {ONE_ROW}"),
        "C3",
    ),
    "a row of another epoch": (
        in_ledger(f"UPDATE ledger SET epoch = epoch + 1 WHERE {ONE_ROW}"),
        "C3",
    ),
    "a row of another base version": (
        in_ledger(f"UPDATE ledger SET base_version = base_version + 1 WHERE {ONE_ROW}"),
        "C3",
    ),
    "a row with other examples": (
        in_ledger(f"UPDATE ledger SET examples = examples + 1 WHERE {ONE_ROW}"),
        "C4",
    ),
    "a row with another kappa": (
        in_ledger(f"UPDATE ledger SET kappa = kappa + 1 WHERE {ONE_ROW}"),
        "C4",
    ),
    "a row with another hash": (
        in_ledger(f"UPDATE ledger SET hash = hash + 1 WHERE {ONE_ROW}"),
        "C4",
    ),
    "a row of another version": (
        in_ledger(f"UPDATE ledger SET version = version - 1 WHERE {ONE_ROW}"),
        "C4",
    ),
    "a row of a version to come": (
        in_ledger(f"UPDATE ledger SET version = 999 WHERE {ONE_ROW}"),
        "C4",
    ),
    "a partial's sums": (change_sums, "C4"),
    "a partial's weight": (change_weight, "C4"),
    "an update in a partial": (change_update, "C4"),
    "an island's delta": (change_island, "C4"),
    "a header beside sums": (change_header("sums"), "C4"),
    "a header beside updates": (change_header("updates"), "C4"),
    "a header is gone": (lose_header, "C4"),
    "a partial is gone": (forget_partial, "C4"),
    "all partials are gone": (forget_inputs, "C4"),
    "a partial waits again": (merge_twice, "C1"),
    "a bit of a waiting partial": (flip_waiting, "C4"),
    "a parameter": (change_parameter, "C4"),
    "a parameter, and the file's name": (change_parameter_and_name, "C4"),
    "a parameter of the checkpoint": (change_checkpoint, "C4"),
    "what a version says of itself": (change_version, "C4"),
    "a version is gone": (in_ledger("DELETE FROM versions WHERE version = 10"), "C4"),
    "an outbox closes as applied what nobody has": (
        in_outbox("node-3", "UPDATE issued SET outcome = 'applied' WHERE seq ="
                  " (SELECT max(seq) FROM issued)"),
        "C2",
    ),
    "a rejected update is in the ledger": (
        in_outbox("node-1", "UPDATE issued SET outcome = 'rejected', reason = 'norm' WHERE seq = 2"),
        "C2",
    ),
    "an expired update is in the ledger": (
        in_outbox("node-1", "UPDATE issued SET outcome = 'expired', reason = 'x' WHERE seq = 3"),
        "C2",
    ),
    "a coalesced update is in the ledger": (
        in_outbox("node-1", "UPDATE issued SET outcome = 'coalesced', reason = 'x' WHERE seq = 3"),
        "C2",
    ),
    "an end without a reason": (
        in_outbox("node-1", "UPDATE issued SET reason = '' WHERE outcome = 'rejected'"),
        "C6",
    ),
    "an end that is none": (
        in_outbox("node-1", "UPDATE issued SET outcome = 'vanished' WHERE outcome = 'rejected'"),
        "C6",
    ),
    "a row in the middle of the books is gone": (
        in_outbox("node-1", "DELETE FROM issued WHERE seq = 2"),
        "law",
    ),
    "the books have another base version": (
        in_outbox("node-1", "UPDATE issued SET base_version = 77 WHERE seq = 2"),
        "C3",
    ),
    "a bit of a held update": (flip_held_body, "C3"),
    "a held update is another than the ledger's": (exchange_held_body, "C3"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_every_damage_is_found(fleet: Path, what: str) -> None:
    damage, promise = DAMAGES[what]
    damage(fleet)
    assert promise in broken(audited(fleet)), broken(audited(fleet))


def test_a_node_whose_books_are_elsewhere_must_be_named(fleet: Path) -> None:
    shutil.rmtree(fleet / "node-2")
    assert set(broken(audited(fleet))) == {"C3"}
    found = audited(fleet, without=["node-2"])
    assert found.holds
    assert any(note.startswith("node-2: ") for note in found.notes)


def test_folders_without_an_aggregator_cannot_be_audited(fleet: Path) -> None:
    with pytest.raises(ConfigError, match="0 aggregators"):
        find_fleet([fleet / "node-1"])
    with pytest.raises(ConfigError, match="holds no ledger"):
        find_fleet([fleet / "nowhere"])


def test_a_fleet_at_work_is_not_audited(fleet: Path) -> None:
    command = [sys.executable, "-m", "hedgerow.cli", "audit", str(fleet)]
    with closing(sqlite3.connect(fleet / LEDGER)) as connection:
        connection.execute("SELECT count(*) FROM ledger").fetchone()
        # A process does not see its own locks, so another one looks.
        busy = subprocess.run(command, capture_output=True, text=True, check=False)
    assert busy.returncode == 2
    assert "ledger.sqlite3 is open in a running process; stop the fleet" in busy.stderr
    idle = subprocess.run(command, capture_output=True, text=True, check=False)
    assert idle.returncode == 0, idle.stdout + idle.stderr


async def test_what_a_restored_aggregator_forgot_is_counted(tmp_path: Path) -> None:
    """The ledger is put back to version 3; what version 4 settled is forgotten, and a new life begins."""
    fleet = WrittenFleet(tmp_path, config_of(), 1000)
    await fleet.begin()
    for version in range(3):
        await fleet.merge([await fleet.accept([await fleet.update("node-1", version)], raw=True)])
    forgotten = await fleet.update("node-1", 3)
    await fleet.close_update(forgotten.id, "applied")
    assert set(broken(audited(tmp_path))) == {"C2", "law"}
    mark = "INSERT INTO meta VALUES ('restored', '1')"
    change(tmp_path / LEDGER, mark)
    found = audited(tmp_path)
    assert found.holds, broken(found)
    assert found.nodes[0].forgotten == 1
    await fleet.renumber(next_life(4, 3))
    await fleet.merge([await fleet.accept([await fleet.update("node-1", 1_000_004)], raw=True)])
    found = audited(tmp_path)
    assert found.holds, broken(found)
    assert (found.nodes[0].forgotten, found.nodes[0].applied) == (1, 4)
    unseen = await fleet.update("node-1", 1_000_005)
    await fleet.close_update(unseen.id, "applied")
    await fleet.end()
    assert set(broken(audited(tmp_path))) == {"C2", "law"}


async def test_what_a_restored_node_forgot_is_counted(fleet: Path) -> None:
    file = fleet / OUTBOX.format("node-1")
    change(file, "DELETE FROM issued WHERE outcome = 'rejected'")
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        gone = connection.execute("DELETE FROM issued WHERE seq > 6").rowcount
        left = connection.execute("SELECT count(*) FROM issued").fetchone()[0]
    assert set(broken(audited(fleet))) == {"C3", "law"}
    change(file, "INSERT INTO meta VALUES ('restored', '1')")
    found = audited(fleet)
    assert found.holds, broken(found)
    assert (found.nodes[0].unknown, found.nodes[0].applied) == (gone, left) == (gone, 6)
