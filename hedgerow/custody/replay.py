"""C4: every version since the checkpoint, made again from what was merged into it."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from hedgerow.core.errors import PeerError
from hedgerow.core.messages import Descriptor
from hedgerow.core.units import Vector, digest, unit_bytes
from hedgerow.custody.books import LedgerBook
from hedgerow.custody.folders import MODEL_SUFFIX, MODELS
from hedgerow.custody.formulas import Books, UnfitError, manifest_of, step
from hedgerow.custody.inputs import ledger_problems
from hedgerow.custody.law import Violation

_KEPT_VERSIONS = 3
"""How many of the newest versions keep their parameters; an older one that does is the checkpoint."""


@dataclass
class Replay:
    """What came of it: versions `first` to `last` were made anew, `violations` say where they differ.

    `unchecked` says why nothing could be, "" where something was.
    """

    first: int = 0
    last: int = 0
    replayed: int = 0
    unchecked: str = ""
    violations: list[Violation] = field(default_factory=list)


class _Models:
    """The parameter files that are there; what is damaged is a violation."""

    def __init__(self, ledger: LedgerBook) -> None:
        self._ledger = ledger
        self.damaged: list[str] = []
        folder = ledger.folder / MODELS
        self.there = [
            version
            for version, file in ledger.files.items()
            if (folder / f"{file}{MODEL_SUFFIX}").exists()
        ]

    def params(self, version: int) -> Vector | None:
        """Return a version's stored parameters, shape (P,); None where there are none or they are damaged."""
        if version not in self.there:
            return None
        name = self._ledger.files[version]
        path = self._ledger.folder / MODELS / f"{name}{MODEL_SUFFIX}"
        try:
            data = path.read_bytes()
            if digest(data) != name:
                raise ValueError("its content is not what its name says")
            return manifest_of(self._ledger.descriptors[version]).join(load(data))
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            self.damaged.append(f"{path.name} of version {version} is damaged: {error}")
            return None


def replay(ledger: LedgerBook, *, everything: bool = False) -> Replay:
    """Make every version again from the checkpoint on, or from version 0 with `everything`.

    Each must have the digests that its descriptor publishes, and its stored parameters bit by bit.
    """
    out = Replay()
    out.violations += [Violation("C4", text) for text in ledger.damaged]
    out.violations += [Violation("C4", text) for text in ledger_problems(ledger)]
    if any(descriptor.individual for descriptor in ledger.descriptors.values()):
        out.unchecked = "the strategy takes updates one by one and keeps a state of its own"
        return out
    models = _Models(ledger)
    start = _start(ledger, models.there)
    if start is None:
        out.violations.append(Violation("C4", "no version's parameters are there to begin from"))
        return out
    out.first = out.last = start
    settled = Counter(row.version for row in ledger.rows.values())
    books = Books(ledger.descriptors, settled)
    out.violations += [Violation("C4", text) for text in _forgotten_inputs(ledger, start)]
    out.violations += [Violation("C4", text) for text in _replayed(ledger, models, books, out)]
    out.violations += [Violation("C4", text) for text in models.damaged]
    if everything and start != min(ledger.descriptors):
        text = (
            f"inputs are kept from version {start} on only, so not every version can be made again"
        )
        out.violations.append(Violation("C4", text))
    return out


def _start(ledger: LedgerBook, there: list[int]) -> int | None:
    """Return the version to begin from: the one before the oldest whose inputs are kept."""
    if not there:
        return None
    with_inputs = min(ledger.merged, default=None)
    if with_inputs is None:
        return max(there)
    before = [version for version in there if version < with_inputs]
    return max(before, default=min(there))


def _forgotten_inputs(ledger: LedgerBook, start: int) -> Iterator[str]:
    """Yield versions whose inputs should still be there: those after the checkpoint."""
    newest_of_file = {file: version for version, file in sorted(ledger.files.items())}
    kept = {v for v in newest_of_file.values() if v <= start}
    last = sorted(ledger.descriptors)[-_KEPT_VERSIONS:]
    folder = ledger.folder / MODELS
    for version in sorted(kept):
        there = (folder / f"{ledger.files[version]}{MODEL_SUFFIX}").exists()
        if there and version < start and version < last[0]:
            yield f"the inputs of the versions after {version}, the checkpoint, are missing up to {start}"
            return


def _replayed(ledger: LedgerBook, models: _Models, books: Books, out: Replay) -> Iterator[str]:
    params = models.params(out.first)
    if params is None:
        return
    yield from _compare(ledger.descriptors[out.first], params, None)
    rows = Counter(row.version for row in ledger.rows.values())
    for version in sorted(v for v in ledger.descriptors if v > out.first):
        descriptor, inputs = ledger.descriptors[version], ledger.merged.get(version, [])
        parent = ledger.descriptors.get(descriptor.parent)
        if parent is None or descriptor.parent != out.last:
            yield f"version {version} follows {descriptor.parent}, but {out.last} is before it"
            return
        if not inputs and rows[version]:
            yield f"version {version} settled {rows[version]} updates, but its inputs are missing"
            return
        try:
            params = step(params, inputs, parent, books)
        except (UnfitError, PeerError) as error:
            yield f"version {version} cannot be made again: {error}"
            return
        out.last, out.replayed = version, out.replayed + 1
        stored = models.params(version)
        problems = list(_compare(descriptor, params, stored))
        yield from problems
        if problems and stored is None:
            return
        # So that one false version is told once, and not with all that follow it.
        params = params if stored is None else stored


def _compare(descriptor: Descriptor, params: Vector, stored: Vector | None) -> Iterator[str]:
    manifest, version = manifest_of(descriptor), descriptor.version
    wrong = [
        name
        for name, where in manifest.slices.items()
        if digest(unit_bytes(params[where], descriptor.downlink)) != descriptor.units[name].digest
    ]
    if wrong:
        yield f"version {version}: the replay of {', '.join(wrong[:3])} is not what was published"
    if stored is not None and params.tobytes() != stored.tobytes():
        count = int(np.count_nonzero(params.view(np.uint32) != stored.view(np.uint32)))
        yield f"version {version}: {count} of {params.size} stored values are not those of the replay"
