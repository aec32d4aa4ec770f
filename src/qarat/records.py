"""Records: what stages measured, as frozen values that are saved, read back and compared by content.

A record is a small JSON header; where it has arrays they lie with the header in one safetensors file. Equal content has
an equal hash, whatever machine or time it was made on; combining records of different models or tokens is an error.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qarat.errors import UserError
from qarat.plans import Plan, read_plan

__all__ = [
    "ActivationStats",
    "Continuations",
    "Difference",
    "Evaluation",
    "Menu",
    "MenuEntry",
    "Peak",
    "Provenance",
    "Record",
    "StreamStats",
    "Sweep",
    "Trial",
    "content_hash",
    "decode_record",
    "describe_record",
    "encode_record",
    "paired_difference",
    "same_origin",
]


class Provenance(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a record comes from; part of its identity.

    Attributes:
        model: Fingerprint of the float model.
        tokens: Fingerprint of the token set.
        convention: How the tokens were cut, e.g. ``windows-256-bos``.
        versions: Of qarat, torch and transformers.
        seed: Of whatever was drawn at random.
        dtype: Arithmetic of the pass.
    """

    model: str
    tokens: str
    convention: str
    versions: dict[str, str]
    seed: int = 0
    dtype: str = "float32"


class Peak(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of the largest values of a stream.

    Attributes:
        value: Signed.
        window: Index of the window in the token set.
        position: Index of the token in its window; 0 is BOS where windows begin with it.
        token: Id of the token.
        text: The token as text.
        channel: Index along the stream's width.
    """

    value: float
    window: int
    position: int
    token: int
    text: str
    channel: int


class StreamStats(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one observing pass measured of one stream (DESIGN section 6).

    Attributes:
        name: ``model.layers.1.down_in``.
        block: Index of the decoder layer.
        kind: ``attn_in``, ``o_in``, ``mlp_in``, ``down_in``, ``q``, ``k``, ``p``, ``v``, ``down_out`` or ``block_out``.
        width: Channels; for attention operands the length of a row.
        tokens: Rows seen.
        ratio: r, the maximum over the median of token-wise absolute maxima, averaged over windows.
        maximum: Largest magnitude.
        typical_maximum: Median token-wise absolute maximum, averaged over windows.
        median_energy: Mean square of the median token, averaged over windows.
        element_median: Median of all sampled magnitudes, from the histogram.
        peaks: The largest values, one a token at the most, descending.
        arrays: ``channel_min``, ``channel_max``, ``channel_square`` (means of squares), each (width,) float32, absent for
            attention probabilities; ``histogram`` of magnitudes, ``token_maxima`` and ``token_energies``, counts per bin of
            `ActivationStats.edges`, int64.
    """

    name: str
    block: int
    kind: str
    width: int
    tokens: int
    ratio: float
    maximum: float
    typical_maximum: float
    median_energy: float
    element_median: float
    peaks: tuple[Peak, ...]
    arrays: dict[str, Tensor]


class ActivationStats(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one observing pass measured, per stream.

    Attributes:
        provenance: Model and calibration tokens.
        windows: Windows seen.
        length: Tokens of a window.
        sampled_windows: Windows whose elements went into the histograms of magnitudes, from the first on.
        edges: Bin edges of every histogram, (bins + 1,) float32, ascending, the first 0; logarithmic above.
        streams: By name.
    """

    provenance: Provenance
    windows: int
    length: int
    sampled_windows: int
    edges: Tensor
    streams: dict[str, StreamStats]

    def stream(self, name: str) -> StreamStats:
        """The named stream's stats.

        Raises:
            UserError: If the pass did not observe it.
        """
        if name not in self.streams:
            raise UserError(f"these stats hold no stream {name}; profile the model again (attention: --attention)")
        return self.streams[name]


class Evaluation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Negative log-likelihood of a token set under one model.

    Attributes:
        label: What was evaluated: ``float``, ``naive``, ``plan``, …
        provenance: Model and tokens.
        plan: Content hash of the plan; empty for float.
        nats: Sum over each window's predicted tokens.
        predicted: Tokens predicted in each window.
        sources: The file or document each window comes from.
    """

    label: str
    provenance: Provenance
    plan: str
    nats: tuple[float, ...]
    predicted: tuple[int, ...]
    sources: tuple[str, ...]

    @property
    def loss(self) -> float:
        """Mean nats per predicted token."""
        return math.fsum(self.nats) / sum(self.predicted)

    @property
    def perplexity(self) -> float:
        return math.exp(self.loss) if self.loss < 700 else math.inf


class Difference(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A paired difference in nats per token, with its standard error over windows, clustered by source."""

    nats: float
    standard_error: float
    clusters: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval, from the normal distribution."""
        return self.nats - 1.96 * self.standard_error, self.nats + 1.96 * self.standard_error


def paired_difference(a: Evaluation, b: Evaluation) -> Difference:
    """How much more ``a`` loses than ``b``, in nats per token, on the same windows.

    The standard error is that of a ratio estimator with sources as clusters (Cochran, Sampling Techniques, 3rd ed., 11.6):
    windows of one file resemble each other and are not independent.

    Raises:
        UserError: If the two were measured on other models or tokens.
    """
    same_origin(a.provenance, b.provenance, f"{a.label} and {b.label}")
    total = sum(a.predicted)
    mean = (math.fsum(a.nats) - math.fsum(b.nats)) / total
    residuals: dict[str, list[float]] = {}
    for x, y, n, source in zip(a.nats, b.nats, a.predicted, a.sources, strict=True):
        residuals.setdefault(source, []).append(x - y - mean * n)
    clusters = len(residuals)
    squares = math.fsum(math.fsum(values) ** 2 for values in residuals.values())
    error = math.sqrt(squares * clusters / (clusters - 1)) / total if clusters > 1 else math.nan
    return Difference(mean, error, clusters)


class MenuEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The predicted price of one scheme at one site.

    Attributes:
        site: Full name.
        scheme: Short spelling.
        damage: Nats per token.
        standard_error: Over windows.
    """

    site: str
    scheme: str
    damage: float
    standard_error: float


class Menu(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What every scheme would cost at every site.

    Attributes:
        provenance: Model and selection tokens.
        metric: How it was priced, e.g. ``fisher``.
        stats: Content hash of the stats behind static scales.
        entries: One a site and scheme.
    """

    provenance: Provenance
    metric: str
    stats: str
    entries: tuple[MenuEntry, ...]

    def damages(self, scheme: str) -> dict[str, float]:
        """Site to damage under one scheme, in nats per token."""
        return {e.site: e.damage for e in self.entries if e.scheme == scheme}


class Trial(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One measured plan on the selection tokens.

    Attributes:
        label: ``k=2``, ``only 1.down low``, ``without 1.down``, …
        sites: The sites the label is about: protected ones, the one left low, the one given up.
        damage: What `Sweep` says it is compared with.
    """

    label: str
    sites: tuple[str, ...]
    damage: Difference


class Sweep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The measurements behind a plan: protect the first k candidates, k = 0, 1, 2, …

    Attributes:
        provenance: Model and selection tokens.
        order: What ranked the candidates.
        budget: Spelling of the budget.
        budget_nats: The same in nats per token.
        trials: Trial k protects the first k candidates; loss over float.
        alone: Only this site low, everything else in float; loss over float, to be set beside the prediction.
        recoveries: Of each site the plan protects: the loss that leaving it low would add to the plan's.
        verdict: What was chosen, and why there.
    """

    provenance: Provenance
    order: str
    budget: str
    budget_nats: float
    trials: tuple[Trial, ...]
    alone: tuple[Trial, ...]
    recoveries: tuple[Trial, ...]
    verdict: str


class Continuations(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The same prompt continued greedily by several models.

    Attributes:
        provenance: Model and report tokens.
        prompt: As text.
        texts: Label to continuation.
    """

    provenance: Provenance
    prompt: str
    texts: dict[str, str]


def same_origin(a: Provenance, b: Provenance, what: str) -> None:
    """Refuse to combine strangers.

    Raises:
        UserError: Naming the fields that differ.
    """
    fields = ("model", "tokens", "convention", "dtype")
    different = [f"{f}: {getattr(a, f)[:40]} against {getattr(b, f)[:40]}" for f in fields if getattr(a, f) != getattr(b, f)]
    if different:
        raise UserError(f"{what} do not belong together: " + "; ".join(different))


Record = ActivationStats | Continuations | Evaluation | Menu | Plan | Sweep
R = TypeVar("R")
_TYPES: dict[str, Any] = {
    "stats": ActivationStats,
    "continuations": Continuations,
    "evaluation": Evaluation,
    "menu": Menu,
    "sweep": Sweep,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}


def encode_record(record: Record) -> bytes:
    """The bytes of a record's file: JSON, or safetensors where the record has arrays. Equal records, equal bytes."""
    if isinstance(record, Plan):
        return record.to_json().encode()
    arrays: dict[str, Tensor] = {}
    if isinstance(record, ActivationStats):
        arrays["edges"] = record.edges
        for name, stream in record.streams.items():
            arrays |= {f"{name}/{key}": value for key, value in stream.arrays.items()}

    text = msgspec.json.encode(describe_record(record))
    if not arrays:
        return msgspec.json.format(text, indent=1) + b"\n"
    return save({key: value.contiguous() for key, value in arrays.items()}, metadata={"qarat": text.decode()})


def describe_record(record: object) -> object:
    """A record without its arrays as plain JSON values, under its kind; anything else as it is."""
    if isinstance(record, Plan):
        return msgspec.json.decode(record.to_json())
    kind = _NAMES.get(type(record))
    body = msgspec.to_builtins(record, enc_hook=_leave_out)
    return {"qarat": f"{kind}/1", "record": body} if kind else body


def content_hash(record: Record) -> str:
    """SHA-256 of a record's bytes."""
    return hashlib.sha256(encode_record(record)).hexdigest()


def decode_record(path: Path, kind: type[R] | None = None) -> R:
    """Read a record's file.

    Args:
        path: Of the file.
        kind: What it must be; None takes any.

    Raises:
        UserError: No such file, not a record, of another version, or of another kind than asked for.
    """
    if not path.is_file():
        raise UserError(f"no such file: {path}")
    if path.suffix == ".safetensors":
        record = _decode_arrays(path)
    else:
        record = _decode_json(path)
    if kind is not None and not isinstance(record, kind):
        raise UserError(f"{path} holds a {type(record).__name__}, a {kind.__name__} is needed")
    return record


def _decode_json(path: Path) -> Any:
    data = path.read_bytes()
    try:
        header = msgspec.json.decode(data)
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is not a record: {error}") from None
    if isinstance(header, dict) and str(header.get("qarat", "")).startswith("plan/"):
        return read_plan(data)
    return _convert(path, header, {})


def _decode_arrays(path: Path) -> Any:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}; make it again") from None
    if "qarat" not in metadata:
        raise UserError(f"{path} is a safetensors file, but no record")
    return _convert(path, msgspec.json.decode(metadata["qarat"]), arrays)


def _convert(path: Path, header: Any, arrays: Mapping[str, Tensor]) -> Any:
    name, _, version = str(header.get("qarat", "") if isinstance(header, dict) else "").partition("/")
    if name not in _TYPES:
        raise UserError(f"{path} is not a record: it has no known `qarat` key")
    if version != "1":
        raise UserError(f"{path} is a {name} of version {version}; this qarat reads version 1")
    body = header["record"]
    if name == "stats":
        body["edges"] = arrays["edges"]
        for stream, fields in body["streams"].items():
            fields["arrays"] = {k: arrays[f"{stream}/{k}"] for k in fields["arrays"]}
    try:
        return msgspec.convert(body, _TYPES[name], dec_hook=_accept_tensor)
    except msgspec.ValidationError as error:
        raise UserError(f"{path} is not a valid {name}: {error}") from None


def _leave_out(value: object) -> None:
    """An array lies beside the header, under the name of its place."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} does not belong in a record")


def _accept_tensor(kind: type, value: object) -> object:
    if kind is torch.Tensor and isinstance(value, Tensor):
        return value
    raise TypeError(f"expected a tensor, got {type(value).__name__}")
