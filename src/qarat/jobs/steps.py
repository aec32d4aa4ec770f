"""Steps of a job: what each comes to, and in which files of the job's folder it lies.

A job is its steps, one after the other. A step's work gives records; they are written, and read back for what follows,
so that a step taken over from an earlier call and one that is done now go on alike. What all jobs call by the same name
is here; each has others of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import msgspec

from qarat.ground.disk import write_whole
from qarat.jobs.folder import Run
from qarat.values.plans import Plan
from qarat.values.records.files import Record, decode_record, encode_record
from qarat.values.records.prices import Menu
from qarat.values.records.protection import Protection
from qarat.values.records.scores import Continuations
from qarat.values.records.streams import ActivationStats

R = TypeVar("R")


@dataclass(frozen=True)
class Step(Generic[R]):
    """A step that comes to one record, to several, or to a plain value.

    Attributes:
        name: Of the step.
        files: One a record.
        plain: Type of the value that its one file holds as plain JSON; None where there are records.
    """

    name: str
    files: tuple[str, ...]
    plain: Any = None

    def make(self, run: Run, key: object, work: Callable[[], R], after: Sequence[Step[Any]] = ()) -> R:
        """What the step comes to: by its work, unless that is there from an earlier call with the same key.

        Args:
            run: Whose step it is.
            key: Everything that decides the bytes.
            work: Gives it.
            after: Steps whose records the work reads; if they changed, it is done again.
        """

        def write() -> None:
            made = work()
            for file, value in zip(self.files, cast(Any, made) if len(self.files) > 1 else (made,), strict=True):
                data = encode_record(cast(Record, value)) if self.plain is None else msgspec.json.encode(value) + b"\n"
                write_whole(run.path(file), data)

        run.step(self.name, key, self.files, write, after=[step.name for step in after])
        return self.read(run.folder)

    def read(self, folder: Path) -> R:
        """What lies in a folder in which the step is done.

        Raises:
            UserError: A file is missing or damaged.
        """
        if self.plain is not None:
            return msgspec.json.decode((folder / self.files[0]).read_bytes(), type=self.plain)
        records = [decode_record(folder / file) for file in self.files]
        return cast(R, tuple(records) if len(records) > 1 else records[0])


STATS, MENU, PLAN, PROTECTION = "stats.safetensors", "menu.json", "plan.json", "protection.json"
TEXTS = "continuations.json"
PROFILE = Step[ActivationStats]("profile", (STATS,))
DAMAGE = Step[Menu]("damage", (MENU,))
PROTECT = Step[tuple[Plan, Protection]]("plan", (PLAN, PROTECTION))
CONTINUE = Step[Continuations]("continue", (TEXTS,))
