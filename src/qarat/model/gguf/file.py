"""The head of a GGUF file, read and checked: what it says, and where its tensors lie."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from qarat.ground.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from gguf.gguf_reader import ReaderTensor

FLOATS = ("F32", "F16", "BF16")
_QUANTIZED = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")


class GgufFile(NamedTuple):
    """A file whose head is in order.

    Attributes:
        path: Where it lies.
        values: Every key of its metadata to its value.
        tensors: Name to what the head says of a tensor, and a view of its data, which stay in the file.
    """

    path: Path
    values: dict[str, Any]
    tensors: dict[str, ReaderTensor]

    @property
    def kinds(self) -> dict[str, str]:
        """Name of every tensor to its GGUF type."""
        return {name: tensor.tensor_type.name for name, tensor in self.tensors.items()}


def read_head(path: Path) -> GgufFile:
    """Read a file's head.

    Raises:
        UserError: The ``gguf`` package is missing; no GGUF file; a file that is cut short or damaged, one of several,
            or big-endian; types of tensors that are not dequantized here (all of them).
    """
    try:
        from gguf import GGUFEndian
    except ImportError:
        raise UserError(f"{path} needs the gguf package: pip install 'qarat[gguf]'") from None
    reader = _open(path)
    if reader.endianess == GGUFEndian.BIG:
        raise UserError(f"{path} is big-endian; convert it with: gguf-convert-endian {path} little")
    values = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    if int(values.get("split.count", 1)) > 1:
        raise UserError(
            f"{path} is one of {values['split.count']} files of a model; put them together first, with llama.cpp's: "
            f"llama-gguf-split --merge {path} WHOLE.gguf"
        )
    file = GgufFile(path, values, {tensor.name: tensor for tensor in reader.tensors})
    if unknown := {name: kind for name, kind in file.kinds.items() if kind not in (*FLOATS, *_QUANTIZED)}:
        listed = "\n  ".join(f"{name}: {kind}" for name, kind in unknown.items())
        known = ", ".join((*FLOATS, *_QUANTIZED))
        raise UserError(f"{path} has tensors of types that are not read here (known: {known}):\n  {listed}")
    return file


def _open(path: Path) -> GGUFReader:
    from gguf import GGUFReader

    class Reader(GGUFReader):
        """Reads from a plain array: slices of a memory map take twice as long, and a tokenizer is 100,000s of them."""

        def _get(self, *args: Any, **options: Any) -> Any:
            self.data = self.data.view(np.ndarray)
            return super()._get(*args, **options)

    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if magic != b"GGUF":
        raise UserError(f"{path} is no GGUF file: it begins with {magic!r}; fetch it again")
    try:
        return Reader(path)
    except Exception as error:  # whatever the reader stumbles over first; a short file ends in many kinds
        raise UserError(f"{path} is cut short or damaged: {error!r}; fetch it again") from error


def bits_of(kind: str) -> float:
    """Bits that a GGUF type takes for an element, its scales among them."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    return 8 * size / elements
