"""A small fleet's folders, written by the deployed stores and merged by the deployed merge, in no process.

The aggregator has versions of every kind of input: sums, updates by themselves, both at once, and an
island's contribution. The nodes have updates of every fate.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from aggregator.intake import read_partial
from aggregator.ledger import Ledger
from aggregator.lineage import Lineage
from aggregator.merger import Merger
from aggregator.rows import AcceptPartial, CommitVersion, DropPartials
from edge_node.outbox import Outbox
from edge_node.rows import CloseUpdate, PutUpdate
from hedgerow.core.codec import encode
from hedgerow.core.config import Config
from hedgerow.core.messages import Encoding, IslandResult, Partial, Update, UpdateId
from hedgerow.core.partial import Accumulator, PartialAggregate, frame_for, to_wire
from hedgerow.core.quantize import decode_delta, encode_delta
from hedgerow.core.strategy import FTTE
from hedgerow.core.versions import first_of_term
from tests.protocol.scenarios import MODEL, PLAN, first_params, make_config, make_partial

NODES = ("node-1", "node-2", "node-3")
ENCODINGS: tuple[Encoding, ...] = ("fp32", "int8", "int4", "sign", "topk")


def config_of(law: str = "exponential", **aggregation: Any) -> Config:
    """Return a configuration with a staleness law and more of `aggregation`."""
    return make_config(
        staleness={"law": law, "tau_max": 4},
        aggregation={"learning_rate": 0.7, **aggregation},
        training={"clip_norm": 0.5},
    )


class WrittenFleet:
    """The fleet while it is written; `folder` then holds "aggregator" and the nodes' folders."""

    def __init__(self, folder: Path, config: Config, checkpoint_versions: int) -> None:
        self.folder = folder
        self.lineage = Lineage(config, PLAN)
        self._checkpoint_versions = checkpoint_versions
        self._rng = np.random.default_rng(5)
        self._seqs = dict.fromkeys(NODES, 0)
        self._partials = 0

    async def begin(self) -> None:
        """Write version 0 and empty outboxes."""
        self.ledger = await Ledger.open(
            self.folder / "aggregator", MODEL, checkpoint_versions=self._checkpoint_versions
        )
        self.outboxes = {node: Outbox(self.folder / node, node) for node in NODES}
        self.epochs = {node: (await box.load()).epoch for node, box in self.outboxes.items()}
        params = first_params()
        first = self.lineage.first(params, term=0)
        await self.ledger.save((CommitVersion(first, params, (), ()),))
        self.lineage.add(first)
        self.merger = Merger(FTTE, params, self.lineage)

    async def end(self) -> None:
        """Close the files."""
        for box in self.outboxes.values():
            await box.close()
        await self.ledger.close()

    async def update(self, node: str, base: int) -> Update:
        """Issue an update and put it into its node's outbox; every second one is longer than the clip."""
        seq = self._seqs[node] = self._seqs[node] + 1
        encoding = ENCODINGS[seq % len(ENCODINGS)]
        length = 0.3 if seq % 2 else 3.0
        values = self._rng.normal(size=PLAN.size)
        delta = (values * length / np.linalg.norm(values)).astype(np.float32)
        encoded = encode_delta(delta, PLAN, encoding, 9.0, self._rng)
        update = Update(
            id=UpdateId(node, self.epochs[node], seq),
            model=MODEL,
            base_version=base,
            plan_id=PLAN.plan_id,
            examples=5 + 7 * seq,
            kappa=float("nan") if seq == 1 else 0.5 * seq,
            encoding=encoding,
            scales=encoded.scales,
            payload=encoded.payload,
        )
        await self.outboxes[node].save((PutUpdate(update.id, base, encode(update)),))
        return update

    async def accept(self, updates: Sequence[Update], *, raw: bool) -> Partial:
        """Make updates a partial aggregate and keep it."""
        self._partials += 1
        name = f"gw-1-1-{self._partials}"
        partial = make_partial(updates, self.lineage, partial_id=name, raw=True)
        if not raw:
            sums = to_wire(summed(updates, self.lineage))
            partial = replace(partial, sums=sums, updates=[])
        await self.ledger.save((AcceptPartial(partial),))
        return partial

    async def accept_island(self, updates: Sequence[Update], base: int) -> Partial:
        """Make provisional updates an island's contribution and keep it."""
        self._partials += 1
        headers = [update.header for update in updates]
        delta = self._rng.normal(size=PLAN.size).astype("<f4")
        island = IslandResult("gw-1", 1, base, list(PLAN.names), 2, delta.tobytes())
        partial = Partial(
            id=f"gw-1-1-{self._partials}",
            gateway="gw-1",
            model=MODEL,
            at_version=self.lineage.version,
            headers=headers,
            island=island,
        )
        await self.ledger.save((AcceptPartial(partial),))
        return partial

    async def merge(self, partials: Sequence[Partial]) -> None:
        """Merge into the next version; nodes see what was settled."""
        entries = [read_partial(partial, self.lineage) for partial in partials]
        commit = self.merger.fold(entries, term=1)
        await self._commit(commit)
        for header in commit.headers:
            await self.close_update(header.id, "applied")

    async def renumber(self, version: int) -> None:
        """Begin a new life of version numbers."""
        await self._commit(self.merger.fold([], 2, version))

    async def close_update(self, update_id: UpdateId, outcome: str, reason: str = "") -> None:
        """End an update at its node."""
        await self.outboxes[update_id.node].save((CloseUpdate(update_id, outcome, reason),))

    async def _commit(self, commit: CommitVersion) -> None:
        await self.ledger.save((commit,))
        self.merger.params = commit.params
        version = commit.descriptor.version
        self.lineage.add(commit.descriptor)
        self.lineage.tally.add(version, len(commit.headers))
        if version and version % self._checkpoint_versions == 0:
            await self.ledger.save((DropPartials(version, self.lineage.oldest),))


def summed(updates: Sequence[Update], lineage: Lineage) -> PartialAggregate:
    """Return what a gateway that knows the newest version sums up of these updates."""
    sums = Accumulator()
    for update in updates:
        base = lineage.rules(update.base_version)
        frame = frame_for(base, update.base_version, lineage.current.rules, lineage.version)
        plan = lineage.plans()[update.plan_id]
        sums.add(update.header, decode_delta(update, plan), plan, base, frame)
    return sums.result()


async def write_fleet(
    folder: Path, config: Config, *, turns: int = 8, checkpoint_versions: int = 5
) -> WrittenFleet:
    """Write a fleet of as many merges, every fourth with an island's after it, and return it, closed.

    Beside what is merged, node-1 has one rejected update, node-2 one expired and two coalesced ones, and
    node-3 one that is merged but held, one in a partial that waits, and one that nobody has seen.
    """
    fleet = WrittenFleet(folder, config, checkpoint_versions)
    await fleet.begin()
    for turn in range(turns):
        await _one_turn(fleet, turn)
    await _loose_ends(fleet)
    await fleet.end()
    return fleet


async def _one_turn(fleet: WrittenFleet, turn: int) -> None:
    version = fleet.lineage.version
    bases = [max(0, version - age) for age in (0, 1, 4)]
    updates = [await fleet.update(node, base) for node, base in zip(NODES, bases, strict=True)]
    match turn % 4:
        case 0:
            await fleet.merge([await fleet.accept(updates, raw=False)])
        case 1:
            await fleet.merge([await fleet.accept(updates, raw=True)])
        case 2:
            both = [
                await fleet.accept(updates[:2], raw=False),
                await fleet.accept(updates[2:], raw=True),
            ]
            await fleet.merge(both)
        case _:
            lonely = [await fleet.update(node, first_of_term(1)) for node in NODES[:2]]
            await fleet.merge([await fleet.accept(updates, raw=False)])
            await fleet.merge([await fleet.accept_island(lonely, base=version - 1)])


async def _loose_ends(fleet: WrittenFleet) -> None:
    base = fleet.lineage.version
    rejected = await fleet.update("node-1", base)
    await fleet.close_update(rejected.id, "rejected", "norm")
    for outcome, reason in (
        ("expired", "outbox-full"),
        ("coalesced", ""),
        ("coalesced", ""),
    ):
        ended = await fleet.update("node-2", base)
        await fleet.close_update(ended.id, outcome, reason)
    await fleet.accept([await fleet.update("node-3", base)], raw=False)
    merged = await fleet.update("node-3", base)
    partial = await fleet.accept([replace(merged, base_version=base)], raw=True)
    commit = fleet.merger.fold([read_partial(partial, fleet.lineage)], term=1)
    await fleet._commit(commit)
    await fleet.update("node-3", base)
