"""Channel splitting: the largest inner channels of each MLP are kept several times, each copy a part of them.

With y = D·(act(G·x) ∘ U·x), inner channel j becomes k channels: k copies of row j of G, k of row j of U divided by k, k
of column j of D. The function is the old one, and the input of D reaches 1/k as far in that channel, so the scale that
all its channels share is finer. That is outlier channel splitting (Zhao et al. 2019, arXiv 1901.09504) of the one
stream that has the spikes; nothing is computed at run time beyond the new channels. ``split/64`` makes every MLP of the
model 64 channels wider.

k is a power of two, so no weight is rounded: not in bfloat16, and in float16 unless it is next to nothing (subnormal).
All MLPs of a model have one width, as configs have one number for it; a block that needs less is filled up with
channels of zeros. Any format holds the result whose groups of columns divide the new width: 32 for GGUF.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.splitting import choose_copies
from qarat.maths.static_scales import reach_of
from qarat.model.model import Model, Transform
from qarat.stages.transforms import MadeFrom, ParsedTransform, stats_of
from qarat.stages.transforms.folding import check_inner, fold_copies
from qarat.values.records.files import content_hash
from qarat.values.records.streams import ActivationStats
from qarat.values.roles import Role

_HASH_DIGITS = 12


def parse(parts: Sequence[str]) -> ParsedTransform:
    """``split/CHANNELS``; protocol `qarat.stages.transforms.TransformFile`."""
    if len(parts) != 1 or re.fullmatch(r"[1-9]\d*", parts[0]) is None:
        raise UserError("write split/N, by how many inner channels every MLP grows: split/64")
    extra = int(parts[0])

    def step(model: Model, made_from: MadeFrom) -> Model:
        return apply(model, stats_of(made_from), extra)

    return ParsedTransform(step, needs="stats", outline=lambda model: outline(model, extra))


def apply(model: Model, stats: ActivationStats, extra: int) -> Model:
    """The model with the largest inner channels of its MLPs split.

    Args:
        model: In float.
        stats: Of this model, on the calibration tokens.
        extra: Inner channels that every MLP gets.

    Raises:
        UserError: Stats of another model or without a stream; a model that cannot be split.
    """
    _check(model)
    if stats.provenance.model != model.fingerprint:
        raise UserError("splitting needs stats of the very model that it is applied to; profile that one")
    family, width = model.family, model.inner_width + extra
    streams = [f"{family.blocks}.{index}.{Role.DOWN_INPUT}" for index in range(model.blocks)]
    copies = [choose_copies(reach_of(stats, stream), extra) for stream in streams]

    def fold(index: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return fold_copies(state, family, copies[index], width)

    return model.with_transform(Transform(f"split/{extra}@{content_hash(stats)[:_HASH_DIGITS]}", fold, width))


def outline(model: Model, extra: int) -> Model:
    """A model of the shapes that `apply` gives; errors as there."""
    _check(model)
    return model.with_transform(Transform(f"split/{extra}", inner=model.inner_width + extra))


def _check(model: Model) -> None:
    """Refuse what would not be the same function, or not as large.

    Raises:
        UserError: A rotated model; an MLP without a gate whose activation is no ReLU.
    """
    if model.is_rotated:
        raise UserError("a rotated down_proj has no channel that stands out; split first")
    check_inner(model)
