"""A job's folder that survives a kill, and says in its manifest what kind of job it is of.

A job works in ``OUT.partial``. Each step has a key, the hash of everything that decides its bytes; a step whose key and
files are there already is not run again, so the same command after a kill goes on from the last finished step and ends
with the same bytes. Times and machine names go to ``log.jsonl``, which no hash covers.

A job is its `Step`s, one after the other. A step's work gives records; they are written, and read back for what
follows, so that a step taken over from an earlier call and one that is done now go on alike. What all jobs call by the
same name is here; each has others of its own.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import msgspec

from qarat.ground import disk
from qarat.ground.errors import UserError
from qarat.values.records.files import Record, decode_record, encode_record

if TYPE_CHECKING:  # stats have arrays, and whoever asks what a folder is must not wait for torch
    from qarat.values.plans import Plan
    from qarat.values.records.prices import Menu, Protection
    from qarat.values.records.scores import Continuations
    from qarat.values.records.streams import ActivationStats

R = TypeVar("R")


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a job's folder says of itself.

    Attributes:
        kind: Of the job: ``run``, ``advice``, ``search``, ``ratio-study``, ``family-sweep``, ``spike-study`` or
            ``calibration-study``. What the others than a run come to is one record, of the same kind and name:
            `result_of`.
        steps: Name of each finished step to its key and the hashes of its files.
    """

    kind: str
    steps: dict[str, dict[str, str]] = {}


class Run:
    """A job's folder while it is being made: steps done so far, and the log.

    Attributes:
        out: Where the finished run will lie.
        kind: As of `Manifest`.
        folder: ``OUT.partial``, where it is made.
        steps: Name of each finished step to its key and the hashes of its files.
    """

    MANIFEST, LOG = "manifest.json", "log.jsonl"

    def __init__(self, out: Path, kind: str, *, overwrite: bool = False) -> None:
        """Check that a run may be put at ``out``; nothing is written yet.

        Raises:
            UserError: If ``out`` exists already and may not be overwritten, or cannot be written.
        """
        disk.check_folder(out, self.MANIFEST, overwrite=overwrite)
        self.out, self.kind = out, kind
        self.folder = disk.partial_of(out)
        self.steps: dict[str, dict[str, str]] = {}

    def begin(self, **facts: object) -> None:
        """Make the folder, or go on with the one that an earlier call left; the facts go to the log.

        Raises:
            UserError: If it cannot be written, or its manifest is damaged, or of another kind.
        """
        with disk.explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for stray in self.folder.glob(".*.partial"):  # a file that a kill cut short
                stray.unlink()
        manifest = self.path(self.MANIFEST)
        if manifest.exists():
            begun = read_manifest(self.folder)
            if begun.kind != self.kind:
                raise UserError(f"{self.folder} is a {begun.kind}, no {self.kind}; move it, or give another `out`")
            self.steps = begun.steps
        else:
            self._write_manifest()
        self.log(**facts)

    def path(self, name: str) -> Path:
        """Where the file or folder of that name lies while the run is being made."""
        return self.folder / name

    def step(
        self, name: str, key: object, outputs: Sequence[str], work: Callable[[], None], after: Sequence[str] = ()
    ) -> bool:
        """Run a step unless its outputs are there from an earlier call with the same key.

        Args:
            name: Of the step.
            key: Everything that decides the outputs' bytes.
            outputs: File names in the folder, each checked by hash before it is trusted.
            work: Writes the outputs.
            after: Steps whose outputs this one reads; if they changed, it is done again.

        Returns:
            Whether the work was done now.
        """
        wanted = disk.hash_json([key, *(self.steps[step] for step in after)])
        known = self.steps.get(name, {})
        if known.get("key") == wanted and all(disk.file_hash(self.path(o)) == known.get(o, "") for o in outputs):
            self.log(step=name, reused=True)
            return False
        begun = time.perf_counter()
        work()
        hashes: dict[str, str] = {}
        for output in outputs:
            digest = disk.file_hash(self.path(output))
            if digest is None:
                raise RuntimeError(f"step {name} did not write {output}")
            hashes[output] = digest
        self.steps[name] = {"key": wanted, **hashes}
        self._write_manifest()
        self.log(step=name, seconds=round(time.perf_counter() - begun, 3))
        return True

    def log(self, **fields: object) -> None:
        """Append a line to the log that no hash covers."""
        with disk.explained(self.folder), self.path(self.LOG).open("a") as file:
            file.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields}) + "\n")

    def leave(self, *begun: str) -> None:
        """Go away before the end: what was finished stays, and where that is nothing, nothing does.

        Args:
            *begun: Files of a step that goes on where it was; one of them there counts as something.
        """
        if (
            not self.steps
            and not any(self.path(name).exists() for name in begun)
            and disk.is_ours(self.folder, self.MANIFEST)
        ):
            disk.delete(self.folder, self.MANIFEST)

    @contextmanager
    def work(self, *begun: str, **facts: object) -> Iterator[None]:
        """Begin, and where an exception ends the work, leave; arguments and errors as `leave` and `begin`.

        Raises:
            UserError: Another process is at work in the folder.
        """
        with disk.held(self.folder):
            try:
                self.begin(**facts)
                yield
            except BaseException:
                self.leave(*begun)
                raise

    def finish(self) -> None:
        """Put the finished folder into place, replacing an older run only now."""
        disk.put_into_place(self.out, self.MANIFEST)

    def _write_manifest(self) -> None:
        manifest = {"kind": self.kind, "steps": self.steps}
        disk.write_whole(self.path(self.MANIFEST), json.dumps(manifest, indent=1, sort_keys=True) + "\n")


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
                disk.write_whole(run.path(file), data)

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
PROFILE: Step[ActivationStats] = Step("profile", (STATS,))
DAMAGE: Step[Menu] = Step("damage", (MENU,))
PROTECT: Step[tuple[Plan, Protection]] = Step("plan", (PLAN, PROTECTION))
CONTINUE: Step[Continuations] = Step("continue", (TEXTS,))


def result_of(kind: str) -> str:
    """The file of the record that a job of this kind comes to; a run has none."""
    return f"{kind}.json"


def kind_of(folder: Path) -> str:
    """The kind of job that a folder is of, finished or not; empty where it holds none.

    Raises:
        UserError: Its manifest is damaged, or from before it said so.
    """
    return read_manifest(folder).kind if (folder / Run.MANIFEST).is_file() else ""


def read_manifest(folder: Path) -> Manifest:
    """What a job's folder says of itself.

    Raises:
        UserError: If there is no manifest, or it is damaged, or from qarat 0.1.
    """
    path = folder / Run.MANIFEST
    if not path.is_file():
        raise UserError(f"{folder} holds no run of qarat (no {Run.MANIFEST})")
    data = path.read_bytes()
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        return msgspec.json.decode(data, type=Manifest)
    with suppress(msgspec.DecodeError, UnicodeDecodeError):
        msgspec.json.decode(data, type=dict[str, dict[str, str]])
        raise UserError(
            f"{folder} is of qarat 0.1: its {Run.MANIFEST} does not say what it holds; move it or delete it, and run "
            "its command again"
        )
    raise UserError(f"{path} is damaged; delete {folder} and run the command again")


def read_log(folder: Path) -> dict[str, Any]:
    """What the log of a job's folder says, by name, and of several the last; empty if it has none."""
    merged: dict[str, Any] = {}
    path = folder / Run.LOG
    for line in path.read_text().splitlines() if path.is_file() else ():
        with suppress(ValueError):  # a line that a kill cut short
            merged |= json.loads(line)
    return merged


def read_command(folder: Path) -> str:
    """The command that last worked on a job's folder, as its log has it; empty if it has none."""
    return read_log(folder).get("command", "")
