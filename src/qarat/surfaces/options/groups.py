"""Options that several verbs share, in groups."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import msgspec
from tyro.conf import Positional

from qarat.values.hub_names import parse_hub_name

BUNDLED = "py-128"


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Some options; every verb is one too."""


class Text(Group, frozen=True, kw_only=True):
    """The three token sets: scales come from the first, choices from the second, printed numbers from the third.

    Attributes:
        calibration: A text file (.txt, .jsonl, .json, .csv, .parquet, …), or hub:OWNER/NAME. It is split by documents
            into the sets that have no text of their own. (default: text that ships with qarat, Python for the reference
            models, English for all others)
        selection: Text on which choices are made.
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


class Transforms(Group, frozen=True, kw_only=True):
    """What is done to the float model first; its function is kept.

    Attributes:
        transforms: Change the float model first: hadamard, smooth/0.5, split/64 (see docs/formats.md). The same for
            every step of one plan.
        transform_stats: For each smooth and split, stats of the model that it is applied to, from `qarat profile`.
    """

    transforms: tuple[str, ...] = ()
    transform_stats: tuple[Path, ...] = ()


class Machine(Group, frozen=True, kw_only=True):
    """Where to compute; none of this changes what is found, beyond rounding.

    Attributes:
        device: Where to compute; auto takes a GPU if there is one.
        dtype: Arithmetic of every pass. Published numbers are float32.
        threads: CPU threads. With equal threads, results are equal to the byte. (default: as torch chooses)
        memory: Bound on weights kept in memory, such as 8GB. It changes time, never results. (default: half of what is
            free)
        kernels: What computes quantized projections: reference, as every published number, or fast where a kernel knows
            the scheme (INT8 on a CPU).
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"
    threads: int | None = None
    memory: str | None = None
    kernels: Literal["reference", "fast"] = "reference"


class Runners(Group, frozen=True, kw_only=True):
    """Who measures; none of this changes what is found, beyond rounding.

    Attributes:
        workers: Processes of this machine that measure side by side, each with the model in memory; --threads are
            shared out.
        ray: Measure on a Ray cluster instead (pip install 'qarat[ray]'); local starts one here, of --workers workers.
    """

    workers: int = 1
    ray: str | None = None


class Printing(Group, frozen=True, kw_only=True):
    """How to ask, and how to be answered.

    Attributes:
        json: Print one JSON document on stdout, and nothing else there.
        config: YAML file with any of these options by name; what is given on the command line wins.
    """

    json: bool = False
    config: str | None = None


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


class Reading(Group, frozen=True, kw_only=True):
    """A verb that lists, reads or rewrites."""

    general: Printing = Printing()


class OnText(Group, frozen=True, kw_only=True):
    """A verb that computes on text."""

    text: Text = Text()
    machine: Machine = Machine()
    general: General = General()


class OfModel(OnText, frozen=True, kw_only=True):
    """A verb about one float model.

    Attributes:
        model: A Hugging Face folder, a GGUF file, a reference model's name (see `qarat models`), or a hub id.
    """

    model: Positional[str] = BUNDLED


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


class Searching(IntoFolder, frozen=True, kw_only=True):
    """A verb that measures many plans of a model.

    Attributes:
        keep: Bound on hidden states kept between measurements, such as 2GB. It changes time, never results.
            (default: a quarter of --memory)
    """

    keep: str | None = None
    runners: Runners = Runners()
