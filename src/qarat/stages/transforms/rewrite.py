"""Fitted rewrites: every stream's channels are scaled, and some of the MLP's inner ones copied, so as to lose least.

What the scales and copies are was found from one pass (`qarat.maths.input_steps`) and stands in a record,
`qarat.values.records.rewrites`; here it is folded into weights. A stream divided by s is made by a norm or a
projection that is divided, and read by columns that are multiplied: the function is the old one, and nothing is
computed at run time. ``rewrite/64`` lets copies take 64 inner channels, by which every MLP grows; ``rewrite/0`` only
scales; ``rewrite`` takes as few as the budget is predicted to allow, and where rewriting is predicted to buy too little
it becomes ``rewrite/none``, which leaves the model as it is.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.model.model import Model, Transform
from qarat.stages.transforms import MadeFrom, ParsedTransform
from qarat.stages.transforms.folding import check_inner, fold_copies, fold_scales
from qarat.values.fingerprints import LEFT_ALONE
from qarat.values.records.files import content_hash
from qarat.values.records.rewrites import FittedScales, Rewrites
from qarat.values.roles import Role

WIDER = 24
"""An MLP is made wider by at most about this part of its width: 64 columns of 1536, 448 of 11008."""
ALIGNED = 64  # columns come in such a multiple, or in the greatest part of it that the width is a multiple of
_HASH_DIGITS = 12


def parse(parts: Sequence[str]) -> ParsedTransform:
    """``rewrite``, ``rewrite/COLUMNS``, ``rewrite/none``; protocol `qarat.stages.transforms.TransformFile`."""
    if "/".join(["rewrite", *parts]) == LEFT_ALONE:
        return ParsedTransform(lambda model, _: model.with_transform(Transform(LEFT_ALONE)))
    if len(parts) > 1 or (parts and re.fullmatch(r"\d+", parts[0]) is None):
        raise UserError("write rewrite, or rewrite/N with the inner channels by which every MLP grows: rewrite/64")
    columns = int(parts[0]) if parts else None

    def step(model: Model, made_from: MadeFrom) -> Model:
        if not isinstance(made_from, Rewrites):
            raise UserError("it is made from rewrites that were fitted; `qarat run` fits them and keeps their file")
        return apply(model, made_from, made_from.columns[-1] if columns is None else columns)

    return ParsedTransform(
        step,
        needs="rewrites",
        outline=lambda model: outline(model, columns_for(model) if columns is None else columns),
    )


def columns_for(model: Model) -> int:
    """Inner channels that copies may take where nobody says how many; 0 where an MLP has no gate."""
    if len(model.family.stream(Role.MLP_INPUT).readers) == 1:
        return 0
    unit = math.gcd(model.inner_width, ALIGNED)
    return max(unit, round(model.inner_width / WIDER / unit) * unit)


def check(model: Model) -> None:
    """Check that what makes every stream can be divided in its place.

    Raises:
        UserError: A rotated model, a stream without a source, an inner activation that `check_inner` refuses.
    """
    if model.is_rotated:
        raise UserError("the input of a rotated down_proj has no source to fold scales into")
    if missing := [s.name for s in model.family.streams if not s.source]:
        raise UserError(f"in {model.path} nothing makes {', '.join(missing)} that scales could be folded into")
    check_inner(model)


def apply(model: Model, rewrites: Rewrites, columns: int) -> Model:
    """The model with its streams rewritten.

    Args:
        model: In float.
        rewrites: Of this model.
        columns: Inner channels that copies may take, and by which every MLP grows.

    Raises:
        UserError: Rewrites of another model, or not of so many columns; a model that `check` refuses.
    """
    check(model)
    if rewrites.provenance.model != model.fingerprint:
        raise UserError("these rewrites were fitted to another model; fit them to this one")
    chosen = rewrites.choose(columns)

    def fold(index: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        for stream in model.family.streams:
            scales = _floats(chosen[f"{model.family.blocks}.{index}.{stream.name}"]).to(_device(state))
            offset = model.family.norm_offset if stream.fused else 0.0  # what fused readers read comes from a norm
            state = fold_scales(state, stream, scales, head=model.head_width, offset=offset)
        if not columns:
            return state
        inner = chosen[f"{model.family.blocks}.{index}.{Role.DOWN_INPUT}"]
        return fold_copies(state, model.family, _copies(inner, model.inner_width), model.inner_width + columns)

    return model.with_transform(
        _transform(model, f"@{content_hash(rewrites)[:_HASH_DIGITS]}", columns)._replace(fold=fold)
    )


def outline(model: Model, columns: int) -> Model:
    """A model of the shapes that `apply` gives; errors of the model as there."""
    check(model)
    return model.with_transform(_transform(model, "", columns))


def _transform(model: Model, source: str, columns: int) -> Transform:
    return Transform(f"rewrite/{columns}{source}", inner=model.inner_width + columns if columns else None)


def _floats(fitted: FittedScales) -> Tensor:
    return torch.frombuffer(bytearray(fitted.scales), dtype=torch.float32)


def _copies(fitted: FittedScales, width: int) -> Tensor:
    """(inner channels,) int64, powers of two."""
    if not fitted.copies:
        return torch.ones(width, dtype=torch.int64)
    return 2 ** torch.frombuffer(bytearray(fitted.copies), dtype=torch.uint8).long()


def _device(state: dict[str, Tensor]) -> torch.device:
    return next(iter(state.values())).device
