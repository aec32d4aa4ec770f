"""Measuring arms, world by world; every answer is on disk before the next question."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from qarat.ground.disk import hash_json
from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.jobs.bench import make_meter
from qarat.jobs.folder import Run
from qarat.jobs.spike_study.arms import Asked
from qarat.jobs.spike_study.worlds import World
from qarat.model.prefixes import check_prefix, prefix_of
from qarat.stages.choose.trials import Answer, TrialLog
from qarat.stages.measure.meter import Failure, Meter, prefix_order
from qarat.values.plans import Plan
from qarat.values.records.files import content_hash
from qarat.values.records.spike_study import SpikeArm
from qarat.values.schemes import FLOAT, LinearScheme, parse_scheme

TOGETHER = 6
"""Plans measured in one walk: so many are lost at the most when a study is killed."""


class _Question(NamedTuple):
    plan: Plan
    key: str


class WorldMeter:
    """Measures the arms of one world, each once, with what an earlier call left in the run's folder."""

    def __init__(self, run: Run, world: World) -> None:
        """Read the log; the model is not run yet.

        Args:
            run: Whose folder holds the log.
            world: What the arms are measured in.

        Raises:
            UserError: Report windows that do not begin with the world's prefix.
        """
        check_prefix(world.report, world.stats.prefix)
        self._world, self._stats = world, content_hash(world.stats)
        origin = world.model.provenance(world.report.fingerprint, world.report.convention)
        belongs_to = {"provenance": msgspec.to_builtins(origin), "stats": self._stats}
        # The name says to what the log belongs, so that a study asked otherwise finds what it shares with this one.
        self._log = TrialLog(run.path(f"arms-{hash_json(belongs_to)[:12]}.jsonl"), belongs_to)
        self._meter: Meter | None = None

    def float_nats(self) -> tuple[float, ...]:
        """The float model's loss of every window.

        Raises:
            UserError: It is no number.
        """
        question = self._question(FLOAT, (), FLOAT)
        for _ in self._ask([question], no_progress):
            pass
        if self._log[question.key].failure:
            raise UserError(f"the float model itself: {self._log[question.key].failure}")
        return self._log[question.key].nats

    def measure(self, asked: Sequence[Asked], notes: Mapping[str, str], progress: Progress) -> Iterator[list[SpikeArm]]:
        """The arms known so far, in their order: before anything is measured, and again after every group.

        Args:
            asked: Of this world; what is known is not measured again.
            notes: By name.
            progress: Called with the plans done.
        """
        questions = [self._question(a.scheme, a.protected, a.protection) for a in asked]
        for _ in self._ask(questions, progress):
            known = [(a, q) for a, q in zip(asked, questions, strict=True) if q.key in self._log]
            yield [self._arm(a, q, notes.get(a.name, "")) for a, q in known]

    def _question(self, scheme: str, protected: Sequence[str], protection: str) -> _Question:
        plan = self._world.plan(scheme, self._stats)
        plan = plan.with_schemes(dict.fromkeys(protected, parse_scheme(protection)), "protected")
        return _Question(plan, hash_json([[a.site.name, str(a.scheme)] for a in plan.assignments]))

    def _ask(self, questions: Sequence[_Question], progress: Progress) -> Iterator[None]:
        """Measure what is not in the log; yields before the first group and behind every one."""
        yield
        open_ones = list({q.key: q.plan for q in questions if q.key not in self._log}.items())
        order = prefix_order([plan for _, plan in open_ones])
        if order and self._meter is None:
            world, plan = self._world, open_ones[0][1]
            self._meter = make_meter(world.model, world.report, world.stats, prefix=prefix_of(world.model, plan))
        for first in range(0, len(order), TOGETHER):
            progress("arms", first, len(order))
            group = [open_ones[i] for i in order[first : first + TOGETHER]]
            assert self._meter is not None  # there is something to measure
            outcomes = self._meter.measure_many([plan for _, plan in group], [key for key, _ in group])
            for (key, _), outcome in zip(group, outcomes, strict=True):
                failed = isinstance(outcome, Failure)
                self._log.add(Answer(key, failure=outcome.error) if failed else Answer(key, outcome.nats))
            yield
        progress("arms", len(order), len(order))

    def _arm(self, asked: Asked, question: _Question, note: str) -> SpikeArm:
        plan, answer = question.plan, self._log[question.key]
        sizes = {s.name: s.parameters for s in plan.sites}
        share = sum(sizes[name] for name in asked.protected) / sum(sizes.values())
        world = self._world
        return SpikeArm(
            asked.group, asked.label, asked.setting, asked.scheme, asked.protected, asked.protection,
            world.transforms, len(world.stats.prefix), world.tokens, share, plan.bits_per_weight(),
            answer.nats, answer.failure, note,
        )  # fmt: skip


def has_outliers(scheme: str) -> bool:
    """Whether some columns of the inputs stay in float."""
    low = parse_scheme(scheme)
    return isinstance(low, LinearScheme) and low.input is not None and low.input.outliers is not None
