"""Text drawn from the model itself, to calibrate on where no text is at hand, or none may leave its home.

Every token is drawn from the float model's own distribution, at temperature 1 and from the whole vocabulary, behind the
tokens drawn so far (the data-free idea of ZSAQ, arXiv 2310.13315, without its generator; LLM-QAT, arXiv 2305.17888,
takes the likeliest token for the first few behind a token at random, which behind BOS would begin all windows alike).
A window begins behind BOS, or whatever else ends a text for this model; if there is no such token, behind one at
random, as LLM-QAT does. Where the model ends a text inside a window, it goes on with the next.

What decides a token is the seed's uniform number for its window and place, whichever windows are drawn beside it. Given
up: models larger than the memory bound, as every token needs all blocks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.model.model import Model
from qarat.model.tokens import Bos

_STAGE = "draw calibration"
_CACHE = 1 << 29  # bytes of keys and values of windows drawn together; a constant, so that bytes stay equal


def draw_windows(
    model: Model, count: int, length: int, bos: Bos, seed: int = 0, progress: Progress = no_progress
) -> Tensor:
    """Windows of token ids that a float model writes.

    Args:
        model: In float.
        count: Of windows.
        length: Tokens of each, BOS included.
        bos: Whether BOS stands in each (``each`` or ``once``, as each window begins a text), or is left out.
        seed: Of the uniform numbers.
        progress: Called with the tokens drawn.

    Returns:
        (count, length) int64.

    Raises:
        UserError: A quantized model, or one whose blocks are not held at once.
    """
    model.require_float("draw text from")
    size = model.block_bytes() * model.blocks
    if size > model.memory:
        raise UserError(
            f"text is drawn token by token, each through all of the model's blocks: they take {size / 1e9:.3g} GB, and "
            f"`memory` is {model.memory / 1e9:.3g}; give more, or a text for `calibration`"
        )
    generator = torch.Generator().manual_seed(seed)
    hidden = int(bos == "never")  # the token in front, which is not of the window then
    numbers = torch.rand(count, length - 1 + hidden, generator=generator, dtype=torch.float64)
    first = _first_tokens(model, count, generator)
    rows = max(1, _CACHE // (_cache_bytes(model) * length))
    module, drawn = model.module(), list[Tensor]()
    for begin in range(0, count, rows):
        some = slice(begin, begin + rows)
        told = functools.partial(_tell, progress, begin * length, min(rows, count - begin), count * length)
        drawn.append(_continue(module, model, first[some], numbers[some], told)[:, hidden:])
    progress(_STAGE, count * length, count * length)
    return torch.cat(drawn)


def _tell(progress: Progress, before: int, rows: int, total: int, done: int) -> None:
    progress(_STAGE, before + rows * done, total)


def stand_in_windows(
    model: Model, count: int, length: int, bos: Bos, seed: int = 0, _progress: Progress = no_progress
) -> Tensor:
    """Windows that stand for those of `draw_windows` where only how many there are counts: every token is as likely."""
    generator = torch.Generator().manual_seed(seed)
    windows = torch.randint(_words(model), (count, length), generator=generator)
    if bos != "never":
        windows[:, :1] = _first_tokens(model, count, generator)
    return windows


def _first_tokens(model: Model, count: int, generator: torch.Generator) -> Tensor:
    """(count, 1) ids that stand in front: the token that begins or ends a text, or one at random."""
    for token in (model.tokenizer.bos_token_id, model.config.bos_token_id, model.tokenizer.eos_token_id):
        if isinstance(token, int):
            return torch.full((count, 1), token, dtype=torch.long)
    return torch.randint(_words(model), (count, 1), generator=generator)


def _words(model: Model) -> int:
    """Tokens that the tokenizer knows; rows of the embedding behind them are padding."""
    tokenizer: Any = model.tokenizer
    return min(len(tokenizer), model.config.vocab_size)


def _cache_bytes(model: Model) -> int:
    """Of one token's keys and values in all blocks."""
    heads = getattr(model.config, "num_key_value_heads", None) or model.config.num_attention_heads
    return 2 * model.blocks * heads * model.head_width * model.runtime.torch_dtype.itemsize


@torch.no_grad()
def _continue(module: nn.Module, model: Model, first: Tensor, numbers: Tensor, told: Callable[[int], None]) -> Tensor:
    """Ids behind the first ones, one for each column of uniform numbers.

    Args:
        module: The whole model.
        model: It too.
        first: (windows, 1) int64.
        numbers: (windows, tokens) float64 in [0, 1).
        told: Called with the tokens of a window that are there.

    Returns:
        (windows, 1 + tokens) int64 on the CPU.
    """
    device, words, cache = model.runtime.device, _words(model), DynamicCache(config=model.config)
    ids = [first]
    for place in range(numbers.shape[1]):
        told(place)
        logits = module(input_ids=ids[-1].to(device), past_key_values=cache, use_cache=True).logits[:, -1, :words]
        sums = logits.double().softmax(-1).cumsum(-1).cpu()
        # Scaled by the last sum, which rounding leaves beside 1, so that every number finds a token.
        ids.append(torch.searchsorted(sums, numbers[:, place, None] * sums[:, -1:], right=True).clamp(max=words - 1))
    return torch.cat(ids, 1)
