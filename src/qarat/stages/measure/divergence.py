"""Divergence: how far a quantized model's predictions lie from float's on the same tokens.

Perplexity asks how likely the one right token is, and what is lost on some tokens is hidden by what is won on others.
The divergence asks about the whole distribution and is never negative, so it sees damage that perplexity does not; it
needs no right answer, only the float model. Both models are walked side by side: one block of each in memory, and the
hidden states of both.
"""

from __future__ import annotations

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
ROWS = 64  # tokens whose logits of both models are in memory at once, in float64


class _Compared(NamedTuple):
    """Every predicted token, one after the other.

    Attributes:
        window: Index of its window, int64.
        read: Tokens of the window in front of it, int64.
        nats: Divergence, float64.
        agrees: Whether both models hold the same token likeliest, bool.
    """

    window: Tensor
    read: Tensor
    nats: Tensor
    agrees: Tensor


@torch.no_grad()
def measure_divergence(
    model: Model, base: Model, tokens: TokenSet, *, label: str, plan: str = "", progress: Progress = no_progress
) -> Divergence:
    """Measure a quantized model against the float model it was made from, block by block.

    Args:
        model: Quantized; float gives zero, exactly.
        base: The float model.
        tokens: The report set.
        label: What is evaluated.
        plan: Content hash of the plan behind it.
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
    pair = base, model
    hidden = [[m.embed(batch) for batch in tokens.batches(m.runtime.batch_tokens)] for m in pair]
    stage = f"divergence {label}"
    progress(stage, 0, model.blocks + 1)
    for index in range(model.blocks):
        for walked, states in zip(pair, hidden, strict=True):
            block = walked.block(index)
            states[:] = [walked.run_block(index, block, batch) for batch in states]
        progress(stage, index + 1, model.blocks + 1)
    ends = [torch.cat(states) for states in hidden]
    found = _compare(base, model, ends[0], ends[1], tokens)
    progress(stage, model.blocks + 1, model.blocks + 1)
    return _record(base, model, ends, tokens, found, label, plan)


def _compare(base: Model, model: Model, theirs: Tensor, ours: Tensor, tokens: TokenSet) -> _Compared:
    """Go through every predicted token.

    Args:
        base: The float model, for norm and head.
        model: The other.
        theirs: (windows, length, hidden) of the float model behind its last block.
        ours: The same of the other model.
        tokens: What is predicted.
    """
    where = (tokens.wanted != NOTHING).nonzero()
    nats: list[Tensor] = []
    agrees: list[Tensor] = []
    for rows in where.split(ROWS):
        window, position = rows.to(ours.device).unbind(1)
        p, q = (m.logits(h[window, position]).double().log_softmax(-1) for m, h in ((base, theirs), (model, ours)))
        nats.append((p.exp() * (p - q)).sum(-1).cpu())
        agrees.append((p.argmax(-1) == q.argmax(-1)).cpu())
    return _Compared(where[:, 0], where[:, 1] + 1, torch.cat(nats), torch.cat(agrees))


def _record(
    base: Model, model: Model, ends: list[Tensor], tokens: TokenSet, found: _Compared, label: str, plan: str
) -> Divergence:
    """The record of what was compared."""
    if not found.nats.isfinite().all():
        window = int(found.window[~found.nats.isfinite()][0])
        raise UserError(f"{label}: the divergence in window {window} ({tokens.sources[window]}) is no finite number")
    sums = torch.zeros(len(tokens), dtype=torch.float64).index_add_(0, found.window, found.nats)
    agreeing = torch.zeros(len(tokens), dtype=torch.long).index_add_(0, found.window, found.agrees.long())
    ordered = found.nats.sort().values
    worst = found.nats.argsort(descending=True, stable=True)[:WORST].tolist()
    return Divergence(
        label,
        model.provenance(tokens.fingerprint, tokens.convention),
        plan,
        tuple(sums.tolist()),
        tuple(agreeing.tolist()),
        tokens.predicted,
        tokens.sources,
        float(ordered[-(-99 * len(ordered) // 100) - 1]),
        tuple(_describe(base, model, ends, tokens, found, index) for index in worst),
        _bins(found),
    )


def _describe(
    base: Model, model: Model, ends: list[Tensor], tokens: TokenSet, found: _Compared, index: int
) -> DivergentToken:
    """One token in words, with what both models held likeliest."""
    window, read = int(found.window[index]), int(found.read[index])
    choices: list[tuple[str, float]] = []
    for m, states in ((base, ends[0]), (model, ends[1])):
        probability, token = m.logits(states[window, read - 1]).double().softmax(-1).max(-1)
        choices.append((_text(model, [int(token)]), float(probability)))
    context = tokens.windows[window, max(0, read - CONTEXT) : read].tolist()
    next_token = _text(model, [int(tokens.wanted[window, read - 1])])
    divergence, source = float(found.nats[index]), tokens.sources[window]
    return DivergentToken(divergence, window, read, source, _text(model, context), next_token, *choices[0], *choices[1])


def _text(model: Model, ids: list[int]) -> str:
    tokenizer: Any = model.tokenizer
    return tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def _bins(found: _Compared) -> tuple[PositionBin, ...]:
    """By powers of two: what is far from the beginning differs little from position to position."""
    bins: list[PositionBin] = []
    first, end = 1, int(found.read.max())
    while first <= end:
        last = min(2 * first - 1, end)
        inside = (found.read >= first) & (found.read <= last)
        if count := int(inside.sum()):
            agreement = float(found.agrees[inside].double().mean())
            bins.append(PositionBin(first, last, count, float(found.nats[inside].mean()), agreement))
        first = last + 1
    return tuple(bins)
