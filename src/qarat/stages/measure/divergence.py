"""Divergence: how far a quantized model's predictions lie from float's on the same tokens.

Perplexity asks how likely the one right token is, and what is lost on some tokens is hidden by what is won on others.
The divergence asks about the whole distribution and is never negative, so it sees damage that perplexity does not; it
needs no right answer, only the float model. Both models are walked side by side: one block of each in memory, and the
hidden states of both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress, no_progress
from qarat.model.model import Model
from qarat.model.tokens import NOTHING, TokenSet
from qarat.values.fingerprints import brief, source_of
from qarat.values.records.scores import Divergence, DivergentToken, PositionBin

WORST = 10  # tokens that are shown
CONTEXT = 24  # tokens in front of each
ROWS = 32  # tokens whose logits of both models are in memory at once, in float64


STAGE = "divergence"  # what progress is told


class TokenDivergences(NamedTuple):
    """What came of every predicted token, in their order.

    Attributes:
        nats: Divergence, (predicted,) float64.
        agrees: Whether both models hold the same token likeliest, (predicted,) bool.
        worst: The `WORST` most divergent, the worst first.
    """

    nats: Tensor
    agrees: Tensor
    worst: Sequence[DivergentToken]


CompareModels = Callable[[Model, Model, TokenSet, Progress], TokenDivergences]
"""Compares a quantized model and its float model on every predicted token of a set."""


class _Compared(NamedTuple):
    """Both models, and every predicted token, one after the other.

    Attributes:
        pair: The float model and the other.
        ends: Of each, its states behind the last block, (windows, length, hidden).
        tokens: What is predicted.
        window: Index of a token's window, int64.
        read: Tokens of the window in front of it, int64.
        nats: Divergence, float64.
        agrees: Whether both models hold the same token likeliest, bool.
    """

    pair: tuple[Model, Model]
    ends: tuple[Tensor, Tensor]
    tokens: TokenSet
    window: Tensor
    read: Tensor
    nats: Tensor
    agrees: Tensor


def measure_divergence(
    model: Model,
    base: Model,
    tokens: TokenSet,
    *,
    label: str,
    plan: str = "",
    compare: CompareModels | None = None,
    progress: Progress = no_progress,
) -> Divergence:
    """Measure a quantized model against the float model it was made from, block by block.

    Args:
        model: Quantized; float gives zero, exactly.
        base: The float model.
        tokens: The report set.
        label: What is evaluated.
        plan: Content hash of the plan behind it.
        compare: Goes through the windows; default `compare_here`.
        progress: Called after every block.

    Raises:
        UserError: If the two are not one model, or not in the same arithmetic; if a divergence is NaN or Inf.
    """
    base.require_float("compare with")
    if source_of(model.fingerprint) != source_of(base.fingerprint):
        theirs, ours = brief(base.fingerprint), brief(model.fingerprint)
        raise UserError(f"{label} was made from the model {ours}, the float model given is {theirs}; give that one")
    if model.runtime.dtype != base.runtime.dtype:
        raise UserError(f"{label} is computed in {model.runtime.dtype}, float in {base.runtime.dtype}; use one dtype")

    def told(stage: str, done: int, total: int) -> None:
        progress(f"{stage} {label}", done, total)

    compared = (compare or compare_here)(model, base, tokens, told)
    return _record(model, tokens, compared, label, plan)


@torch.no_grad()
def compare_here(model: Model, base: Model, tokens: TokenSet, progress: Progress, first: int = 0) -> TokenDivergences:
    """Walk both models side by side, in this process (a `CompareModels`).

    Args:
        model: Quantized.
        base: The float model.
        tokens: The report set.
        progress: Called after every block.
        first: Index of the first window, where these are part of a larger set.
    """
    pair = base, model
    hidden = [[m.embed(batch) for batch in tokens.batches(m.runtime.batch_tokens)] for m in pair]
    progress(STAGE, 0, model.blocks + 1)
    for index in range(model.blocks):
        for walked, states in zip(pair, hidden, strict=True):
            block = walked.block(index)
            states[:] = [walked.run_block(index, block, batch) for batch in states]
        progress(STAGE, index + 1, model.blocks + 1)
    compared = _compare(pair, (torch.cat(hidden[0]), torch.cat(hidden[1])), tokens)
    worst = compared.nats.argsort(descending=True, stable=True)[:WORST].tolist()
    described = [_describe(compared, index, first) for index in worst]
    progress(STAGE, model.blocks + 1, model.blocks + 1)
    return TokenDivergences(compared.nats, compared.agrees, described)


def _compare(pair: tuple[Model, Model], ends: tuple[Tensor, Tensor], tokens: TokenSet) -> _Compared:
    """Go through every predicted token."""
    where = (tokens.wanted != NOTHING).nonzero()
    # Places for all results beforehand: small tensors in between would keep malloc from giving back the large ones.
    nats, agrees = torch.empty(len(where), dtype=torch.float64), torch.empty(len(where), dtype=torch.bool)
    for start in range(0, len(where), ROWS):
        rows = slice(start, start + ROWS)
        window, position = where[rows].to(ends[1].device).unbind(1)
        # ln p of float and ln q of the other, (rows, vocabulary); the divergence is the sum of p · (ln p − ln q).
        p, q = (m.logits(h[window, position]).double().log_softmax(-1) for m, h in zip(pair, ends, strict=True))
        nats[rows] = (p.exp() * (p - q)).sum(-1)
        agrees[rows] = p.argmax(-1) == q.argmax(-1)
    return _Compared(pair, ends, tokens, where[:, 0], where[:, 1] + 1, nats, agrees)


def _record(model: Model, tokens: TokenSet, compared: TokenDivergences, label: str, plan: str) -> Divergence:
    """The record of what was compared."""
    nats, (windows, positions) = compared.nats, (tokens.wanted != NOTHING).nonzero().unbind(1)
    if not nats.isfinite().all():
        window = int(windows[~nats.isfinite()][0])
        raise UserError(f"{label}: the divergence in window {window} ({tokens.sources[window]}) is no finite number")
    sums = torch.zeros(len(tokens), dtype=torch.float64).index_add_(0, windows, nats)
    agreeing = torch.zeros(len(tokens), dtype=torch.long).index_add_(0, windows, compared.agrees.long())
    ordered = nats.sort().values
    return Divergence(
        label,
        model.provenance(tokens.fingerprint, tokens.convention),
        plan,
        tuple(sums.tolist()),
        tuple(agreeing.tolist()),
        tokens.predicted,
        tokens.sources,
        float(ordered[-(-99 * len(ordered) // 100) - 1]),
        tuple(compared.worst),
        _bins(positions + 1, compared),
    )


def _describe(compared: _Compared, index: int, first: int) -> DivergentToken:
    """One token in words, with what both models held likeliest; ``first`` as of `compare_here`."""
    model, tokens = compared.pair[1], compared.tokens
    window, read = int(compared.window[index]), int(compared.read[index])
    choices: list[tuple[str, float]] = []
    for m, states in zip(compared.pair, compared.ends, strict=True):
        probability, token = m.logits(states[window, read - 1]).double().softmax(-1).max(-1)
        choices.append((_text(model, [int(token)]), float(probability)))
    context = tokens.windows[window, max(0, read - CONTEXT) : read].tolist()
    where = first + window, read, tokens.sources[window]
    texts = _text(model, context), _text(model, [int(tokens.wanted[window, read - 1])])
    return DivergentToken(float(compared.nats[index]), *where, *texts, *choices[0], *choices[1])


def _text(model: Model, ids: list[int]) -> str:
    tokenizer: Any = model.tokenizer
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _bins(read: Tensor, compared: TokenDivergences) -> tuple[PositionBin, ...]:
    """By powers of two of the tokens read: what is far from the beginning differs little from position to position."""
    bins: list[PositionBin] = []
    first, end = 1, int(read.max())
    while first <= end:
        last = min(2 * first - 1, end)
        inside = (read >= first) & (read <= last)
        if count := int(inside.sum()):
            agreement = float(compared.agrees[inside].double().mean())
            bins.append(PositionBin(first, last, count, float(compared.nats[inside].mean()), agreement))
        first = last + 1
    return tuple(bins)
