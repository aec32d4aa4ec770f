"""Measuring the arms of one world: each once, with what an earlier call left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from qarat.ground.disk import hash_json
from qarat.ground.runtime import Progress
from qarat.jobs.bench import plan_meter
from qarat.jobs.folder import Run
from qarat.jobs.spike_study.arms import PlannedArm
from qarat.jobs.spike_study.worlds import World
from qarat.model.prefixes import check_prefix, prefix_of
from qarat.stages.choose.trials import TrialLog, plan_key
from qarat.stages.measure.meter import prefix_order
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan
from qarat.values.records.scores import Evaluation, Failure
from qarat.values.records.spike_study import SpikeArm
from qarat.values.schemes import FLOAT

TOGETHER = 6
"""Plans measured in one walk: so many are lost at the most when a study is killed."""


class WorldMeter:
    """Measures the arms of one world, each once, with what an earlier call left in the run's folder."""

    def __init__(self, run: Run, world: World) -> None:
        """Read the log; the model is not run yet.

        Args:
            run: Whose folder holds the log.
            world: What the arms are measured in.

        Raises:
            UserError: Report windows that do not begin with the world's prefix, or a prefix that it cannot have.
        """
        model, report = world.model, world.report
        check_prefix(report, world.stats.prefix)
        self._world = world
        origin = model.provenance(report.fingerprint, report.convention)
        belongs_to = {"provenance": msgspec.to_builtins(origin), "stats": world.digest}
        # The name says to what the log belongs, so that a study asked otherwise finds what it shares with this one.
        log = TrialLog(run.path(f"arms-{hash_json(belongs_to)[:12]}.jsonl"), belongs_to)
        prefix = prefix_of(model, world.plan(FLOAT))
        self._meter = plan_meter(model, report, world.stats, log, prefix=prefix, calibration=world.calibration)

    def float_loss(self) -> Evaluation:
        """The float model's loss.

        Raises:
            UserError: It is no number.
        """
        return self._meter.loss(self._world.plan(FLOAT).in_float())

    def measure(
        self, wanted: Sequence[PlannedArm], notes: Mapping[str, str], progress: Progress
    ) -> Iterator[list[SpikeArm]]:
        """The arms known so far: before anything is measured, and again after every group.

        Args:
            wanted: Of this world; what is known is not measured again.
            notes: By name.
            progress: Called with the plans done.
        """
        meter = self._meter
        arms = [(arm, self._plan(arm)) for arm in wanted]
        missing = list({plan_key(plan): plan for _, plan in arms if not meter.knows(plan)}.values())
        missing = [missing[i] for i in prefix_order(missing)]
        measured: dict[str, SpikeArm] = {}
        for first in range(0, len(missing) + TOGETHER, TOGETHER):
            new = [(arm, plan) for arm, plan in arms if arm.name not in measured and meter.knows(plan)]
            measured |= {arm.name: self._arm(arm, plan, notes.get(arm.name, "")) for arm, plan in new}
            yield list(measured.values())
            progress(f"arms: {self._world.name}", min(first, len(missing)), len(missing))
            meter.losses(missing[first : first + TOGETHER])

    def _plan(self, arm: PlannedArm) -> Plan:
        changes = dict.fromkeys(arm.protected, parse_scheme(arm.protection))
        return self._world.plan(arm.scheme).with_schemes(changes, "protected")

    def _arm(self, wanted: PlannedArm, plan: Plan, note: str) -> SpikeArm:
        (outcome,) = self._meter.losses([plan])
        nats, failure = ((), outcome.error) if isinstance(outcome, Failure) else (outcome.nats, "")
        sizes = {s.name: s.parameters for s in plan.sites}
        share = sum(sizes[name] for name in wanted.protected) / sum(sizes.values())
        world = self._world
        return SpikeArm(
            wanted.group, wanted.label, wanted.setting, wanted.scheme, wanted.protected, wanted.protection,
            world.transforms, len(world.stats.prefix), world.tokens, share, plan.bits_per_weight(),
            nats, failure, note,
        )  # fmt: skip
