"""Options of the verbs that measure models as they are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from qarat.ground.errors import ArgumentError
from qarat.ground.runtime import check_threads
from qarat.jobs.engine_process import EngineProcess
from qarat.model.mixtures import MIX
from qarat.surfaces.options.groups import (
    Group,
    IntoFile,
    OfModel,
    OnText,
    Reading,
    Runners,
    Text,
    check_model,
    check_models,
)
from qarat.values.budgets import parse_size
from qarat.values.parsing import is_scheme, parse_scheme
from qarat.values.requests.speed import SpeedRequest


class Measure(Group, frozen=True, kw_only=True):
    """What is measured: perplexity of the report text, unless one of these says otherwise.

    Attributes:
        convention: How the report text becomes windows, all of them: wikitext2-2048, lm-eval-words, llama.cpp-512,
            windows-N-bos. (default: windows-N-bos)
        against: Measure the divergence from this float model, token by token.
        tasks: Measure accuracy: code_continuation, any task of the lm-evaluation-harness, or a *_local one of
            --task-data.
        task_folder: Folder with the JSON lines of local tasks; their scores stand beside no published ones, as prompts
            differ.
        limit: At most so many questions of each task, or windows of a --convention. (default: all)
    """

    convention: str | None = None
    against: str | None = None
    tasks: tuple[str, ...] = ()
    task_folder: Path | None = None
    limit: int | None = None

    def check(self) -> None:
        """Refuse what is asked for twice, and a float model or folder that is not there."""
        super().check()
        if self.limit is not None and self.limit < 1:
            raise ArgumentError(f"`limit` {self.limit}: give at least 1")
        if self.limit is not None and not self.tasks and not self.convention:
            raise ArgumentError("`limit` is of `tasks` or a `convention`; else `report_samples` says how many windows")
        if self.tasks and (self.against or self.convention):
            raise ArgumentError("`tasks` measures accuracy; `against` and `convention` are about the report text")
        if self.task_folder is not None and not self.tasks:
            raise ArgumentError("`task_folder` holds the files of local tasks; name those with `tasks`")
        if self.against is not None:
            check_model(self.against)


class OnMeasuredText(OnText, frozen=True, kw_only=True):
    """A verb that measures on the report text, or tasks; a mixin without fields, as `IntoFile`."""

    if TYPE_CHECKING:
        measure: Measure

    def check(self) -> None:
        """Refuse text beyond what a convention takes."""
        super().check()
        text = self.text
        if self.measure.convention and text != Text(report=text.report, column=text.column):
            raise ArgumentError("`convention` says how text is cut; only `report`, `column` and `limit` go with it")
        if self.measure.convention and (text.report or "").startswith(MIX):
            raise ArgumentError("`convention` is about one text; give `report` one, not a mixture")


class EvaluateOptions(OfModel, OnMeasuredText, IntoFile, frozen=True, kw_only=True):
    """Measure perplexity, divergence from float or zero-shot accuracy of a model, a run or an export.

    Attributes:
        model: A float model as for the other verbs, a folder of `qarat quantize` or `run`, or a compressed-tensors
            folder.
        out: Where the evaluation goes. (default: nowhere)
        overwrite: Replace FILE if it is there.
    """

    out: Path | None = None
    overwrite: bool = False
    measure: Measure = Measure()
    runners: Runners = Runners()


class CompareOptions(OnMeasuredText, IntoFile, frozen=True, kw_only=True):
    """Compare models, runs, exports or records with the first, pair by pair, with intervals.

    Attributes:
        names: Files of evaluations, scores or divergences; runs; exports; models; or schemes ('w=int8/channel
            a=int8/tensor/static'), each for the first model with every projection under it. Those without a record are
            measured.
        out: Where the comparison goes. (default: nowhere)
        overwrite: Replace FILE if it is there.
    """

    names: Positional[tuple[str, ...]]
    out: Path | None = None
    overwrite: bool = False
    measure: Measure = Measure()
    runners: Runners = Runners()

    def check(self) -> None:
        """Refuse fewer than two names, and those that are nothing here."""
        super().check()
        if len(self.names) < 2:
            raise ArgumentError("give `qarat compare` at least two: files of records, runs, exports or models")
        for scheme in filter(is_scheme, self.names):
            parse_scheme(scheme)
        check_models(name for name in self.names if not is_scheme(name) and not Path(name).exists())


class BenchOptions(IntoFile, Reading, frozen=True, kw_only=True):
    """Time folders in an installed engine, one after the other in turns: load, memory, prefill, decode.

    Attributes:
        folders: Hugging Face folders, float or quantized, reference models, or GGUF files (their float model, in
            bfloat16); the others are set against the first.
        engine: What runs them: vllm or transformers.
        engine_python: The Python of the environment that the engine is installed in. (default: this one)
        seconds: After so many an engine that loads and times one folder is ended.
        memory: Bound on what the engine's process may take, such as 8GB. (default: none)
        threads: CPU threads of the engine. (default: as it chooses)
        out: Where the record goes. (default: nowhere)
        overwrite: Replace FILE if it is there.
    """

    folders: Positional[tuple[str, ...]]
    engine: str = "vllm"
    engine_python: Path | None = None
    seconds: int = 600
    memory: str | None = None
    threads: int | None = None
    out: Path | None = None
    overwrite: bool = False
    speed: SpeedRequest = SpeedRequest()

    def check(self) -> None:
        """Refuse no folders and those that are not there, no engine, more threads than cores, and what is no size."""
        super().check()
        if not self.folders:
            raise ArgumentError("give `qarat bench` folders; the others are set against the first")
        check_models(self.folders)
        EngineProcess(self.engine, self.engine_python or Path(sys.executable)).check("engine")
        if self.threads is not None:
            check_threads(self.threads)
        if self.memory is not None:
            parse_size("memory", self.memory)
