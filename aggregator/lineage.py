"""The versions of the model: parameters, descriptors, and the rules that each was published with."""

from collections.abc import Mapping

from msgspec.structs import replace

from aggregator.rows import Snapshot
from aggregator.rulebook import Rulebook
from aggregator.tally import Tally
from hedgerow.core.config import Config, LocalTrainingConfig, TrainingConfig
from hedgerow.core.downlink import Downlink, downlink_for
from hedgerow.core.errors import PeerError
from hedgerow.core.inline import inline_of
from hedgerow.core.merge import MergeContext
from hedgerow.core.messages import Descriptor, UnitVersion
from hedgerow.core.plan import Plan, personal_units
from hedgerow.core.planbook import PlanBook, PlanSet, plan_set
from hedgerow.core.rules import LocalTraining, ProbeRequest, Rules
from hedgerow.core.units import Manifest, Vector

_LEDGER_TAIL = 256


class Lineage:
    """The current version and the former ones that an update may still come from.

    The next version has nodes train `planned`. `plan_since` is the version that the newest one's plan came
    with, as far back as versions are known. Raises ConfigError as its `rulebook` does.
    """

    def __init__(self, config: Config, plans: Plan | PlanSet, *, individual: bool = False) -> None:
        self.planned = plans if isinstance(plans, PlanSet) else PlanSet(plans)
        self.manifest = self.planned.widest.manifest
        self._personal = personal_units(self.manifest, config.plan.personal)
        self.plan_since = 0
        self.rulebook = Rulebook(config)
        self.tally = Tally()
        self._config = config
        self.individual = individual
        self._descriptors: dict[int, Descriptor] = {}
        self._book = PlanBook()

    @property
    def current(self) -> Descriptor:
        """The newest version's descriptor."""
        return next(reversed(self._descriptors.values()))

    @property
    def version(self) -> int:
        """The newest version."""
        return self.current.version

    @property
    def oldest(self) -> int:
        """The oldest version an update may still come from or wait with."""
        return next(iter(self._descriptors))

    def knows(self, version: int) -> bool:
        """Whether an update of this version can be summed and weighed."""
        return version in self._descriptors

    def is_lost(self, version: int) -> bool:
        """Whether a version was published once, but this ledger was put back to one before it."""
        return any(d.parent < version < d.version for d in self._descriptors.values())

    def since(self, after: int) -> list[Descriptor]:
        """Return the descriptors from version `after` on, oldest first, and always the newest.

        Who knows nothing asks for what comes after 0, so `after` itself is included.
        """
        newer = [d for d in self._descriptors.values() if d.version >= after]
        return newer or [self.current]

    def rules(self, version: int) -> Rules:
        """Return a version's rules. Raises PeerError when it is too old or does not exist."""
        return self.descriptor(version).rules

    def descriptor(self, version: int) -> Descriptor:
        """Return a version's descriptor. Raises PeerError when it is too old or does not exist."""
        found = self._descriptors.get(version)
        if found is None:
            text = f"version {version}, now {self.version}"
            future = version > self.version
            raise PeerError("future-version" if future else "unknown-version", text)
        return found

    def plans(self) -> Mapping[str, Plan]:
        """Return the plans of the known versions by id."""
        return self._book.plans

    @property
    def plan(self) -> Plan:
        """The newest version's plan, the widest that any node trains."""
        return self._book.plans[self.current.plan_id]

    def add(self, descriptor: Descriptor, needed_from: int | None = None) -> None:
        """Add the next version, or one found at the start, and forget those no update may come from.

        `needed_from` is the oldest base version of an update that still waits for its merge.
        """
        plans = self._book.read(descriptor, self.manifest)
        if not self._descriptors or self.current.plan_id != descriptor.plan_id:
            self.plan_since = descriptor.version
        self._descriptors[descriptor.version] = descriptor
        oldest = descriptor.version - descriptor.rules.staleness.tau_max
        if needed_from is not None:
            oldest = min(oldest, needed_from)
        self._descriptors = {v: d for v, d in self._descriptors.items() if v >= oldest}
        self._book.take(plans, self._descriptors.values())

    def restore(self, snapshot: Snapshot) -> None:
        """Take up what is on disk: the versions, a searched plan, and what the last updates taught."""
        for descriptor in snapshot.descriptors:
            self.add(descriptor, needed_from=snapshot.descriptors[0].version)
        # Under a new configuration a unit that was shared may be personal: then the plan begins anew.
        still_shared = set(self._personal).isdisjoint(self.current.plan)
        if self._config.plan.budget_bytes and still_shared:
            self.planned = plan_set(self.current, self._book.plans)
        self.tally = Tally.of(snapshot.ledger)
        for row in snapshot.ledger[-_LEDGER_TAIL:]:
            self.rulebook.observe([row.header], row.version - 1)

    def reopen(
        self,
        term: int,
        *,
        training_open: bool,
        sample: list[str] | None = None,
        probe: ProbeRequest | None = None,
    ) -> Descriptor:
        """Publish the newest version anew under this term, open for training (by the sample) or closed.

        Its plan stays: a version has one, so that an update names all that must be known of it.
        """
        renewed = replace(
            self.current,
            term=term,
            training_open=training_open,
            sample=sample,
            individual=self.individual,
            probe=probe,
        )
        self._descriptors[renewed.version] = renewed
        return renewed

    def first(self, params: Vector, term: int) -> Descriptor:
        """Return the descriptor of version 0."""
        return self._describe(0, 0, term, {}, params)

    def next(self, params: Vector, term: int, version: int | None = None) -> Descriptor:
        """Return the descriptor of the version after the current one, whose parameters are `params`.

        Its number is the next one, or `version`.
        """
        parent = self.current
        number = parent.version + 1 if version is None else version
        return self._describe(number, parent.version, term, parent.units, params)

    def context(self) -> MergeContext:
        """Return what the merge into the next version needs."""
        rules = self.current.rules
        return MergeContext(
            manifest=self.manifest,
            version=self.version,
            law=rules.staleness,
            plans=self._book.plans,
            rules=self.rules,
            learning_rate=rules.server_learning_rate,
        )

    def _describe(
        self,
        version: int,
        parent: int,
        term: int,
        before: Mapping[str, UnitVersion],
        params: Vector,
    ) -> Descriptor:
        """Describe `params`, shape (P,), as a version; `before` are its parent's units."""
        training = self._config.training
        downlink = downlink_for(params, training.downlink)
        widest = self.planned.widest
        local = {
            name: self._local(name, training.memory_classes.get(name, training), budget_bytes)
            for name, budget_bytes in self._config.memory_budgets.items()
        }
        return Descriptor(
            model=self._config.fleet.model,
            version=version,
            parent=parent,
            term=term,
            plan_id=widest.plan_id,
            plan=list(widest.names),
            units=_units(self.manifest, version, before, params, downlink),
            rules=self.rulebook.rules(),
            training=local,
            encoding=training.encoding,
            downlink=downlink,
            deadline_us=round(self._config.aggregation.deadline_s * 1_000_000),
            individual=self.individual,
            inline=inline_of(params, widest, downlink),
            nested={i: list(plan.names) for i, plan in self.planned.nested.items()},
            personal=list(self._personal),
        )

    def _local(
        self, memory_class: str, settings: TrainingConfig | LocalTrainingConfig, budget_bytes: int
    ) -> LocalTraining:
        return LocalTraining(
            passes=settings.passes,
            batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            proximal=settings.proximal,
            plan_id=_plan_id_of(self.planned, memory_class),
            time_budget_us=round(settings.time_budget_s * 1_000_000),
            memory_bytes=budget_bytes,
        )


def _plan_id_of(planned: PlanSet, memory_class: str) -> str:
    """Return a class's plan as a descriptor names it: "" for the widest."""
    plan_id = planned.of_class(memory_class).plan_id
    return "" if plan_id == planned.widest.plan_id else plan_id


def _units(
    manifest: Manifest,
    version: int,
    before: Mapping[str, UnitVersion],
    params: Vector,
    downlink: Downlink,
) -> dict[str, UnitVersion]:
    """Return the units as published: those that have not changed as they were."""
    return {
        name: before[name]
        if name in before and digest == before[name].digest
        else UnitVersion(digest, version, list(manifest.by_name[name].shape))
        for name, digest in manifest.digests(params, downlink).items()
    }
