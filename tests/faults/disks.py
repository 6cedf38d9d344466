"""F8 to F10: disks that are full, that fail, and that rot."""

import os
import random
import time
from contextlib import suppress
from pathlib import Path

from edge_node.outbox import FILE_NAME
from tests.faults.fault import Fault
from tests.faults.fleet import AGGREGATOR, Fleet, Setup
from tests.faults.kills import tracer
from tests.faults.role import Role

_TMPFS_BYTES = 24 << 20
_SMALL_DISKS = Setup(
    tmpfs={"node-01": _TMPFS_BYTES, AGGREGATOR: _TMPFS_BYTES},
    overrides={
        "task": {"outputs": 10, "options": {"hidden": [512]}},
        "node": {"sleep_s": 0.05, "resend_s": 1.0, "offline_updates": 48},
        "storage": {"ballast_bytes": 1 << 17},
    },
)
"""Updates of 39 KB: with smaller ones a full disk is not noticed for minutes."""

_FILLER = "filler"
_PIECE = bytes(4096)
_MOST_TRAININGS = 5
"""In the three seconds after a write has failed; there would be twenty and more."""


def fill_up(folder: Path) -> int:
    """Fill the disk of a folder to the last byte; returns how many that took."""
    file = folder / _FILLER
    with file.open("ab", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(_PIECE)
    with file.open("ab", buffering=0) as filler, suppress(OSError):
        while True:
            filler.write(_PIECE[:1])
    return file.stat().st_size


def node_disk_full(fleet: Fleet, run: int) -> str:
    """F8: a node without a link has no byte left on its disk; with the link back it drains all the same."""
    node = fleet[fleet.nodes[0]]
    before = node.events("save_failed")
    fleet.links[node.name].cut()
    full_bytes = _fill_until_a_save_fails(fleet, node)
    held = fleet.mark(node.name).held
    assert held, "the node holds nothing"
    fleet.links[node.name].heal()
    drain_s = fleet.until(
        lambda: not held & fleet.mark(node.name).held, 60, "it drains while the disk is full"
    )
    assert node.running, f"it died of a full disk:\n{node.tail()}"
    (node.folder / _FILLER).unlink()
    failed = node.events("save_failed") - before
    return f"{full_bytes >> 10} KiB filled, {failed} saves failed, {len(held)} drained in {drain_s:.1f} s"


def aggregator_disk_full(fleet: Fleet, run: int) -> str:
    """F8: the aggregator has no byte left on its disk: nothing is settled, and nobody trains in vain."""
    role = fleet[AGGREGATOR]
    before = role.events("save_failed")
    full_bytes = _fill_until_a_save_fails(fleet, role)
    time.sleep(1.0)
    landed, trained = len(fleet.ledger()), fleet[fleet.nodes[0]].events("trained")
    time.sleep(3.0)
    trained = fleet[fleet.nodes[0]].events("trained") - trained
    assert trained <= _MOST_TRAININGS, f"{trained} trainings went on although nothing could be kept"
    assert len(fleet.ledger()) <= landed + 2, "the ledger grew on a full disk"
    assert role.running, f"it died of a full disk:\n{role.tail()}"
    (role.folder / _FILLER).unlink()
    return f"{full_bytes >> 10} KiB filled, {role.events('save_failed') - before} saves failed"


def _fill_until_a_save_fails(fleet: Fleet, role: Role) -> int:
    """Fill the disk; returns how many bytes that took."""
    before = role.events("save_failed")
    full_bytes = fill_up(role.folder)
    assert os.statvfs(role.folder).f_bavail == 0, "the disk is not full"
    fleet.until(lambda: role.events("save_failed") > before, 60, f"a save of {role.name} failed")
    return full_bytes


def failing_syncs(fleet: Fleet, run: int) -> str:
    """F9: some syncs of a node, or of the aggregator, end with EIO."""
    name = (fleet.nodes[0], AGGREGATOR)[run % 2]
    role = fleet[name]
    before = role.events("save_failed")
    landed = len(fleet.ledger())
    role.stop()
    first = 5 + run
    role.start(prefix=tracer(f"error=EIO:when={first}..{first + 2}"))
    fleet.until(lambda: role.events("save_failed") > before, 30, "a sync failed")
    fleet.until(lambda: len(fleet.ledger()) > landed + 2, 30, "it goes on without a restart")
    assert role.running, f"{name} died of EIO:\n{role.tail()}"
    # From here on the disk is sound: to strace, each thread of a process has syncs of its own to fail.
    role.kill()
    return f"{name}: {role.events('save_failed') - before} commits failed"


def rot(fleet: Fleet, run: int) -> str:
    """F10: a node's outbox is damaged while it is off: its head, its length, or a bit of every page."""
    node = fleet[fleet.nodes[0]]
    before = node.events("store_quarantined")
    epoch = fleet.mark(node.name).epoch
    node.stop()
    fleet.ended.append(fleet.keep(node.name))
    _DAMAGES[run % len(_DAMAGES)](node.folder / FILE_NAME, random.Random(run))
    node.start()
    fleet.until(lambda: fleet.mark(node.name).epoch not in (0, epoch), 20, "a new epoch")
    assert node.events("store_quarantined") > before, "the damage was not counted"
    aside = list(node.folder.glob(f"{FILE_NAME}.corrupt-*"))
    assert aside, "the damaged file was not kept"
    return f"{aside[-1].name} kept, a new epoch begun"


def _zero_head(file: Path, rng: random.Random) -> None:
    with file.open("r+b") as damaged:
        damaged.write(bytes(4096))


def _truncate(file: Path, rng: random.Random) -> None:
    os.truncate(file, file.stat().st_size // 2 // 4096 * 4096)


def _flip_a_bit_of_every_page(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    for page in range(0, len(data), 4096):
        data[page + rng.randrange(100 if page else 16)] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


_DAMAGES = (_zero_head, _truncate, _flip_a_bit_of_every_page)

FAULTS = [
    Fault("F8", "node's disk full", node_disk_full, _SMALL_DISKS, apart=True),
    Fault("F8", "aggregator's disk full", aggregator_disk_full, _SMALL_DISKS, apart=True),
    Fault("F9", "fsync fails with EIO", failing_syncs),
    Fault("F10", "store damaged", rot),
]
