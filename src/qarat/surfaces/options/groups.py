"""Options that several verbs share, in groups."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import msgspec
from tyro.conf import Positional

from qarat.ground.disk import check_file, not_there
from qarat.ground.errors import ArgumentError, UserError
from qarat.ground.runtime import check_threads
from qarat.model.mixtures import check_texts
from qarat.values.budgets import parse_size
from qarat.values.hub_names import parse_hub_name
from qarat.values.limits import check_seed, check_windows

BUNDLED = "py-128"


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Some options; every verb is one too."""

    def check(self) -> None:
        """Refuse what makes no sense by itself, before anything is imported that takes seconds; groups within too.

        Raises:
            UserError: Saying what, and what would.
        """
        for field in self.__struct_fields__:
            if check := getattr(getattr(self, field), "check", None):  # of a group, or of a request of the library
                check()


def check_model(name: str) -> None:
    """Refuse a name that is nothing here and cannot be of the hub; what is here is looked at when it is opened.

    Raises:
        UserError: As `qarat.model.finding.find_local`.
    """
    from qarat.model.finding import find_local  # help need not wait for it

    folder = Path(name).expanduser()
    if not any((folder / mark).is_file() for mark in ("config.json", "manifest.json")):
        find_local(name)


def check_models(names: Iterable[str]) -> None:
    """Refuse names that are nothing here, all of them at once; errors as `check_model`."""
    problems: list[str] = []
    for name in names:
        try:
            check_model(name)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))


def check_given(path: Path, maker: str = "") -> None:
    """Refuse a file that is not there.

    Args:
        path: Of the file.
        maker: The verb that writes such files.

    Raises:
        UserError: Naming the verb.
    """
    if not path.is_file():
        raise UserError(f"{not_there(path)}{f'; `qarat {maker}` writes it' if maker else ''}")


class Text(Group, frozen=True, kw_only=True):
    """The three token sets: scales come from the first, choices from the second, printed numbers from the third.

    Attributes:
        calibration: A text file (.txt, .jsonl, .json, .csv, .parquet, …), or hub:OWNER/NAME; self for what the model
            itself writes; or several by weight, mix:3=code.jsonl,1=prose.txt. It is split by documents into the sets
            that have no text of their own. (default: text that ships with qarat, Python for the reference models,
            English for all others)
        selection: Text on which choices are made, split like that where --report-text is not given.
        report: Text on which every printed number is measured.
        column: Which column of a table holds the text, or chats. (default: text, else messages)
        samples: At most so many windows for calibration, and for selection.
        report_samples: At most so many windows for the report.
        length: Tokens of a window. (default: the model's, at most 512)
        bos: Whether each window begins with BOS, only the first of a document, none, or as the tokenizer does.
    """

    calibration: str | None = None
    selection: str | None = None
    report: str | None = None
    column: str | None = None
    samples: int = 64
    report_samples: int = 256
    length: int | None = None
    bos: Literal["auto", "each", "once", "never"] = "auto"

    def check(self) -> None:
        """Refuse numbers of windows that nobody means, and windows in which nothing is predicted."""
        if self.length is not None and self.length < 2:
            raise UserError(f"`length` {self.length}: give at least 2, as a window of fewer tokens predicts nothing")
        check_windows("calibration", self.samples)
        check_windows("report", self.report_samples)
        check_texts([*filter(None, [self.calibration])], [*filter(None, [self.selection, self.report])])


class Transforms(Group, frozen=True, kw_only=True):
    """What is done to the float model first; its function is kept.

    Attributes:
        transforms: Change the float model first: hadamard, smooth/0.5, split/64 (see docs/formats.md). The same for
            every step of one plan.
        transform_stats: For each smooth and split, stats of the model that it is applied to, from `qarat profile`.
    """

    transforms: tuple[str, ...] = ()
    transform_stats: tuple[Path, ...] = ()

    def check(self) -> None:
        """Refuse stats that are not there."""
        for path in self.transform_stats:
            check_given(path, "profile")


class Machine(Group, frozen=True, kw_only=True):
    """Where to compute; none of this changes what is found, beyond rounding.

    Attributes:
        device: Where to compute; auto takes a GPU if there is one.
        dtype: Arithmetic of every pass. Published numbers are float32.
        threads: CPU threads. With equal threads, results are equal to the byte. (default: as torch chooses)
        memory: Bound on all that the process holds, such as 8GB: libraries, weights, hidden states, what is kept to
            save time; on a GPU of what lies in its own memory. It changes time, never results. (default: what it holds
            at first, and half of what is free)
        kernels: What computes quantized projections: reference, as every published number, or fast: integer products
            where a kernel knows the scheme, and a word on where none does.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int | None = None
    memory: str | None = None
    kernels: Literal["reference", "fast"] = "reference"

    def check(self) -> None:
        """Refuse more threads than cores, and what is no size."""
        if self.threads is not None:
            check_threads(self.threads)
        if self.memory is not None:
            parse_size("memory", self.memory)


class Runners(Group, frozen=True, kw_only=True):
    """Who computes; none of this changes what is found, beyond rounding.

    Attributes:
        workers: Processes of this machine that work side by side, each with the model in memory; --threads are shared
            out.
        ray: Work on a Ray cluster instead (pip install 'qarat[ray]'); local starts one here, of --workers workers.
    """

    workers: int = 1
    ray: str | None = None

    def check(self) -> None:
        """Refuse fewer than one worker."""
        if self.workers < 1:
            raise ArgumentError(f"`workers` {self.workers}: give at least 1")


class Printing(Group, frozen=True, kw_only=True):
    """How to ask, and how to be answered.

    Attributes:
        json: Print one JSON document on stdout, and nothing else there.
        config: YAML file with any of these options by name; what is given on the command line wins.
        quiet: No progress and no notes on stderr; errors only.
        verbose: Where an error arose as well, call by call.
    """

    json: bool = False
    config: str | None = None
    quiet: bool = False
    verbose: bool = False


class General(Printing, frozen=True, kw_only=True):
    """How to ask, and how to be answered.

    Attributes:
        dry_run: Check everything, print what it would take in time, memory and disk, and write nothing.
        seed: Of every random choice.
        revision: Revision of a hub id.
    """

    dry_run: bool = False
    seed: int = 0
    revision: str | None = None

    def check(self) -> None:
        """Refuse a seed that generators do not take."""
        check_seed(self.seed)


class Reading(Group, frozen=True, kw_only=True):
    """A verb that lists, reads or rewrites."""

    general: Printing = Printing()


class OnText(Group, frozen=True, kw_only=True):
    """A verb that computes on text."""

    text: Text = Text()
    machine: Machine = Machine()
    general: General = General()


class IntoFile(Group, frozen=True, kw_only=True):
    """A verb that writes a file; a mixin without fields, as two structs with some cannot both be bases."""

    if TYPE_CHECKING:
        out: Path | None
        overwrite: bool

    @property
    def begun(self) -> bool:
        """Whether the file is of work that was cut short, which the same command goes on with."""
        return False

    def check(self) -> None:
        """Refuse a place that cannot be written to."""
        if self.out is not None:
            check_file(self.out, overwrite=self.overwrite or self.begun)
        super().check()


class OfModel(OnText, frozen=True, kw_only=True):
    """A verb about one float model.

    Attributes:
        model: A Hugging Face folder, a GGUF file, a reference model's name (see `qarat models`), or a hub id.
    """

    model: Positional[str] = BUNDLED

    def check(self) -> None:
        """Refuse a name that is nothing here and cannot be of the hub."""
        super().check()
        check_model(self.model)


class IntoFolder(OfModel, frozen=True, kw_only=True):
    """A verb that works on a model for long, in a folder that survives a kill.

    Attributes:
        out: Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it.
        overwrite: Replace FOLDER if it is there.
    """

    METAVARS: ClassVar[dict[str, str]] = {"out": "FOLDER"}
    SUFFIX: ClassVar[str]

    out: Path | None = None
    overwrite: bool = False

    @property
    def folder(self) -> Path:
        """The folder to write: the model's name and what is done with it, where none was given."""
        name = self.model if Path(self.model).exists() else parse_hub_name(self.model)[0]
        return self.out or Path(f"{Path(name).resolve().name}-{self.SUFFIX}")

    def check(self) -> None:
        """Refuse a place that cannot be written to, or holds something else."""
        from qarat.jobs.folder import Run  # here, as above

        Run(self.folder, self.SUFFIX, overwrite=self.overwrite)
        super().check()


class Searching(IntoFolder, frozen=True, kw_only=True):
    """A verb that measures many plans of a model.

    Attributes:
        keep: Bound on hidden states kept between measurements, such as 2GB. It changes time, never results.
            (default: a quarter of --memory)
    """

    keep: str | None = None
    runners: Runners = Runners()

    def check(self) -> None:
        """Refuse what is no size."""
        super().check()
        if self.keep is not None:
            parse_size("keep", self.keep)
