"""The node's side of delivery: which gateway, what was offered, what became of it.

Whatever the broker says, an update stays in the outbox until its receipt is final. Ids are offered first
after every reconnect; bodies follow when they are asked for. While the gateway has no room nothing is pressed
on it.
"""

import random

from edge_node.backoff import Backoff, is_pressure
from edge_node.homing import FULL_LOAD, Homing
from edge_node.outbox_state import OutboxState
from edge_node.rows import CloseUpdate, PutUpdate
from hedgerow.core import names
from hedgerow.core.chunks import chunk_update
from hedgerow.core.effects import CancelTimer, Follow, Send, SetTimer, Unfollow
from hedgerow.core.errors import PeerError
from hedgerow.core.messages import (
    BodiesWanted,
    ChunksWanted,
    GatewayState,
    Offer,
    Receipts,
    Update,
    UpdateId,
)
from hedgerow.core.outlet import Outlet

RESEND_TIMER = "resend"
SILENCE_TIMER = "silence"
HOMING_TIMER = "homing"
_OFFER_LIMIT = 256
_SILENCE_US = 5_000_000


class Courier:
    """Delivers one node's outbox through the gateway it has chosen."""

    def __init__(
        self,
        outbox: OutboxState,
        outlet: Outlet,
        *,
        model: str,
        home: str,
        chunk_bytes: int,
        resend_us: int,
        rng: random.Random,
    ) -> None:
        self.outbox = outbox
        self.gateway = ""
        self.online = False
        self._outlet = outlet
        self._model = model
        self._homing = Homing(outbox.node, home)
        self.backoff = Backoff(rng)
        self._chunk_bytes = chunk_bytes
        self._resend_us = resend_us
        self._random = rng
        self._gateways: dict[str, GatewayState] = {}
        self._heard: set[str] = set()
        self._listening = ""
        self._latest: Update | None = None
        self._drawn_away = False

    @property
    def peer(self) -> str:
        """The chosen gateway's peer name, "" while there is none to talk to."""
        return names.gateway_peer(self.gateway) if self.gateway and self.online else ""

    def start(self) -> None:
        """Listen to the gateways."""
        self._outlet.do(Follow(names.gateway_state_channel("+")))
        self.set_timer()

    def link_up(self, now_us: int) -> None:
        """A broker is reachable (again): what was on its way may be lost.

        It may be another one than before, as a device finds that moves: gateways that are not heard on it
        within a few seconds are forgotten by `forget_silent`.
        """
        self.online = True
        self._heard.clear()
        self._outlet.do(SetTimer(SILENCE_TIMER, _SILENCE_US))
        self.outbox.lost_admissions()
        self.offer(now_us)

    def take_gateway(self, peer: str, state: GatewayState, now_us: int) -> None:
        """Take a gateway's state, and move to another one where it is better there.

        Raises PeerError for one that `peer` has no right to announce.
        """
        if peer != names.gateway_peer(state.gateway):
            raise PeerError("wrong-source", f"{peer} announced {state.gateway}")
        before = self._gateways.get(state.gateway)
        self._gateways[state.gateway] = state
        self._heard.add(state.gateway)
        if self.choose(now_us) or before is None or state.gateway != self.gateway:
            return
        if state.load >= FULL_LOAD:
            self.backoff.refused(now_us)
        elif before.load >= FULL_LOAD:
            self.backoff.eased()
        if before.boot != state.boot:
            self.outbox.lost_admissions()
            self.offer(now_us)

    def listen(self, *, wanted: bool) -> None:
        """Follow the gateway's versions, or not: who trains or rests has no use for those in between."""
        channel = names.descriptor_channel(self.gateway, self._model) if self.gateway else ""
        following = channel if wanted else ""
        if self._listening == following:
            return
        if self._listening:
            self._outlet.do(Unfollow(self._listening))
        if following:
            self._outlet.do(Follow(following))
        self._listening = following

    def forget_silent(self, now_us: int) -> None:
        """Forget gateways that this broker does not know, and move if ours is one of them."""
        if self.online:
            self._gateways = {g: s for g, s in self._gateways.items() if g in self._heard}
            self.choose(now_us)

    def choose(self, now_us: int) -> bool:
        """Move to the gateway that is best by now; True when that is another one."""
        chosen = self._homing.choose(self._gateways, now_us)
        self._watch_for_better(now_us)
        # One that is lost may come back; one that was forgotten may not.
        if chosen == self.gateway or (not chosen and self.gateway in self._gateways):
            return False
        if self.gateway:
            self._outlet.record("rehomed", before=self.gateway, now=chosen)
        self.listen(wanted=False)
        self.gateway = chosen
        self.backoff.eased()
        if chosen:
            self.outbox.lost_admissions()
            self.offer(now_us)
        return True

    def patience_ended(self, now_us: int) -> None:
        """The node has kept to its gateway for long enough."""
        self._drawn_away = False
        self.choose(now_us)

    def _watch_for_better(self, now_us: int) -> None:
        """Look again when the patience with a gateway that has become worse than others ends."""
        wait_us = self._homing.wait_us(now_us)
        if wait_us and not self._drawn_away:
            self._outlet.do(SetTimer(HOMING_TIMER, wait_us))
        elif self._drawn_away and not wait_us:
            self._outlet.do(CancelTimer(HOMING_TIMER))
        self._drawn_away = wait_us > 0

    def made(self, update: Update) -> None:
        """An update is on its way to the disk: it need not be decoded again to be sent first."""
        self._latest = update

    def deliver(self, row: PutUpdate, now_us: int) -> None:
        """Hold an update that has just become durable; send it at once if there is a gateway with room."""
        self.outbox.put(row.id, row.body)
        self._outlet.record("update_issued", seq=row.id.seq, bytes=len(row.body))
        if self.backoff.pause_us(now_us) == 0:
            self._send_body(row.id)

    def send_wanted(self, wanted: BodiesWanted | ChunksWanted) -> list[CloseUpdate]:
        """Send what a gateway asked for, as far as it is held; return the rows of what ends by that.

        An update whose body the disk has damaged is held until somebody wants it: it may be settled already.
        """
        only = set(wanted.missing) if isinstance(wanted, ChunksWanted) else None
        ids = [wanted.id] if isinstance(wanted, ChunksWanted) else wanted.ids
        # One that is named twice must not end twice.
        held = [i for i in dict.fromkeys(ids) if self.outbox.body(i) is not None]
        if not self.peer:
            return []
        lost = [update_id for update_id in held if not self._send_body(update_id, only)]
        return [self._ended(self.outbox.close(i, "rejected", "damaged")) for i in lost]

    def _send_body(self, update_id: UpdateId, only: set[int] | None = None) -> bool:
        """Send a held update's chunks, or only those numbered in `only`; False where the body is damaged."""
        body = self.outbox.body(update_id)
        if body is None or not self.peer:
            return True
        update = self._latest
        if update is None or update.id != update_id:
            update = self.outbox.update(update_id)
        if update is None:
            return False
        self.outbox.mark_offered(update_id)
        for chunk in chunk_update(update, body, self._chunk_bytes):
            if only is None or chunk.index in only:
                self._outlet.do(Send(self.peer, chunk))
        return True

    def offer(self, now_us: int) -> None:
        """Name what is held; the gateway answers with receipts and asks for what it lacks."""
        if not self.peer or self.backoff.pause_us(now_us) > 0:
            return
        ids = self.outbox.to_offer(_OFFER_LIMIT)
        if not ids:
            return
        for update_id in ids:
            self.outbox.mark_offered(update_id)
        self._outlet.do(Send(self.peer, Offer(ids=ids, hashes=self.outbox.hashes(ids))))

    def set_timer(self) -> None:
        """Set the time of the next offer; jittered, or a fleet would offer in step."""
        jittered_us = round(self._resend_us * self._random.uniform(0.75, 1.25))
        self._outlet.do(SetTimer(RESEND_TIMER, jittered_us))

    def take_receipts(self, message: Receipts, now_us: int) -> list[CloseUpdate]:
        """Take receipts; return the rows of the updates that ended by them."""
        rows = []
        for receipt in message.receipts:
            held = self.outbox.body(receipt.id) is not None
            row = self.outbox.take_receipt(receipt)
            if row is not None:
                rows.append(self._ended(row))
            if held and is_pressure(receipt):
                self.backoff.refused(now_us)
                self._outlet.record("held_back", reason=receipt.reason or "busy")
            elif held and receipt.status in ("settled", "admitted"):
                self.backoff.eased()
        return rows

    def _ended(self, row: CloseUpdate) -> CloseUpdate:
        self._outlet.record(f"update_{row.outcome}", seq=row.id.seq, reason=row.reason)
        return row
