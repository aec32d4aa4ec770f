"""The trial log: every answer is written down as it comes, so that a killed search goes on to the same result.

Strategies are deterministic: run again, they ask the same questions, and what the log answers is not measured again.
A line a plan, with the loss of every window, since differences are paired. The first line says to what the log belongs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from qarat.ground.disk import explained, write_whole
from qarat.ground.errors import UserError


class Answer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What measuring a plan gave.

    Attributes:
        key: Hash of the plan's schemes.
        nats: Of every window; empty where the measurement failed.
        failure: Why it failed.
    """

    key: str
    nats: tuple[float, ...] = ()
    failure: str = ""


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


def _line(answer: Answer) -> str:
    return msgspec.json.encode(answer).decode()


def _check_header(path: Path, found: str, wanted: str) -> None:
    try:
        theirs, ours = json.loads(found), json.loads(wanted)
        different = [key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)]
    except (ValueError, AttributeError):
        raise UserError(f"{path} is no trial log; move it, or give another `out`") from None
    if different:
        raise UserError(
            f"{path} is the log of another search: {', '.join(sorted(different))} differ; give another `out`, or "
            f"delete {path.parent} to begin anew"
        )
