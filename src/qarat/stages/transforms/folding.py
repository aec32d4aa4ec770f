"""What transforms fold into a block's tensors, its function kept: scales of a stream, copies of an MLP's channels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from qarat.ground.errors import UserError
from qarat.model.families.base import Family, Stream
from qarat.model.model import Model
from qarat.values.roles import Role


def check_inner(model: Model) -> None:
    """Check that the MLP's inner activation follows its source in proportion, so that scales and copies are exact.

    Raises:
        UserError: An MLP without a gate whose activation is no ReLU.
    """
    is_gated = len(model.family.stream(Role.MLP_INPUT).readers) > 1
    if not is_gated and (activation := getattr(model.config, "activation_function", "unnamed")) != "relu":
        raise UserError(
            f"{', '.join(model.family.architectures)} has no gate, so what is divided goes through its activation; "
            f"that is {activation}, and only with relu a part of a channel stays a part; leave it out"
        )


def fold_scales(
    state: Mapping[str, Tensor], stream: Stream, scales: Tensor, *, head: int, offset: float = 0.0
) -> dict[str, Tensor]:
    """Divide one stream, by dividing what makes it, and multiply the columns that read it.

    Args:
        state: Of a block; its tensors are left alone.
        stream: That has a source.
        scales: (channels of the source,); query heads that share a value head share its scales.
        head: Channels of an attention head.
        offset: What the source adds to its weight before it multiplies.
    """
    folded = dict(state)
    for reader in stream.readers:
        weight = state[f"{reader}.weight"]
        shared = weight.shape[1] // len(scales)  # query heads to a value head; 1 anywhere else
        groups = head if shared > 1 else 1
        spread = scales.view(-1, 1, groups).expand(-1, shared, -1).flatten()
        folded[f"{reader}.weight"] = weight * spread.to(weight.dtype)
    for leaf, added in (("weight", offset), ("bias", 0.0)):
        name = f"{stream.source}.{leaf}"
        if name in state:
            value = state[name]
            folded[name] = (value + added) / _down_rows(scales, value) - added
    return folded


def fold_copies(state: Mapping[str, Tensor], family: Family, copies: Tensor, width: int) -> dict[str, Tensor]:
    """Keep each inner channel of an MLP as often as asked, side by side, and fill up with channels of zeros.

    A row of up becomes k of 1/k each, a row of gate and a column of down k of themselves, so their sum is what it was.
    Where there is no gate, fc1 is what makes the inner activation, and its rows are divided: exact behind a ReLU.

    Args:
        state: Of a block; its tensors are left alone.
        family: Of the model.
        copies: (inner channels,) int64, powers of two.
        width: Inner channels of the result, at least the sum of the copies.
    """
    inner = family.stream(Role.DOWN_INPUT)
    folded = dict(state)
    for reader in family.stream(Role.MLP_INPUT).readers:
        for name in (f"{reader}.weight", f"{reader}.bias"):
            if name in state:
                times = copies.to(state[name].device)
                rows = state[name].repeat_interleave(times, 0)
                if reader == inner.source:
                    rows = rows / _down_rows(times.repeat_interleave(times), rows)
                folded[name] = functional.pad(rows, (*[0, 0] * (rows.dim() - 1), 0, width - len(rows)))
    for reader in inner.readers:
        weight = state[f"{reader}.weight"]
        columns = weight.repeat_interleave(copies.to(weight.device), 1)
        folded[f"{reader}.weight"] = functional.pad(columns, (0, width - columns.shape[1]))
    return folded


def _down_rows(values: Tensor, like: Tensor) -> Tensor:
    """One value a row, in the dtype of a tensor of so many rows and shaped to be spread over it."""
    return values.to(like.dtype).view(-1, *[1] * (like.dim() - 1))
