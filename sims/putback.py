"""Two updates of one id, which a disk that is put back to an older state may cause, told apart."""

from collections.abc import Iterable

from edge_node.rows import PutUpdate
from hedgerow.core.codec import decode
from hedgerow.core.messages import Header, Update, UpdateId


class Forgotten:
    """Updates that a disk had, and has no more; the same ids may be issued again.

    `applied` are the ids under which the ledger holds what was forgotten, not what was issued again;
    `ledger` has the content's hash of each of its rows.
    """

    def __init__(self) -> None:
        self.base_versions: dict[UpdateId, int] = {}
        self.applied: set[UpdateId] = set()
        self.ledger: dict[UpdateId, int] = {}
        self._twins: dict[UpdateId, int] = {}

    def forget(self, issued: dict[UpdateId, int], gone: Iterable[UpdateId]) -> None:
        """Take updates out of what is issued."""
        for update_id in gone:
            self.base_versions[update_id] = issued.pop(update_id)
            self._twins.pop(update_id, None)

    def issue(self, row: PutUpdate) -> bool:
        """Note the content of an update whose id was issued before; True if the ledger holds just that.

        The same training from the same version gives the same update.
        """
        if row.id not in self.base_versions:
            return False
        update = decode(row.body)
        assert isinstance(update, Update)
        self._twins[row.id] = update.hash
        same = row.id in self.applied and self.ledger[row.id] == update.hash
        if same:
            self.applied.discard(row.id)
        return same

    def is_one(self, header: Header, end: str) -> bool:
        """Whether a row of the ledger is of a forgotten update; `end` is that of its twin, if it has one.

        A twin that was never offered may be dropped, although it is the same update to the bit.
        """
        known = header.id in self.base_versions
        if known and end in ("expired", "coalesced"):
            return True
        return known and self._twins.get(header.id) not in (header.hash, _UNKNOWN)


_UNKNOWN = 0
