"""A prefix in float: the remedy for spikes per token, where protecting sites is the one per site.

Spikes sit in a few tokens, with BOS in front in the first one. If every sequence begins with the same tokens, what they
leave in each block, their keys and values, is the same in all of them and is computed once, in float; everything else
is low, under scales that were calibrated without those tokens. IntactKV (arXiv 2403.01241) does so with BOS;
CushionCache (arXiv 2406.12016) and PrefixQuant (arXiv 2410.05265) put tokens of their own choice in front, which is not
done here: the prefix is what the text begins with anyway, so that losses are those of the same tokens.
Attention is causal, so nothing behind the prefix reaches it: in each block its positions are constants.

A block is wrapped: positions of the prefix get the constants, the others go through the quantized block with the
prefix's keys and values in front of theirs. These go through transformers' own cache, so a window in one piece and
generation token by token are one path. Given up: sequences that begin otherwise (an error), padding on the left.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from qarat.ground.errors import UserError
from qarat.model.layers import QuantCache, QuantLinear, QuantProducts
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.values.plans import Plan

_NAMED = 4  # sources that a message names


class BlockPrefix(NamedTuple):
    """What a prefix of n tokens leaves in one block of the float model.

    Attributes:
        keys: (1, key heads, n, head width), position embeddings in them.
        values: (1, key heads, n, head width).
        states: (1, n, hidden) behind the block.
        entrance: (1, n, hidden) in front of block 0, by which a sequence is known to begin with it; None elsewhere.
    """

    keys: Tensor
    values: Tensor
    states: Tensor
    entrance: Tensor | None


class FloatPrefix:
    """A prefix in every block, computed by the float model when it is first asked for.

    Attributes:
        tokens: Ids.
    """

    def __init__(self, model: Model, tokens: tuple[int, ...]) -> None:
        """Keep the float model; nothing is run yet."""
        self.tokens = tokens
        self._model = model

    def __getitem__(self, block: int) -> BlockPrefix:
        return self._blocks[block]

    @cached_property
    @torch.no_grad()
    def _blocks(self) -> tuple[BlockPrefix, ...]:
        model, cache = self._model, DynamicCache()
        entrance = hidden = model.embed(torch.tensor([self.tokens]))
        prefixes: list[BlockPrefix] = []
        for index, block in model.walk():
            hidden = model.run_block(index, block, hidden, cache)
            layer: Any = cache.layers[index]  # of a decoder layer with attention; other kinds have no keys
            keys, values = cast(Tensor, layer.keys), cast(Tensor, layer.values)
            prefixes.append(BlockPrefix(keys, values, hidden, None if index else entrance))
        return tuple(prefixes)


def prefix_of(model: Model, plan: Plan) -> FloatPrefix | None:
    """The prefix of a plan; None if it has none.

    Args:
        model: In float.
        plan: For this model.

    Raises:
        UserError: A prefix that the model cannot have (everything that is wrong with it).
    """
    if not plan.prefix:
        return None
    rows = model.tensor_shapes()[f"{model.family.embedding}.weight"][0]
    offences = [f"there is no token {token}: the model knows {rows}" for token in plan.prefix if token >= rows]
    count = len(plan.prefix)
    if count >= model.length:
        offences.append(f"its {count} tokens leave nothing of the {model.length} that the model takes at once")
    window: int | None = getattr(model.config, "sliding_window", None)
    if window is not None and window <= count:
        offences.append(f"attention looks back {window} tokens, so most would not see its {count}")
    if window is not None and window < model.length:
        # Behind that many tokens a cache forgets the prefix, and keys alone do not tell where they stand.
        low = [a.site.name for a in plan.assignments if a.site.kind != "projection" and not a.is_float]
        offences += [f"attention looks back {window} tokens: leave {name} in float" for name in low]
    if offences:
        raise UserError(f"the plan's prefix {list(plan.prefix)} does not fit the model:\n  " + "\n  ".join(offences))
    return FloatPrefix(model, plan.prefix)


def shared_front(tokens: TokenSet) -> int:
    """How many tokens all windows have in common in front; one less than a window at the most."""
    same = (tokens.windows == tokens.windows[0]).all(0)[:-1]
    return int(same.long().cumprod(0).sum())


def leading_tokens(tokens: TokenSet, count: int) -> tuple[int, ...]:
    """Ids of the tokens that every window begins with.

    Raises:
        UserError: As `check_prefix`.
    """
    ids = tuple(tokens.windows[0, :count].tolist())
    check_prefix(tokens, ids)
    return ids


def check_prefix(tokens: TokenSet, prefix: tuple[int, ...]) -> None:
    """Check that every window begins with a prefix and goes on behind it.

    Raises:
        UserError: A prefix as long as a window, or how many windows begin otherwise, and where they come from.
    """
    if len(prefix) >= tokens.length:
        raise UserError(
            f"a prefix of {len(prefix)} tokens leaves nothing of the {tokens.name} set's windows, which have "
            f"{tokens.length}; give a shorter `prefix`"
        )
    equal = tokens.windows[:, : len(prefix)] == torch.tensor(prefix, dtype=torch.long)
    others = (~equal.all(1)).nonzero().flatten().tolist()
    if others:
        sources = list(dict.fromkeys(tokens.sources[i] for i in others))
        shown = ", ".join(sources[:_NAMED]) + (", …" if len(sources) > _NAMED else "")
        raise UserError(
            f"{len(others)} of {len(tokens)} windows of the {tokens.name} set do not begin with the prefix "
            f"{list(prefix)} ({shown}): keys and values that are computed once must fit every window; give "
            f"`prefix` {int(equal.all(0).long().cumprod(0).sum())}, or windows that begin alike (`bos` each)"
        )


class PrefixedBlock(nn.Module):
    """A block that takes the positions of a prefix from the float model.

    A block in which nothing is low computes the prefix itself: it is the float model's, to the last bit.

    Attributes:
        block: What all other positions go through.
        prefix: What the prefix leaves in it.
        is_float: Whether nothing in the block is low.
    """

    def __init__(self, block: nn.Module, index: int, prefix: BlockPrefix) -> None:
        """Wrap a block.

        Args:
            block: Quantized or in float.
            index: Of the block.
            prefix: Of this block, in the dtype that it is run in.
        """
        super().__init__()
        self.block, self.prefix, self._index = block, prefix, index
        self.is_float = not any(isinstance(m, QuantLinear | QuantProducts | QuantCache) for m in block.modules())

    def forward(self, hidden_states: Tensor, **arguments: Any) -> Tensor:
        """(windows, tokens, hidden) to the same, as transformers calls a decoder layer.

        Raises:
            UserError: Sequences that do not begin with the prefix, or end in it without a cache to go on from.
        """
        cache: Cache | None = arguments.get("past_key_values")
        first = 0 if cache is None else cache.get_seq_length(self._index)
        windows, tokens, _ = hidden_states.shape
        count = min(max(self.prefix.states.shape[1] - first, 0), tokens)
        if count:
            self._check(hidden_states, first, count, ends=cache is None and count == tokens)
        if not count or self.is_float:
            return self.block(hidden_states, **arguments)
        cache = DynamicCache() if cache is None else cache
        here = slice(first, first + count)
        keys, values = (x[:, :, here].expand(windows, -1, -1, -1) for x in (self.prefix.keys, self.prefix.values))
        cache.update(keys, values, self._index)
        front = self.prefix.states[:, here].expand(windows, -1, -1)
        if count == tokens:
            return front
        rest = self.block(hidden_states[:, count:], **_behind(arguments, first, count, tokens, cache))
        return torch.cat([front, rest], 1)

    def _check(self, hidden_states: Tensor, first: int, count: int, *, ends: bool) -> None:
        """Refuse sequences that the prefix does not fit."""
        length = self.prefix.states.shape[1]
        if ends:
            raise UserError(f"{count} tokens are no longer than the plan's prefix of {length}; give longer windows")
        if self.prefix.entrance is None:
            return
        # An embedding depends on nothing but its token.
        expected = self.prefix.entrance[:, first : first + count]
        others = (hidden_states[:, :count] != expected).any(-1).any(-1).nonzero().flatten().tolist()
        if others:
            raise UserError(
                f"{len(others)} of {len(hidden_states)} sequences (the first: {others[0]}) do not begin with the "
                f"{length} tokens that the plan computes in float; begin windows and prompts with them (`bos` each), "
                "or plan without `prefix`"
            )

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"prefix of {self.prefix.states.shape[1]} in float"


def _behind(arguments: dict[str, Any], first: int, count: int, tokens: int, cache: Cache) -> dict[str, Any]:
    """The arguments of a block for all but the first ``count`` of its ``tokens``, which begin at position ``first``."""
    mask: Tensor | None = arguments["attention_mask"]
    positions: Tensor = arguments["position_ids"]
    if mask is None:
        # Plain causality is left to the kernel, which would take the first query for that of the first key.
        causal = torch.ones(tokens, first + tokens, dtype=torch.bool, device=positions.device)
        mask = causal.tril(first).expand(1, 1, -1, -1)
    behind = arguments | {
        "attention_mask": mask[:, :, count:],
        "position_ids": positions[:, count:],
        "past_key_values": cache,
    }
    if "position_embeddings" in arguments:  # families that embed positions have none
        behind["position_embeddings"] = tuple(x[:, count:] for x in arguments["position_embeddings"])
    return behind
