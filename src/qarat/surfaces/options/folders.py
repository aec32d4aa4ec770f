"""Options of the verbs that make and check folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

from tyro.conf import Positional

from qarat.ground.disk import not_there
from qarat.ground.errors import ArgumentError, UserError
from qarat.jobs.engine_process import RUN, EngineProcess
from qarat.model.recognition import find_config
from qarat.stages.export import EXPORTERS
from qarat.surfaces.options.groups import IntoFile, IntoFolder, OnText, Reading, Runners, check_model
from qarat.values.engines import FILE_ENGINES
from qarat.values.requests.protect import ProtectRequest


class ExportOptions(Reading, frozen=True, kw_only=True):
    """Write a quantized model, or its plan, in the format of another program.

    Attributes:
        run: A folder that `qarat run` or `qarat quantize` wrote.
        out: Folder to write.
        format: What to write.
        source: The float model behind RUN: formats that round weights anew (gguf) then begin from it, and round once.
            (default: RUN's codes are all there is)
        overwrite: Replace FOLDER if it is there.
        dry_run: Check everything, print what it would take in time, memory and disk, and write nothing.
    """

    METAVARS: ClassVar[dict[str, str]] = {"out": "FOLDER"}
    LISTED: ClassVar[dict[str, Any]] = {"format": EXPORTERS}

    run: Positional[Path]
    out: Path = Path("exported")
    format: str = "compressed-tensors"
    source: str | None = None
    overwrite: bool = False
    dry_run: bool = False

    def check(self) -> None:
        """Refuse a format that there is not, and a run that is not there."""
        super().check()
        EXPORTERS.check(self.format)
        if not self.run.is_dir():
            raise UserError(f"{not_there(self.run, 'folder')}; give one that `qarat run` or `qarat quantize` wrote")
        if self.source is not None:
            check_model(self.source)


class VerifyOptions(OnText, IntoFile, frozen=True, kw_only=True):
    """Check what each engine will run of a quantized folder, and compare it with its run or float model.

    Attributes:
        model: A folder in the compressed-tensors format: from `qarat export`, llm-compressor, AutoRound or anybody.
            With --live onnxruntime, openvino or llama.cpp an export of ours in the format that it takes.
        against: What to compare with: the run (or native folder) it was exported from, or the float model it was made
            from.
        engine: Engines to follow: transformers, vllm, sglang; or older: vllm-0.26, vllm-0.23, vllm-0.18,
            sglang-2026-08, sglang-old. (default: all)
        gpu: Where it must run: turing, ampere, ada, hopper, blackwell, blackwell-rtx or cpu.
        live: Run the folder in an installed engine, vllm or transformers, and set what really ran beside the rest:
            module, scheme, kernel, and the mean loss on the first windows of the report text. Or an export in
            onnxruntime, openvino or llama.cpp, and set it beside the plan.
        engine_python: The Python of the environment that --live is installed in. (default: this one)
        seconds: After so many --live is ended.
        out: Where the verification goes. (default: nowhere)
        overwrite: Replace FILE if it is there.
    """

    model: Positional[str]
    against: str | None = None
    engine: tuple[str, ...] = ()
    gpu: str | None = None
    live: str | None = None
    engine_python: Path | None = None
    seconds: int = 600
    out: Path | None = None
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what is no folder, or not one that an engine would load, and engines that cannot be started."""
        super().check()
        if self.live is not None:
            python = self.engine_python or Path(sys.executable)
            EngineProcess(self.live, python).check("live", (*RUN, *FILE_ENGINES))
        elif self.engine_python is not None:
            raise ArgumentError("`engine_python` without `live` has no engine to run; give `live` vllm, for instance")
        else:  # of an engine that runs, it may be an export in another format
            find_config(Path(self.model))
        if self.against is not None:
            check_model(self.against)


class RunOptions(IntoFolder, frozen=True, kw_only=True):
    """Do it all: profile, damage, plan, quantize, and evaluate float, naive and plan.

    Attributes:
        out: Folder to write. Work goes on in FOLDER.partial; after a kill the same command continues it.
            (default: MODEL-qarat)
        prompt: What float, naive and plan continue at the end. (default: from the report text)
        page: Leave the page (FOLDER/report.html) and its figures out.
        export: Write the result in other programs' formats too, each to FOLDER/FORMAT (see `qarat export --help`).
    """

    SUFFIX = "qarat"

    prompt: str | None = None
    page: bool = True
    export: tuple[str, ...] = ()
    planning: ProtectRequest = ProtectRequest()
    runners: Runners = Runners()

    def check(self) -> None:
        """Refuse formats that there are not."""
        super().check()
        for name in self.export:
            EXPORTERS.check(name)
