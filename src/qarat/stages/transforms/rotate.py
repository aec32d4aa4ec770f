"""Rotations that cost nothing at run time: of what attention's heads put out, and of the residual stream.

``rotate/values`` turns the rows of each value head by a Hadamard matrix H, and the columns of the projection that reads
the heads back: W_o·v = (W_o·Hᵀ)·(H·v). Attention weighs tokens and leaves channels alone, so nothing in between
notices; heads that share a value head are turned alike.

``rotate/residual`` turns the residual stream by R = H·diag(±1), whose signs are drawn once and for all. Norms divide by
a root mean square, which R does not change, once their weights are folded into their readers; so the embedding and
whatever is added to the stream is turned by R, and whatever reads it by Rᵀ. These are R2 and R1 of QuaRot (Ashkboos et
al. 2024, arXiv 2404.00456) and SpinQuant (arXiv 2405.16406). Neither reaches the input of ``down_proj``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from qarat.ground.errors import UserError
from qarat.maths.rotations import rotate, rotation_factors
from qarat.model.model import Model, Transform
from qarat.stages.transforms import MadeFrom, ParsedTransform
from qarat.values.roles import Role


def parse(parts: Sequence[str]) -> ParsedTransform:
    """``rotate/values``, ``rotate/residual``; protocol `qarat.stages.transforms.TransformFile`."""
    kinds = {"values": rotate_values, "residual": rotate_residual}
    if len(parts) != 1 or parts[0] not in kinds:
        raise UserError("write rotate/values (each head's values), or rotate/residual (the residual stream)")
    turn = kinds[parts[0]]

    def step(model: Model, made_from: MadeFrom) -> Model:
        return turn(model)

    return ParsedTransform(step)


def rotate_values(model: Model) -> Model:
    """The model with the values of each head rotated.

    Args:
        model: In float.

    Raises:
        UserError: A width of heads of which no Hadamard matrix is known.
    """
    width, factors = model.head_width, rotation_factors(model.head_width)
    stream = model.family.stream(Role.ATTENTION_OUTPUT)

    def fold(index: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        turned = dict(state)
        for leaf in ("weight", "bias"):
            if (name := f"{stream.source}.{leaf}") in state:
                heads = state[name].unflatten(0, (-1, width)).transpose(1, -1)
                turned[name] = rotate(heads, _on(factors, heads)).transpose(1, -1).flatten(0, 1)
        for reader in stream.readers:
            heads = state[f"{reader}.weight"].unflatten(1, (-1, width))
            turned[f"{reader}.weight"] = rotate(heads, _on(factors, heads)).flatten(1)
        return turned

    return model.with_transform(Transform("rotate/values", fold))


def rotate_residual(model: Model) -> Model:
    """The model with its residual stream rotated.

    Args:
        model: In float.

    Raises:
        UserError: An embedding that is tied to the head, norms of another kind or in other places than LLaMA's, a width
            of which no Hadamard matrix is known.
    """
    _check_residual(model)
    family, width = model.family, model.config.hidden_size
    signs = torch.randint(2, (width,), generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    factors = rotation_factors(width)
    fused = [stream for stream in family.streams if stream.fused]

    def turn(rows: Tensor) -> Tensor:
        return rotate(rows * signs.to(rows), _on(factors, rows))

    def fold(index: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        turned = dict(state)
        for stream in fused:
            for reader in stream.readers:
                turned |= _behind(state, stream.source, reader)
                turned[f"{reader}.weight"] = turn(turned[f"{reader}.weight"])
        for writer in (r for stream in family.streams if not stream.fused for r in stream.readers):
            turned[f"{writer}.weight"] = turn(state[f"{writer}.weight"].T).T
            if (bias := f"{writer}.bias") in state:
                turned[bias] = turn(state[bias])
        return turned

    def fold_outside(state: dict[str, Tensor]) -> dict[str, Tensor]:
        head, embedding = f"{family.head}.weight", f"{family.embedding}.weight"
        turned = state | _behind(state, family.norm, family.head)
        return turned | {name: turn(turned[name]) for name in (head, embedding)}

    return model.with_transform(Transform("rotate/residual", fold, outside=fold_outside))


def _behind(state: Mapping[str, Tensor], norm: str, reader: str) -> dict[str, Tensor]:
    """A norm's weight as ones, and folded into what reads the norm."""
    weight, scale = state[f"{reader}.weight"], state[f"{norm}.weight"]
    return {f"{norm}.weight": torch.ones_like(scale), f"{reader}.weight": weight * scale}


def _on(factors: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    return [factor.to(like.device) for factor in factors]


def _check_residual(model: Model) -> None:
    family = model.family
    if model.config.tie_word_embeddings:
        raise UserError(
            f"{model.path} ties its head to the embedding, and a rotation folds the last norm into the head alone; "
            "rotate/values is free of that"
        )
    block = model.empty_block(0)
    normed = {name for name, module in block.named_children() if "norm" in type(module).__name__.lower()}
    sources = {stream.source for stream in family.streams if stream.fused}
    kinds = {type(cast(nn.Module, block.get_submodule(name))).__name__ for name in normed}
    if family.norm_offset or normed != sources or not all(kind.endswith("RMSNorm") for kind in kinds):
        raise UserError(
            f"in {', '.join(family.architectures)} norms are not LLaMA's: only a division by the root mean square, in "
            "front of what reads the stream and nowhere else, takes no notice of a rotation; leave rotate/residual out"
        )
