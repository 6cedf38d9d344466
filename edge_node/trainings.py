"""A node's trainings, one at a time: from a version to an update on its way to the disk."""

from edge_node.closing import Closing
from edge_node.courier import Courier
from edge_node.jobs import Jobs
from edge_node.personal import PersonalUnits
from edge_node.presence import Presence
from edge_node.replica import Replica
from edge_node.room import Room
from edge_node.rows import PutUpdate
from edge_node.turns import Turns
from edge_node.work import Packer, Work
from hedgerow.core.codec import encode
from hedgerow.core.effects import JobFailed, Trained
from hedgerow.core.outlet import Outlet


class Trainings:
    """The training under way, if any. `seed` is the fleet's."""

    def __init__(
        self,
        outlet: Outlet,
        *,
        seed: int,
        replica: Replica,
        jobs: Jobs,
        turns: Turns,
        packer: Packer,
        personal: PersonalUnits,
        room: Room,
        closing: Closing,
        courier: Courier,
        presence: Presence,
    ) -> None:
        self._replica = replica
        self._jobs = jobs
        self._turns = turns
        self._packer = packer
        self._personal = personal
        self._room = room
        self._closing = closing
        self._courier = courier
        self._presence = presence
        self._outlet = outlet
        self._seed = seed
        self._work: Work | None = None
        self._result: Trained | None = None

    @property
    def busy(self) -> bool:
        """Whether a training is under way, or its update still has no id."""
        return self._work is not None

    @property
    def ended(self) -> bool:
        """Whether a training has ended, and its update has no id yet."""
        return self._result is not None

    def next(self, now_us: int) -> Work:
        """Return the training that would begin now from the replica's version."""
        base, outbox = self._replica.descriptor, self._courier.outbox
        assert base is not None
        # The number makes trainings from one version differ, over restarts and reconnections too.
        seed_text = f"{self._seed}:{outbox.node}:{base.version}:{outbox.numbered + 1}"
        return self._jobs.next(self._outlet.next_job(), base, seed_text, now_us)

    def begin(self, now_us: int) -> None:
        """Make room for an update, then train."""
        self._room.make()
        self._work = self.next(now_us)
        self._outlet.do(self._work.job)
        self._presence.began()
        self._courier.listen(wanted=False)

    def take(self, result: Trained, now_us: int) -> None:
        """Take the result of the training; `finish` makes an update of it."""
        work = self._work
        assert work is not None
        took_us = now_us - work.since_us
        self._presence.trained(took_us, result.peak_bytes)
        self._jobs.budget.learn(took_us, result.steps)
        loss = round(result.loss_last, 4)
        self._outlet.record("trained", base=work.base.version, loss=loss, took_us=took_us)
        self._result = result

    def finish(self, now_us: int) -> None:
        """Save the update of the training that has ended."""
        work, result = self._work, self._result
        assert work is not None
        assert result is not None
        self._work = self._result = None
        own = self._personal.trained(work, result.delta)
        self._turns.finished(work, work.shared_part(result.delta), self._replica.version, now_us)
        update = self._packer.update(work, result, self._courier.outbox.next_id())
        self._courier.made(update)
        self._closing.save(*own, PutUpdate(update.id, work.base.version, encode(update)))

    def failed(self, failed: JobFailed, now_us: int) -> None:
        """The training ended in nothing."""
        self._jobs.failed(self._work)
        self._work = None
        self._turns.failed(now_us)
        self._outlet.record("training_failed", reason="compute", detail=failed.detail)
        self._presence.state = "ready"
