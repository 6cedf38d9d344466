"""Backups as files: what was copied comes back whole or is refused, and nothing lands outside its folder."""

import asyncio
import hashlib
import io
import json
import shutil
import sqlite3
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aggregator.ledger import Ledger
from edge_node.outbox import Outbox
from hedgerow.cli import main
from hedgerow.core.errors import ConfigError
from hedgerow.custody.backup import make_backup
from hedgerow.custody.errors import CustodyError
from hedgerow.custody.restore import restore
from tests.unit.written_fleet import NODES, config_of, write_fleet


def quiet(_name: str, _done: int, _total: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet")
    asyncio.run(write_fleet(folder, config_of(), turns=6))
    return folder


@pytest.fixture
def fleet(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "fleet"))


def dump(folder: Path) -> dict[str, Any]:
    """Return everything in a folder: the databases row by row but for the mark, other files by content."""
    out: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix in {".sqlite", ".sqlite3"}:
            with closing(sqlite3.connect(path)) as connection:
                out[path.name] = [
                    line for line in connection.iterdump() if "'restored'" not in line
                ]
        elif path.is_file() and not path.name.endswith(("-wal", "-shm", ".ballast")):
            out[path.name] = path.read_bytes()
    return out


def marked(file: Path) -> bool:
    with closing(sqlite3.connect(file)) as connection:
        query = "SELECT count(*) FROM meta WHERE key = 'restored' AND value = '1'"
        return bool(connection.execute(query).fetchone()[0])


@pytest.mark.parametrize("name", ["backup.tar", "backup.tar.gz", "backup.tgz"])
@pytest.mark.parametrize("tier", ["aggregator", NODES[0]])
def test_what_was_copied_comes_back_and_is_marked(fleet: Path, name: str, tier: str) -> None:
    file = fleet / "backups" / name
    manifest = make_backup(fleet / tier, file, quiet)
    assert manifest.role == ("aggregator" if tier == "aggregator" else "node")
    before = dump(fleet / tier)
    done = restore(file, fleet / "new", quiet, force=False)
    assert dump(fleet / "new") == before
    assert done.manifest == manifest
    database = "ledger.sqlite3" if tier == "aggregator" else "outbox.sqlite"
    assert marked(fleet / "new" / database)
    assert not marked(fleet / tier / database), "the original stays as it was"
    assert [path.name for path in file.parent.iterdir()] == [name], "nothing is left over"


async def test_a_restored_node_takes_a_new_epoch_once(fleet: Path) -> None:
    make_backup(fleet / "node-3", fleet / "n.tar", quiet)
    restore(fleet / "n.tar", fleet / "new", quiet, force=False)
    epochs = []
    for _ in range(2):
        outbox = Outbox(fleet / "new", "node-3")
        books = await outbox.load()
        await outbox.close()
        epochs.append(books.epoch)
        (former,) = books.former
        assert former.ended == "restored"
        assert len(former.outbox) == 3, "what it held it offers again, under the old name"
        assert (books.issued, books.outbox) == (0, {})
    assert epochs[0] == epochs[1] != former.epoch
    again = make_backup(fleet / "new", fleet / "again.tar", quiet)
    assert again.epoch == epochs[0], "the label is that of the updates to come"


async def test_a_restored_aggregator_knows_it(fleet: Path) -> None:
    make_backup(fleet / "aggregator", fleet / "a.tar", quiet)
    restore(fleet / "a.tar", fleet / "new", quiet, force=False)
    for folder, why in (("aggregator", ""), ("new", "restore")):
        ledger = await Ledger.open(fleet / folder, "model", checkpoint_versions=5)
        snapshot = await ledger.load()
        await ledger.close()
        assert snapshot is not None
        assert snapshot.restored == why


def test_a_backup_says_what_it_is_of(fleet: Path) -> None:
    manifest = make_backup(fleet / "aggregator", fleet / "a.tar", quiet)
    assert (manifest.model, manifest.term, manifest.left_out) == ("model", 0, ())
    assert manifest.version == 8
    assert sum(entry.name.startswith("models/") for entry in manifest.files) == 4
    node = make_backup(fleet / "node-2", fleet / "n.tar", quiet)
    assert (node.node, node.role) == ("node-2", "node")
    assert node.epoch > 0


def test_a_gateways_spool_is_copied_as_any_database(tmp_path: Path) -> None:
    (tmp_path / "gw").mkdir()
    with closing(sqlite3.connect(tmp_path / "gw" / "spool.sqlite")) as connection:
        connection.execute("CREATE TABLE held (body BLOB)")
    assert make_backup(tmp_path / "gw", tmp_path / "gw.tar", quiet).role == "gateway"
    restore(tmp_path / "gw.tar", tmp_path / "back", quiet, force=False)
    assert dump(tmp_path / "back") == dump(tmp_path / "gw")


def test_a_copy_is_of_one_moment(fleet: Path) -> None:
    """What is committed while the copy is made is not in it, not even in part."""
    database = fleet / "node-1" / "outbox.sqlite"
    seen: list[int] = []

    def write_meanwhile(_name: str, done: int, total: int) -> None:
        with closing(sqlite3.connect(database, isolation_level=None)) as connection:
            for table in ("unit", "personal"):
                sql = f"INSERT INTO {table} VALUES (?, zeroblob(9000))"  # noqa: S608
                connection.execute(sql, (f"{done} {total} {len(seen)}",))
        seen.append(done)

    before = dump(fleet / "node-1")
    make_backup(fleet / "node-1", fleet / "n.tar", write_meanwhile)
    restore(fleet / "n.tar", fleet / "new", quiet, force=False)
    assert seen
    assert dump(fleet / "new") == before != dump(fleet / "node-1")


def test_a_folder_with_anything_in_it_is_kept(
    fleet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, target = fleet / "n.tar", fleet / "node-1"
    assert main(["backup", str(target), str(file)]) == 0
    old = dump(target)
    assert main(["restore", str(file), str(target)]) == 2
    assert "add --force to keep this one as node-1.before-1" in capsys.readouterr().err
    assert dump(target) == old
    for number in (1, 2):
        assert main(["restore", str(file), str(target), "--force", "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
        assert told["set_aside"] == str(fleet / f"node-1.before-{number}")
    assert dump(fleet / "node-1.before-1") == old


def test_folders_and_files_that_make_no_sense_are_refused(fleet: Path) -> None:
    for folder, file, said in [
        (fleet, fleet / "a.tar", "holds no ledger.sqlite3"),
        (fleet / "node-1", fleet / "a.zip", "must end in .tar"),
        (fleet / "node-1", fleet / "node-1" / "a.tar", "lies inside"),
    ]:
        with pytest.raises(ConfigError, match=said):
            make_backup(folder, file, quiet)
    with pytest.raises(CustodyError, match=r"a\.tar: cannot be read"):
        restore(fleet / "a.tar", fleet / "new", quiet, force=False)
    (fleet / "a.tar").write_bytes(b"no tar at all" * 999)
    with pytest.raises(CustodyError, match="damaged or no backup"):
        restore(fleet / "a.tar", fleet / "new", quiet, force=False)
    assert not (fleet / "new").exists()


def newest(fleet: Path, place: int) -> Path:
    with closing(sqlite3.connect(fleet / "aggregator" / "ledger.sqlite3")) as connection:
        query = "SELECT file FROM versions ORDER BY version DESC LIMIT 1 OFFSET ?"
        (name,) = connection.execute(query, (place,)).fetchone()
    return fleet / "aggregator" / "models" / f"{name}.safetensors"


def test_a_damaged_model_is_not_taken_for_a_sound_one(fleet: Path) -> None:
    file = fleet / "a.tar"
    newest(fleet, 1).write_bytes(b"damaged")
    manifest = make_backup(fleet / "aggregator", file, quiet)
    assert manifest.left_out == (f"models/{newest(fleet, 1).name}",)
    sound = file.read_bytes()
    newest(fleet, 0).write_bytes(b"damaged")
    with pytest.raises(CustodyError, match="is damaged, and it is the newest version"):
        make_backup(fleet / "aggregator", file, quiet)
    newest(fleet, 0).unlink()
    with pytest.raises(CustodyError, match="model files went"):
        make_backup(fleet / "aggregator", file, quiet)
    assert file.read_bytes() == sound, "the last good backup stays"


def test_a_damaged_database_is_not_copied(fleet: Path) -> None:
    database = fleet / "node-1" / "outbox.sqlite"
    data = bytearray(database.read_bytes())
    for page in range(2, len(data) // 4096):
        data[page * 4096 : page * 4096 + 16] = b"\xff" * 16
    database.write_bytes(bytes(data))
    with pytest.raises(CustodyError, match=r"damaged|malformed"):
        make_backup(fleet / "node-1", fleet / "n.tar", quiet)


def archive(
    file: Path, manifest: Mapping[str, Any] | None, members: Iterator[tuple[str, bytes]]
) -> None:
    with tarfile.open(file, "w") as tar:
        if manifest is not None:
            _add(tar, "manifest.json", json.dumps(manifest).encode())
        for name, content in members:
            _add(tar, name, content)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    if content == b"LINK":
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
        return
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def manifest_of(*names: str, content: bytes = b"x", **keys: Any) -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    files = [{"name": name, "bytes": len(content), "sha256": sha256} for name in names]
    return {"role": "gateway", "hedgerow": "0", "made_at": "", "files": files, **keys}


_JUNK = b"junk" * 999


@pytest.mark.parametrize(
    ("manifest", "members", "said"),
    [
        (manifest_of("../evil"), [("../evil", b"x")], "would lie outside"),
        (manifest_of("/tmp/evil"), [("/tmp/evil", b"x")], "would lie outside"),  # noqa: S108
        (manifest_of("models/../../evil"), [("models/../../evil", b"x")], "would lie outside"),
        (manifest_of("models/.."), [("models/..", b"x")], "would lie outside"),
        (manifest_of("a"), [("../evil", b"x")], "which its manifest does not name"),
        (manifest_of("a"), [("a", b"x"), ("b", b"x")], "which its manifest does not name"),
        (manifest_of("a"), [("a", b"x"), ("a", b"y")], "which its manifest does not name once"),
        (manifest_of("a"), [("a", b"LINK")], "no plain file"),
        (manifest_of("a", "b"), [("a", b"x")], "cut short: b is missing"),
        (manifest_of("a"), [("a", b"y")], "a is not what its manifest says"),
        (manifest_of("a"), [("a", b"x" * 5000)], "a is not what its manifest says"),
        (manifest_of("a"), [("a", b"x")], "no database of a gateway"),
        (
            manifest_of("a.sqlite", content=_JUNK),
            [("a.sqlite", _JUNK)],
            "damaged: file is not a database",
        ),
        (manifest_of("a.sqlite", role="node"), [("a.sqlite", b"x")], "no database of a node"),
        (manifest_of("a", format=2), [("a", b"x")], "has format 2"),
        (manifest_of("a", role="king"), [("a", b"x")], "its manifest is damaged"),
        (None, [("a", b"x")], "no backup of `hedgerow backup`"),
        (None, [], "no backup of `hedgerow backup`"),
    ],
)
def test_a_hostile_archive_is_refused(
    tmp_path: Path, manifest: Mapping[str, Any] | None, members: list[tuple[str, bytes]], said: str
) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    archive(inside / "a.tar", manifest, iter(members))
    with pytest.raises(CustodyError, match=said):
        restore(inside / "a.tar", inside / "new", quiet, force=False)
    assert [path.name for path in inside.iterdir()] == ["a.tar"]
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


@pytest.fixture(scope="module")
def sound(written: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, dict[str, Any]]:
    """One backup of a node as bytes, and what it restores to."""
    folder = tmp_path_factory.mktemp("sound")
    make_backup(written / "node-3", folder / "n.tgz", quiet)
    restore(folder / "n.tgz", folder / "new", quiet, force=False)
    return (folder / "n.tgz").read_bytes(), dump(folder / "new")


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_damaged_backup_is_refused_or_does_not_matter(
    sound: tuple[bytes, dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
) -> None:
    whole, content = sound
    place = data.draw(st.integers(0, len(whole) - 1))
    bit = data.draw(st.one_of(st.none(), st.integers(0, 7)))
    flipped = b"" if bit is None else bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :]
    folder = tmp_path_factory.mktemp("damaged")
    (folder / "n.tgz").write_bytes(whole[:place] + flipped)
    try:
        restore(folder / "n.tgz", folder / "new", quiet, force=False)
    except CustodyError:
        assert [path.name for path in folder.iterdir()] == ["n.tgz"]
    else:
        assert dump(folder / "new") == content
    shutil.rmtree(folder)
