"""Files of records: a record as bytes, its content hash, and back.

A record is a small JSON header; where it has arrays they lie with the header in one safetensors file. Equal content has
an equal hash, whatever machine or time it was made on. A kind's module is imported when a record of it is read: only
the stats of streams have arrays and need torch, and no other record waits for that.
"""

from __future__ import annotations

import hashlib
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, cast, overload

import msgspec

from qarat.ground.disk import not_there
from qarat.ground.errors import UserError
from qarat.values.plan_files import decode_plan, encode_plan
from qarat.values.plans import Plan, PlanError

Record = msgspec.Struct
"""Of one of the classes below, or a `Plan`."""

R = TypeVar("R")
_CLASSES = {  # kind to module and class
    "stats": "streams:ActivationStats",
    "advice": "advice:Advice",
    "calibration-study": "calibration_study:CalibrationStudy",
    "comparison": "comparison:Comparison",
    "continuations": "scores:Continuations",
    "divergence": "scores:Divergence",
    "engine-speed": "speed:EngineSpeed",
    "evaluation": "scores:Evaluation",
    "law": "law:Law",
    "menu": "prices:Menu",
    "metric-check": "prices:MetricCheck",
    "protection": "prices:Protection",
    "site-measurements": "prices:SiteMeasurements",
    "rewrites": "rewrites:Rewrites",
    "family-sweep": "ratios:FamilySweep",
    "ratio-study": "ratios:RatioStudy",
    "search": "search:SearchResult",
    "spike-study": "spike_study:SpikeStudy",
    "verification": "verification:Verification",
    "zero-shot": "scores:ZeroShot",
}
_FORMER = {"sweep": "a protection; run `qarat plan` or `qarat run` again for a new one"}
"""Kinds of records of qarat 0.1, with what they are now and how to get one."""
_MAKERS = {"stats": "profile", "menu": "damage", "plan": "plan", "law": "law fit", "evaluation": "evaluate"}
_VERSIONS = {"protection": "2"}
"""Of kinds that have changed since their first version, which every other kind still has."""
_REMEDIES = {"protection": "; make it again with `qarat plan`, or with `qarat run` into another folder"}
"""Of kinds that have changed: how to get one of today's version."""
_KINDS = {f"{__package__}.{place}": kind for kind, place in _CLASSES.items()}


def encode_record(record: Record) -> bytes:
    """The bytes of a record's file: JSON, or safetensors where the record has arrays. Equal records, equal bytes."""
    if isinstance(record, Plan):
        return encode_plan(record).encode()
    text = msgspec.json.encode(describe_record(record))
    if _kind_of(record) == "stats":
        from qarat.values.records.streams import ActivationStats, pack_arrays  # here, as below: it needs torch

        return pack_arrays(cast(ActivationStats, record), text.decode())
    return msgspec.json.format(text, indent=1) + b"\n"


def describe_record(record: object) -> object:
    """A record without its arrays as plain JSON values, under its kind; anything else as it is."""
    if isinstance(record, Plan):
        return msgspec.json.decode(encode_plan(record))
    kind = _kind_of(record)
    body = msgspec.to_builtins(record, enc_hook=_leave_out)
    return {"qarat": f"{kind}/{_VERSIONS.get(kind, '1')}", "record": body} if kind else body


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
        raise UserError(not_there(path))
    record: Record = _decode_arrays(path) if path.suffix == ".safetensors" else _decode_json(path)
    if kind is not None and not isinstance(record, kind):
        held, wanted = kind_of(type(record)), kind_of(kind)
        maker = f", which `qarat {_MAKERS[wanted]}` writes" if wanted in _MAKERS else ""
        raise UserError(f"{path} is of kind {held}; {wanted} is needed here{maker}")
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
    from qarat.values.records.streams import read_arrays

    text, arrays = read_arrays(path)
    try:
        header = msgspec.json.decode(text, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise UserError(f"{path} is damaged: {error}; make it again") from None
    return _convert(path, header, arrays)


def _convert(path: Path, header: dict[str, Any], arrays: Mapping[str, object]) -> Any:
    kind, _, version = _tag(header).partition("/")
    if kind in _FORMER:
        raise UserError(f"{path} is a {kind} of qarat 0.1, now {_FORMER[kind]}")
    if kind not in _CLASSES:
        raise UserError(f"{path} is not a record: it has no known `qarat` key")
    if version != (ours := _VERSIONS.get(kind, "1")):
        remedy = _REMEDIES.get(kind, "")
        raise UserError(f"{path} is a {kind} of version {version}; this qarat reads version {ours}{remedy}")
    module, _, name = _CLASSES[kind].partition(":")
    try:
        body = _with_nan(header["record"])
        if kind == "stats":
            from qarat.values.records.streams import put_arrays

            put_arrays(body, arrays)
        cls = getattr(importlib.import_module(f"{__package__}.{module}"), name)
        return msgspec.convert(body, cls, dec_hook=_accept_array)
    except KeyError as error:
        raise UserError(f"{path} is not a valid {kind}: {error} is missing") from None
    except (AttributeError, TypeError, msgspec.ValidationError) as error:
        raise UserError(f"{path} is not a valid {kind}: {error}") from None


def _kind_of(record: object) -> str:
    """What a record's file says it is; empty for anything that is no record."""
    return _KINDS.get(f"{type(record).__module__}:{type(record).__qualname__}", "")


def kind_of(record: type) -> str:
    """What files of such records are called, such as ``stats``, ``menu`` or ``plan``."""
    return _KINDS.get(f"{record.__module__}:{record.__qualname__}", "plan")


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
    if type(value).__module__ != "torch":
        raise TypeError(f"{type(value).__name__} does not belong in a record")


def _accept_array(kind: type, value: object) -> object:
    if kind.__module__ == "torch" and isinstance(value, kind):
        return value
    raise TypeError(f"expected a tensor, got {type(value).__name__}")
