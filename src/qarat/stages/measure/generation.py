"""Greedy continuations: the same prompt under several models, so that a person sees what precision does to words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch

from qarat.ground.runtime import Progress
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.values.records.scores import Continuations

_PROMPT, _NEW = 40, 40  # tokens


def new_tokens(model: Model) -> int:
    """How many tokens are added to a prompt."""
    return min(_NEW, model.length // 2)


def prompt_of(model: Model, tokens: TokenSet) -> list[int]:
    """The beginning of the first window, as a prompt that leaves room for what is added."""
    return tokens.windows[0].tolist()[: min(_PROMPT, model.length - new_tokens(model))]


def continue_all(
    source: Model,
    report: TokenSet,
    models: Mapping[str, Callable[[], Model]],
    prompt: list[int],
    progress: Progress,
) -> Continuations:
    """What every model finds likeliest behind a prompt, token after token.

    Args:
        source: The float model that the others were made of.
        report: What the record is said to belong to.
        models: Label to what opens the model, float's first; one is held at a time.
        prompt: Token ids.
        progress: Called with the models done.
    """
    texts: dict[str, str] = {}
    for done, (label, opened) in enumerate(models.items()):
        progress("continue", done, len(models))
        texts[label] = _continue_greedily(opened(), prompt, new_tokens(source))
    progress("continue", len(models), len(models))
    return Continuations(source.provenance(report.fingerprint, report.convention), _as_text(source, prompt), texts)


def _continue_greedily(model: Model, prompt: list[int], count: int) -> str:
    ids = torch.tensor([prompt], device=model.runtime.device)
    module: Any = model.module()
    with torch.no_grad():
        whole = module.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0
        )
    return _as_text(model, whole[0, len(prompt) :].tolist())


def _as_text(model: Model, ids: list[int]) -> str:
    text = model.tokenizer.decode(ids, skip_special_tokens=True)
    return cast(str, text)  # a list only for a list of sequences
