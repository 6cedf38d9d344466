"""When a node takes a new epoch: no id is issued twice, not even by a disk put back to an older state.

A node that starts from its disk does not know whether the disk is an older copy of itself. What it said of
itself last is retained by the broker: if that tells of more than the disk does, the epoch is not its own any
more. A node that is offline cannot ask and goes on; two updates of one id are then told apart by their
hashes, and the receipt says "fork".
"""

import random
from collections.abc import Iterable

from edge_node.backoff import FORK
from edge_node.closing import Closing
from edge_node.outbox_state import OutboxState
from edge_node.rows import Books, CloseUpdate, NewEpoch
from hedgerow.core import names
from hedgerow.core.effects import CancelTimer, Follow, SetTimer, Unfollow
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import NodeState, Receipt
from hedgerow.core.outlet import Outlet

CERTAINTY_TIMER = "certainty"
_CERTAINTY_US = 2_000_000
ISSUED_BEFORE = "issued_before"
"""The counter in a last will: how many updates the node had issued when it started.

A will is written before the life that it ends, so it cannot tell of more.
"""


def last_will(books: Books) -> NodeState:
    """Return what the broker is to say of a node when it dies."""
    issued = sum(book.issued for book in books.epochs)
    return NodeState(
        node=books.node, epoch=books.epoch, state="lost", counters={ISSUED_BEFORE: issued}
    )


class Epochs:
    """One node's epochs. `certain` says that the current one is this disk's alone, as far as can be known."""

    def __init__(self, books: Books, outbox: OutboxState, closing: Closing, outlet: Outlet) -> None:
        self.certain = not books.found
        self._channel = names.node_state_channel(books.node)
        self._outbox = outbox
        self._closing = closing
        self._outlet = outlet
        self._ended = books.ended
        self._found = sum(book.issued for book in books.epochs)
        self._fresh = books.fresh_epoch
        self._random = random.Random(books.fresh_epoch)

    def start(self) -> None:
        """Ask for what this node said last, unless its epoch is new."""
        if self._ended:
            self._outlet.record("new_epoch", reason=self._ended, epoch=self._outbox.epoch)
        if not self.certain:
            self._outlet.do(Follow(self._channel))

    def link_up(self) -> None:
        """From now on an answer may come; a node that never said anything gets none."""
        if not self.certain:
            self._outlet.do(SetTimer(CERTAINTY_TIMER, _CERTAINTY_US))

    def awaited(self, *, online: bool) -> bool:
        """Whether the next update must wait until the epoch is certain."""
        return online and not self.certain

    def take_state(self, peer: str, state: NodeState) -> None:
        """Take what this node said of itself in an earlier life, or its last will.

        In this life it says nothing before it is certain, so all it can hear is of an earlier one. Raises
        PeerError for another node's.
        """
        if peer != names.node_peer(self._outbox.node) or state.node != self._outbox.node:
            raise PeerError("wrong-source", f"{peer} announced {state.node}")
        if self.certain:
            return
        told = max(state.counters.get("issued", 0), state.counters.get(ISSUED_BEFORE, 0))
        if state.epoch not in self._outbox.known_epochs or told > self._found:
            self._outlet.record("restored_disk", epoch=state.epoch, told=told, found=self._found)
            self._renew("restored-disk")
        else:
            self._be_certain()

    def give_up(self, *, online: bool) -> None:
        """No answer came; offline none could, and the next link asks again."""
        if online and not self.certain:
            self._be_certain()

    def take_receipts(self, receipts: Iterable[Receipt]) -> None:
        """Take what is said of held updates: where another one has its id, the epoch is another one's, too.

        "busy" does not end the update; the ledger has yet to take one of the two.
        """
        doubts = [receipt for receipt in receipts if receipt.status == "busy"]
        forked = [receipt.id for receipt in doubts if receipt.reason == FORK]
        held = [update_id for update_id in forked if self._outbox.body(update_id) is not None]
        if any(update_id.epoch == self._outbox.epoch for update_id in held):
            self._renew(FORK)

    def take_ends(self, rows: Iterable[CloseUpdate]) -> None:
        """Updates have ended, some of them because another one of their id did."""
        forked = [row for row in rows if row.reason == FORK and row.outcome == "rejected"]
        if any(row.id.epoch == self._outbox.epoch for row in forked):
            self._renew(FORK)

    def _renew(self, reason: str) -> None:
        epoch = self._fresh
        self._fresh = self._random.getrandbits(48)
        self._outbox.take_epoch(epoch)
        self._outlet.record("new_epoch", reason=reason, epoch=epoch)
        self._closing.save(NewEpoch(epoch, reason))
        if not self.certain:
            self._be_certain()

    def _be_certain(self) -> None:
        self.certain = True
        self._outlet.do(CancelTimer(CERTAINTY_TIMER))
        self._outlet.do(Unfollow(self._channel))
