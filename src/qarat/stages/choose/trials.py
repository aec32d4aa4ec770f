"""Plans measured, each once, wherever that runs; and the log of it, so that a killed search goes on to the same result.

Strategies are deterministic: run again, they ask the same questions, and what the log answers is not measured again.
A line a plan, with the loss of every window, since differences are paired. The first line says to what the log belongs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from qarat.ground.disk import explained, hash_json, write_whole
from qarat.ground.errors import UserError
from qarat.values.plans import Plan
from qarat.values.records.scores import Evaluation, Failure

MeasureMany = Callable[[Sequence[Plan]], Iterable[tuple[int, Evaluation | Failure]]]
"""Measures different plans; gives each plan's index and outcome as they come, in any order."""


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What measuring a plan gave.

    Attributes:
        key: Hash of the plan's schemes.
        nats: Of every window; empty where the measurement failed.
        failure: Why it failed.
        kernels: As of an `Evaluation`.
    """

    key: str
    nats: tuple[float, ...] = ()
    failure: str = ""
    kernels: dict[str, int] = {}


class TrialLog:
    """Answers by plan, kept in a file if there is one."""

    def __init__(self, path: Path | None, belongs_to: Mapping[str, object]) -> None:
        """Read what an earlier call left.

        Args:
            path: The log; None keeps answers in memory alone.
            belongs_to: Everything that decides an answer: model, tokens, versions.

        Raises:
            UserError: If the log belongs to something else, or cannot be read.
        """
        self._path = path
        self._answers: dict[str, Answer] = {}
        header = json.dumps({"qarat": "trials/1", **belongs_to}, sort_keys=True)
        if path is None:
            return
        if not path.exists():
            write_whole(path, header + "\n")
            return
        first, *lines = path.read_text(encoding="utf-8").splitlines()
        _check_header(path, first, header)
        for line in lines:
            with suppress(msgspec.DecodeError):  # the last line, cut short by a kill, is measured again
                answer = msgspec.json.decode(line, type=Answer)
                self._answers[answer.key] = answer
        # Written anew, so that what follows does not stick to a line that was cut short.
        write_whole(path, "\n".join([header, *(_line(a) for a in self._answers.values())]) + "\n")

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def add(self, answer: Answer) -> None:
        """Keep an answer, on disk before anything else happens."""
        self._answers[answer.key] = answer
        if self._path is not None:
            with explained(self._path), self._path.open("a", encoding="utf-8") as file:
                file.write(_line(answer) + "\n")


class PlanMeter:
    """Losses of plans on one token set, each plan measured once, be it by an earlier call.

    Attributes:
        blank: An evaluation on these tokens that has no losses yet.
        done: Plans measured so far.
        wanted: Plans that were to be measured so far.
    """

    def __init__(self, measure: MeasureMany, log: TrialLog, blank: Evaluation) -> None:
        """Nothing is measured yet.

        Args:
            measure: Does it, for plans that the log does not have.
            log: Of what was measured.
            blank: An evaluation on these tokens; its losses do not count.
        """
        self.blank, self.done, self.wanted = blank, 0, 0
        self._measure, self._log = measure, log

    def knows(self, plan: Plan) -> bool:
        """Whether the log has it."""
        return plan_key(plan) in self._log

    def losses(self, plans: Sequence[Plan], told: Callable[[], None] | None = None) -> list[Evaluation | Failure]:
        """Losses of plans, which are called by their notes.

        Args:
            plans: Of one model; their notes count as labels alone.
            told: Called after every plan that was measured.
        """
        missing = {plan_key(plan): plan for plan in plans if not self.knows(plan)}
        self.wanted += len(missing)
        keys = list(missing)
        for index, outcome in self._measure(list(missing.values())) if missing else ():
            key = keys[index]
            failed = isinstance(outcome, Failure)
            self._log.add(
                Answer(key, failure=outcome.error) if failed else Answer(key, outcome.nats, kernels=outcome.kernels)
            )
            self.done += 1
            if told is not None:
                told()
        return [self._outcome(plan) for plan in plans]

    def loss(self, plan: Plan, told: Callable[[], None] | None = None) -> Evaluation:
        """The loss of one plan.

        Raises:
            UserError: It is no number.
        """
        (outcome,) = self.losses([plan], told)
        if isinstance(outcome, Failure):
            raise UserError(f"the {outcome.label} model cannot be measured: {outcome.error}")
        return outcome

    def _outcome(self, plan: Plan) -> Evaluation | Failure:
        answer = self._log[plan_key(plan)]
        if answer.failure:
            return Failure(plan.note, answer.failure)
        return msgspec.structs.replace(self.blank, label=plan.note, nats=answer.nats, kernels=answer.kernels)


def plan_key(plan: Plan) -> str:
    """What a plan goes by in a log: the hash of its schemes."""
    return hash_json([str(scheme) for scheme in plan.schemes.values()])


def _line(answer: Answer) -> str:
    return msgspec.json.encode(answer).decode()


def _check_header(path: Path, there: str, wanted: str) -> None:
    try:
        theirs, ours = json.loads(there), json.loads(wanted)
        different = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    except (ValueError, AttributeError):
        raise UserError(f"{path} is no trial log; move it, or give another `out`") from None
    if different:
        raise UserError(
            f"{path} is the log of another search: {', '.join(sorted(different))} differ; give another `out`, or "
            f"delete {path.parent} to begin anew"
        )
