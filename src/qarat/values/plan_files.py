"""Plans as files: readable JSON, one line a site, that a person may edit; reading checks every line of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Annotated, Literal

import msgspec

from qarat.values.parsing import parse_scheme
from qarat.values.plans import Assignment, Plan, PlanError
from qarat.values.schemes import SchemeError
from qarat.values.sites import Kind, Site


def encode_plan(plan: Plan) -> str:
    """Readable JSON, one line a site, that a person may edit and pass back; `decode_plan` is its inverse."""
    head = {"qarat": "plan/1", "model": plan.model, "low": plan.low, "float_bits": plan.float_bits}
    head |= {"stats": plan.stats, "note": plan.note} | ({"prefix": plan.prefix} if plan.prefix else {})
    head |= {"calibration": plan.calibration} if plan.calibration else {}
    head |= {"tuned": plan.tuned} if plan.tuned else {}
    lines = [f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}," for key, value in head.items()]
    rows: list[str] = []
    for a in plan.assignments:
        row = {"scheme": str(a.scheme), "reason": a.reason, **msgspec.to_builtins(a.site)}
        del row["name"]
        if not a.site.width:
            del row["width"]  # of a projection
        rows.append(f"  {json.dumps(a.site.name)}: {json.dumps(row, ensure_ascii=False)}")
    return "{\n" + "\n".join(lines) + '\n "sites": {\n' + ",\n".join(rows) + "\n }\n}\n"


_SHAPES = {"projection": (1, 2), "product": (2, 0), "cache": (1, 0)}  # streams that are read, and axes of the weight


class _SiteRow(msgspec.Struct, forbid_unknown_fields=True):
    scheme: str
    block: int
    kind: Kind
    streams: tuple[str, ...]
    reason: str = ""
    shape: tuple[int, ...] = ()
    tie: str = ""
    has_bias: bool = False
    width: int = 0


class _PlanFile(msgspec.Struct, forbid_unknown_fields=True):
    qarat: Literal["plan/1"]
    model: str
    low: str
    float_bits: int
    sites: dict[str, _SiteRow]
    stats: str = ""
    note: str = ""
    prefix: tuple[Annotated[int, msgspec.Meta(ge=0)], ...] = ()
    calibration: str = ""
    tuned: Annotated[int, msgspec.Meta(ge=0)] = 0


def decode_plan(text: str | bytes) -> Plan:
    """Read a plan's JSON.

    Raises:
        PlanError: Malformed JSON, unknown or missing keys; malformed schemes and keys given twice (all of them).
    """
    try:
        file = msgspec.json.decode(text, type=_PlanFile)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise PlanError(f"not a plan: {error}") from None
    offences = [f"{key}: given twice" for key in _keys_given_twice(text)]
    try:
        parse_scheme(file.low)
    except SchemeError as error:
        offences.append(f"low: {error}")
    assignments: list[Assignment] = []
    for name, row in file.sites.items():
        try:
            scheme = parse_scheme(row.scheme, row.kind)
        except SchemeError as error:
            offences.append(f"{name}: {error}")
            continue
        operands, axes = _SHAPES[row.kind]
        if len(row.streams) != operands or len(row.shape) != axes or any(size < 1 for size in row.shape):
            offences.append(f"{name}: a {row.kind} reads {operands} streams and has a shape of {axes} sizes above 0")
            continue
        if (row.width > 0) != (row.kind != "projection") or row.width < 0:
            offences.append(
                f"{name}: a width of {row.width}; products and caches have one, above 0, and nothing else (plan anew)"
            )
            continue
        site = Site(name, row.block, row.kind, row.streams, row.shape, row.tie, row.has_bias, row.width)
        assignments.append(Assignment(site, scheme, row.reason))
    if offences:
        raise PlanError("\n".join(offences))
    rest = file.stats, file.note, file.prefix, file.calibration, file.tuned
    return Plan(file.model, file.low, file.float_bits, tuple(assignments), *rest)


def _keys_given_twice(text: str | bytes) -> list[str]:
    """Keys that stand more than once in one object, as after copying a line by hand; decoders take the last."""
    twice: list[str] = []

    def check(pairs: list[tuple[str, object]]) -> None:
        twice.extend(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)

    json.loads(text, object_pairs_hook=check)
    return twice
