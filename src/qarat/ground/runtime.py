"""Where work runs and what it may use."""

from __future__ import annotations

import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from qarat.ground.errors import ArgumentError, UserError

if TYPE_CHECKING:  # what only reads records must not wait for it
    import torch

DEVICES, DTYPES, KERNELS = ("auto", "cpu", "cuda"), ("float32", "bfloat16"), ("reference", "fast")

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, the units done and the units in all."""


def no_progress(stage: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def check_threads(threads: int) -> None:
    """Refuse fewer threads than one, and more than there are cores: they only wait for one another.

    Raises:
        ArgumentError: Saying how many there are.
    """
    cores = os.cpu_count() or 1
    if not 1 <= threads <= cores:
        raise ArgumentError(f"`threads` {threads}: give 1 to {cores}, as many as this machine has cores")


class Runtime(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where work runs and what it may use; never part of a result's identity, save for the dtype.

    Attributes:
        device: ``cpu``, ``cuda``, or ``auto``, which at once becomes one of the two: ``cuda`` where torch sees
            such a device.
        dtype: Arithmetic of the walk, ``float32`` or ``bfloat16``.
        threads: CPU threads; 0 leaves torch's own choice.
        memory: Bytes that may be held beside what the process holds already; 0 is half of what is free. Of a GPU's
            own memory, where it computes there.
        batch_tokens: Tokens that go through a block at once; more of them gain nothing on a CPU, and cost memory.
        kernels: What computes quantized projections (`qarat.maths.kernels`): ``reference``, what they mean, for every
            number that is published; or ``fast``, a real kernel wherever one is exact on this machine.
    """

    device: str = "auto"
    dtype: str = "float32"
    threads: int = 0
    memory: int = 0
    batch_tokens: int = 1024
    kernels: Literal["reference", "fast"] = "reference"

    def __post_init__(self) -> None:
        """Settle ``auto``, and check what has a fixed set of words.

        Raises:
            UserError: Another device or dtype; no CUDA device where one is asked for.
        """
        for field, known in (("device", DEVICES), ("dtype", DTYPES), ("kernels", KERNELS)):
            if (word := getattr(self, field)) not in known:
                raise UserError(f"`{field}` {word} is none that qarat computes with; give {', '.join(known)}")
        if self.device == "cpu":
            return
        import torch

        if torch.cuda.is_available():
            msgspec.structs.force_setattr(self, "device", "cuda")
        elif self.device == "auto":
            msgspec.structs.force_setattr(self, "device", "cpu")
        else:
            raise UserError("`device` cuda: torch sees no CUDA device; use `device` cpu")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        import torch

        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    def memory_bytes(self) -> int:
        """The memory bound in bytes; half of what is free at the moment, where none was given."""
        if self.memory:
            return self.memory
        if self.device == "cuda":
            import torch

            unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()  # torch has taken it, and gives it
            return (torch.cuda.mem_get_info()[0] + unused) // 2
        pages = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return pages // 2


def process_bytes() -> int:
    """Memory that this process holds: at the moment where Linux tells it, else at its peak so far."""
    table = Path("/proc/self/statm")
    if table.exists():
        return int(table.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def held_bytes(device: str) -> int:
    """Memory that this process holds where it computes: `process_bytes`, or what torch has taken of a GPU's own."""
    if device == "cpu":
        return process_bytes()
    import torch

    return torch.cuda.memory_reserved()


class Estimate(msgspec.Struct, frozen=True):
    """What a run would take.

    Attributes:
        steps: Name to seconds.
        memory_bytes: Of the process at its peak; of a GPU's own memory, where it computes there.
        disk_bytes: Of what would be written.
        rate: Matrix rate measured on this machine, floating-point operations a second.
    """

    steps: dict[str, float]
    memory_bytes: int
    disk_bytes: int
    rate: float
