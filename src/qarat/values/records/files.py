"""Files of records: a record as bytes, its content hash, and back.

A record is a small JSON header; where it has arrays they lie with the header in one safetensors file. Equal content has
an equal hash, whatever machine or time it was made on.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.values.plan_files import decode_plan, encode_plan
from qarat.values.plans import Plan, PlanError
from qarat.values.records.comparison import Comparison
from qarat.values.records.family import FamilySweep
from qarat.values.records.law import Law
from qarat.values.records.prices import Menu, MetricCheck, SiteMeasurements
from qarat.values.records.protection import Protection
from qarat.values.records.ratios import RatioStudy
from qarat.values.records.scores import Continuations, Divergence, Evaluation, ZeroShot
from qarat.values.records.search import SearchResult
from qarat.values.records.spike_study import SpikeStudy
from qarat.values.records.streams import ActivationStats
from qarat.values.records.verification import Verification

Record = (
    ActivationStats
    | Comparison
    | Continuations
    | Divergence
    | Evaluation
    | FamilySweep
    | Law
    | Menu
    | MetricCheck
    | Plan
    | RatioStudy
    | SearchResult
    | SiteMeasurements
    | SpikeStudy
    | Protection
    | Verification
    | ZeroShot
)
R = TypeVar("R")
_TYPES: dict[str, Any] = {
    "stats": ActivationStats,
    "comparison": Comparison,
    "continuations": Continuations,
    "divergence": Divergence,
    "evaluation": Evaluation,
    "law": Law,
    "menu": Menu,
    "metric-check": MetricCheck,
    "site-measurements": SiteMeasurements,
    "family-sweep": FamilySweep,
    "ratio-study": RatioStudy,
    "search": SearchResult,
    "spike-study": SpikeStudy,
    "sweep": Protection,
    "verification": Verification,
    "zero-shot": ZeroShot,
}
_NAMES = {kind: name for name, kind in _TYPES.items()}


def encode_record(record: Record) -> bytes:
    """The bytes of a record's file: JSON, or safetensors where the record has arrays. Equal records, equal bytes."""
    if isinstance(record, Plan):
        return encode_plan(record).encode()
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
        return msgspec.json.decode(encode_plan(record))
    kind = _NAMES.get(type(record))
    body = msgspec.to_builtins(record, enc_hook=_leave_out)
    return {"qarat": f"{kind}/1", "record": body} if kind else body


def content_hash(record: Record) -> str:
    """SHA-256 of a record's bytes."""
    return hashlib.sha256(encode_record(record)).hexdigest()


@overload
def decode_record(path: Path, kind: None = None) -> Record: ...
@overload
def decode_record(path: Path, kind: type[R]) -> R: ...
def decode_record(path: Path, kind: type[Any] | None = None) -> Any:
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
        header = msgspec.json.decode(data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a record: {error}") from None
    if _tag(header).startswith("plan/"):
        try:
            return decode_plan(data)
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None
    return _convert(path, header, {})


def _decode_arrays(path: Path) -> Any:
    try:
        with cast(Any, safe_open(path, "pt")) as file:  # safetensors has no types
            metadata: dict[str, str] = file.metadata() or {}
            arrays: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if "qarat" not in metadata:
            raise UserError(f"{path} is a safetensors file, but no record")
        header = msgspec.json.decode(metadata["qarat"], type=dict[str, Any])
    except (SafetensorError, OSError, msgspec.DecodeError) as error:
        raise UserError(f"{path} is damaged: {error}; make it again") from None
    return _convert(path, header, arrays)


def _convert(path: Path, header: dict[str, Any], arrays: Mapping[str, Tensor]) -> Any:
    name, _, version = _tag(header).partition("/")
    if name not in _TYPES:
        raise UserError(f"{path} is not a record: it has no known `qarat` key")
    if version != "1":
        raise UserError(f"{path} is a {name} of version {version}; this qarat reads version 1")
    try:
        body = _with_nan(header["record"])
        if name == "stats":
            body["edges"] = arrays["edges"]
            for stream, fields in body["streams"].items():
                fields["arrays"] = {k: arrays[f"{stream}/{k}"] for k in fields["arrays"]}
            if len(arrays) > 1 + sum(len(fields["arrays"]) for fields in body["streams"].values()):
                raise TypeError("it has arrays that its header does not name")
        return msgspec.convert(body, _TYPES[name], dec_hook=_accept_tensor)
    except KeyError as error:
        raise UserError(f"{path} is not a valid {name}: {error} is missing") from None
    except (AttributeError, TypeError, msgspec.ValidationError) as error:
        raise UserError(f"{path} is not a valid {name}: {error}") from None


def _tag(header: Mapping[str, object]) -> str:
    """What a file says it is, e.g. ``stats/1``; empty if it says nothing."""
    return str(header.get("qarat", ""))


def _with_nan(value: Any) -> Any:
    """NaN in the place of every null: JSON has no NaN, and no field of a record is ever null otherwise."""
    if isinstance(value, dict):
        items = cast(dict[str, Any], value).items()
        return {key: _with_nan(inner) for key, inner in items}
    if isinstance(value, list):
        return [_with_nan(inner) for inner in cast(list[Any], value)]
    return math.nan if value is None else value


def _leave_out(value: object) -> None:
    """An array lies beside the header, under the name of its place."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} does not belong in a record")


def _accept_tensor(kind: type, value: object) -> object:
    if kind is torch.Tensor and isinstance(value, Tensor):
        return value
    raise TypeError(f"expected a tensor, got {type(value).__name__}")
