"""What a version asks this node to train, as a job."""

import zlib

from edge_node.personal import PersonalUnits
from edge_node.replica import Replica
from edge_node.timebudget import TimeBudget
from edge_node.turns import Turns
from edge_node.work import Work
from hedgerow.core.config import NodeConfig
from hedgerow.core.costs import FLOAT_BYTES
from hedgerow.core.effects import Train
from hedgerow.core.encodings import FED_BACK, choose_encoding
from hedgerow.core.messages import Descriptor
from hedgerow.core.plan import Plan, moved
from hedgerow.core.planbook import plan_of_class
from hedgerow.core.rules import LocalTraining


class Jobs:
    """Makes trainings of this node's memory class from the replica's version."""

    def __init__(
        self, replica: Replica, config: NodeConfig, turns: Turns, personal: PersonalUnits
    ) -> None:
        self.budget = TimeBudget()
        self._replica = replica
        self._config = config
        self._turns = turns
        self._personal = personal
        self._over_budget = ""

    def next(self, job: int, base: Descriptor, seed_text: str, now_us: int) -> Work:
        """Return the training that begins now from `base`, which is the replica's version.

        `seed_text` makes trainings differ: from node to node, and from one to the next.
        """
        plan_id, local = plan_of_class(base, self._config.memory_class)
        plan, params = self._replica.plan(plan_id), self._replica.params
        assert params is not None
        trained = plan.joined(base.personal)
        offset = self._turns.offset(plan)
        train = Train(
            job=job,
            plan=trained,
            params=self._personal.laid_over(params, base, plan.manifest),
            passes=local.passes,
            batch_size=local.batch_size,
            learning_rate=local.learning_rate,
            seed=zlib.crc32(seed_text.encode()),
            offset=None if offset is None else moved(offset, plan, trained),
            proximal=local.proximal,
            max_steps=self.budget.max_steps(local.time_budget_us),
            memory_bytes=self._memory_bytes(base, plan, local),
        )
        return Work(train, base, now_us, plan)

    def failed(self, work: Work | None) -> None:
        """A training failed: the next one of its plan is not held to the plan's budget any more.

        For that the plan was searched by a model of memory, which may be a little off, and a node that never
        trains is no use. A bound of the node's own is kept whatever happens.
        """
        if work is not None:
            self._over_budget = work.plan.plan_id

    def _memory_bytes(self, base: Descriptor, plan: Plan, local: LocalTraining) -> int:
        """Return the node's own bound or else the plan's budget, less the room for what updates leave out."""
        own = self._config.memory_bytes
        bound = own if own or plan.plan_id == self._over_budget else local.memory_bytes
        encoding, _ = choose_encoding(plan, base.encoding, self._config.max_update_bytes)
        kept = FLOAT_BYTES * plan.size if encoding in FED_BACK else 0
        return max(1, bound - kept) if bound else 0
