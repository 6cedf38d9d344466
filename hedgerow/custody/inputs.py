"""Merge inputs against the ledger's rows of their versions, and against themselves."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
from msgspec.structs import replace

from hedgerow.core.messages import Header, Partial, UpdateId
from hedgerow.core.planbook import header_of
from hedgerow.custody.books import LedgerBook
from hedgerow.custody.formulas import ONE, Books, UnfitError, weights
from hedgerow.custody.law import name_of


def ledger_problems(ledger: LedgerBook) -> Iterator[str]:
    """Yield where merge inputs disagree with the ledger's rows, or within themselves."""
    rows: dict[int, dict[UpdateId, Header]] = {version: {} for version in ledger.merged}
    for update_id, settled in ledger.rows.items():
        if settled.version in rows:
            rows[settled.version][update_id] = settled.header
        if settled.version > max(ledger.descriptors, default=-1):
            yield f"{name_of(update_id)} was merged into version {settled.version}, which is not there"
    for version, partials in sorted(ledger.merged.items()):
        headers = {header.id: header for partial in partials for header in partial.headers}
        for update_id in sorted(headers.keys() | rows[version].keys()):
            mine, theirs = rows[version].get(update_id), headers.get(update_id)
            if mine is None or theirs is None:
                where = "the ledger" if mine is None else "its inputs"
                yield f"version {version}: {name_of(update_id)} is missing in {where}"
            elif not _same_header(mine, theirs):
                yield f"version {version}: ledger and inputs differ on {name_of(update_id)}"
    books = Books(ledger.descriptors)
    for partial in (*ledger.waiting, *(p for ps in ledger.merged.values() for p in ps)):
        yield from _partial_problems(partial, books)


def _same_header(row: Header, header: Header) -> bool:
    """Whether the ledger's row says what the input's header does; the ledger keeps no plan."""
    both = row.hash and header.hash
    mine, theirs = (replace(one, plan_id="", hash=0, kappa=0.0) for one in (row, header))
    kappas = np.array([row.kappa, header.kappa])
    same_kappa = bool(kappas[0] == kappas[1] or np.isnan(kappas).all())
    return mine == theirs and same_kappa and (not both or row.hash == header.hash)


def _partial_problems(partial: Partial, books: Books) -> Iterator[str]:
    """Yield where a partial's own headers do not give its sums or are not those of its updates."""
    try:
        if partial.sums:
            yield from _sum_problems(partial, books)
        elif partial.updates:
            yield from _update_problems(partial, books)
    except UnfitError as error:
        yield f"partial {partial.id}: {error}"


def _sum_problems(partial: Partial, books: Books) -> Iterator[str]:
    expected: Counter[tuple[object, ...]] = Counter()
    for header in partial.headers:
        frame = books.frame(header, partial.at_version)
        base = books.rules(header.base_version)
        plan = header.plan_id or books.descriptor(header.base_version).plan_id
        told = dict(
            zip(("weight", "decayed", "examples"), weights(header, base, frame), strict=True)
        )
        for name, value in told.items():
            expected[plan, frame.version, frame.gamma, name] += round(value * ONE)
        expected[plan, frame.version, frame.gamma, "count"] += 1
    for sums in partial.sums:
        key = (sums.plan_id, sums.ref_version, sums.gamma)
        stated = {"weight": sums.weight, "decayed": sums.decayed, "examples": sums.examples}
        worst = max(abs(expected.pop((*key, name), 0) - n) for name, n in stated.items())
        # Another processor's pow may round the last bit otherwise.
        if worst > sums.count or expected.pop((*key, "count"), 0) != sums.count:
            yield f"partial {partial.id}: its sums are not those of its headers"
    if expected:
        yield f"partial {partial.id}: its headers name updates of a bucket that it lacks"


def _update_problems(partial: Partial, books: Books) -> Iterator[str]:
    of_update = {update.id: update for update in partial.updates}
    if len(of_update) != len(partial.headers):
        yield f"partial {partial.id}: {len(partial.headers)} headers for {len(of_update)} updates"
    for header in partial.headers:
        update = of_update.get(header.id)
        if update is None or not _is_of(
            header, header_of(update, books.descriptor(update.base_version))
        ):
            yield f"partial {partial.id}: the header of {name_of(header.id)} is not its update's"


def _is_of(header: Header, real: Header) -> bool:
    known = header.hash in (0, real.hash)
    plain = [replace(one, plan_id="", hash=0) for one in (header, real)]
    kappas = all(np.isnan(one.kappa) for one in plain) or plain[0].kappa == plain[1].kappa
    mine, theirs = (replace(one, kappa=0.0) for one in plain)
    return bool(known and kappas and mine == theirs and header.plan_id in ("", real.plan_id))
