"""A Hadamard rotation in front of every ``down_proj``, its inverse folded into the weight: W·x = (W·Hᵀ)·(H·x).

A spike in one of n channels comes out as n values of 1/√n of its size, so a scale shared by the whole tensor has a step
smaller by up to √n. It spreads over channels, not over tokens: the spiking token still towers over the others. This is
the online rotation R4 of QuaRot (Ashkboos et al. 2024, arXiv 2404.00456) and SpinQuant (arXiv 2405.16406), alone: their
rotations of the residual stream, of heads, queries and keys are not here, as the spikes are at ``down_proj``.

The input is rotated while the model runs, which neither a config nor a weight can say: qarat's own folder holds such a
model, other formats refuse it. Widths that are no powers of two: `qarat.maths.rotations`.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.rotations import rotate, rotation_factors
from qarat.model.model import ROTATION, Model, Transform
from qarat.stages.transforms import MadeFrom, ParsedTransform
from qarat.values.roles import Role


def parse(parts: Sequence[str]) -> ParsedTransform:
    """``hadamard``; protocol `qarat.stages.transforms.TransformFile`."""
    if parts:
        raise UserError("nothing goes with it; write hadamard")

    def step(model: Model, made_from: MadeFrom) -> Model:
        return apply(model)

    return ParsedTransform(step)


def apply(model: Model) -> Model:
    """The model with the input of every ``down_proj`` rotated.

    Args:
        model: In float.

    Raises:
        UserError: Rotated already, an MLP of another kind, or a width of which no Hadamard matrix is known.
    """
    if model.is_rotated:
        raise UserError(f"{model.path} is rotated already; give hadamard once")
    down = model.family.reader(Role.DOWN_INPUT)
    if "." not in down:
        raise UserError(
            f"hadamard goes into an MLP, and in {model.path} {down} stands in the block itself; leave it out"
        )
    weight = f"{down}.weight"

    def fold(index: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        factors = [factor.to(state[weight].device) for factor in rotation_factors(state[weight].shape[1])]
        return state | {weight: rotate(state[weight], factors)}

    rotated = model.with_transform(Transform(ROTATION, fold))
    rotated.empty_block(0)  # now, where a block's MLP is of another kind
    return rotated
