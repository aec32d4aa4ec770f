"""A model as the lm-evaluation-harness takes one: its own `HFLM`, which tells how far it is and cuts nothing.

What it computes is left to the harness: a float model's numbers are those that `HFLM` gives the folder, bit by bit.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from qarat.ground.errors import UserError
from qarat.ground.runtime import Progress
from qarat.model.layers import QuantLinear, QuantProducts
from qarat.model.model import Model
from qarat.stages.measure.tasks.harness import import_harness

BATCH = 16
"""Log-likelihoods computed together, those of about one length; not part of the result beyond rounding."""


def wrap_model(model: Model, stage: str, progress: Progress) -> Any:
    """A model as the harness takes one.

    Questions that are longer than its windows, the room for a written answer included, raise a `UserError` when they
    are asked, with the longest of each task; so do answers to be written by a model without EOS. Documents of rolling
    log-likelihoods may have any length.

    Args:
        model: In float or quantized; all its blocks are in memory at once.
        stage: What is done, for ``progress``.
        progress: Called as questions are answered; of rolling log-likelihoods, windows.

    Raises:
        UserError: The harness is not installed.
    """
    # Where there is no padding token the harness adds one, which the embedding may have no row for.
    tokenizer = copy.deepcopy(model.tokenizer)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.bos_token
    module = model.module()
    return _reporting(model, _Steps(stage, progress))(
        pretrained=module,
        tokenizer=tokenizer,
        backend="causal",
        # Shorter questions are padded behind, which attention never sees, but scales of several tokens would.
        batch_size=1 if _joins_tokens(module) else BATCH,
        max_length=model.length,
        device=model.runtime.device,
    )


Answer = Callable[[str, Sequence[Any], Progress], Sequence[Any]]
"""Gives the harness's answers, in their order, to requests of one kind (a method's name): those of `wrap_model`."""


def share_model(answer: Answer, stage: str, progress: Progress) -> Any:
    """A model that others ask, as the harness takes one.

    Args:
        answer: Asks them.
        stage: What is done, for ``progress``.
        progress: Called as questions are answered.

    Raises:
        UserError: The harness is not installed.
    """
    base: Any = import_harness("lm_eval.api.model").LM

    def told(_: str, done: int, total: int) -> None:
        progress(stage, done, total)

    class Shared(base):
        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return list(answer("loglikelihood", requests, told))

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return list(answer("loglikelihood_rolling", requests, told))

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            return list(answer("generate_until", requests, told))

    return Shared()


def _joins_tokens(module: nn.Module) -> bool:
    """Whether any scale of a model is found in several tokens at hand."""
    layers = list(module.modules())
    linear = any(layer.scheme.joins_tokens for layer in layers if isinstance(layer, QuantLinear))
    return linear or any(x.qk.joins_tokens or x.av.joins_tokens for x in layers if isinstance(x, QuantProducts))


class _Steps:
    """How far the harness is with what it asks for at a time."""

    def __init__(self, stage: str, progress: Progress) -> None:
        self._stage, self._progress = stage, progress
        self._done = self._total = 0

    @contextlib.contextmanager
    def of(self, total: int) -> Iterator[None]:
        """Begin with so many steps, and come to their end."""
        self._done, self._total = 0, total
        self._progress(self._stage, 0, total)
        yield
        self._progress(self._stage, total, total)

    def add(self, count: int) -> None:
        self._done += count
        self._progress(self._stage, self._done, self._total)


def _reporting(model: Model, steps: _Steps) -> Any:
    """The harness's class with its ways in watched."""
    base: Any = import_harness("lm_eval.models.huggingface").HFLM

    class Reporting(base):
        pending: Any = ()

        def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self.pending = requests
            with steps.of(len(requests)):
                return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            self.pending = ()  # it cuts documents into windows that fit
            windows = (math.ceil(len(self.tok_encode(request.args[0])) / self.max_length) for request in requests)
            with steps.of(sum(windows)):
                return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            _require_eos(model, requests)
            _refuse_cut(model, ((request, *_prompt_and_answer(self, request)) for request in requests))
            answers: list[str] = []
            with steps.of(len(requests)):
                # One by one: padding in front would count in dynamic scales, and push a prefix from its place.
                for request in requests:
                    answers += super().generate_until([request], disable_tqdm=True)
                    steps.add(1)
            return answers

        def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, **more: Any) -> Any:
            # The last token is predicted and never read.
            lengths = (len(context) + len(continuation) - 1 for _, context, continuation in requests)
            _refuse_cut(model, ((request, length, 0) for request, length in zip(self.pending, lengths, strict=False)))
            return super()._loglikelihood_tokens(requests, disable_tqdm=True, **more)

        def _model_call(self, inps: Any, *rest: Any, **more: Any) -> Any:
            answer = super()._model_call(inps, *rest, **more)
            steps.add(len(inps))  # where answers are shared, fewer are run than asked
            return answer

    return Reporting


def _require_eos(model: Model, requests: Iterable[Any]) -> None:
    """Refuse answers that would have no end: the harness always stops at EOS.

    Raises:
        UserError: If the tokenizer has none; with the names of the tasks.
    """
    if model.tokenizer.eos_token_id is None:
        tasks = ", ".join(dict.fromkeys(request.task_name for request in requests))
        raise UserError(
            f"{model.path.name} has no EOS, by which the harness ends what a model writes; leave these tasks out, or "
            f"name an eos_token in tokenizer_config.json: {tasks}"
        )


def _prompt_and_answer(lm: Any, request: Any) -> tuple[int, int]:
    """Tokens of a prompt as the harness encodes it, and the room that it keeps for the answer."""
    prompt, how = request.args
    settings = import_harness("lm_eval.models.utils").normalize_gen_kwargs(how, lm.max_gen_toks)
    return lm.tok_batch_encode([prompt])[0].shape[1], settings["max_gen_toks"]


def _refuse_cut(model: Model, needs: Iterable[tuple[Any, int, int]]) -> None:
    """Refuse requests that the harness would cut.

    Args:
        model: That is asked.
        needs: The harness's requests, each with the tokens that it reads and those that may be added.

    Raises:
        UserError: The longest request of every task that has such.
    """
    longest: dict[str, tuple[int, str]] = {}
    for request, reads, adds in needs:
        if reads + adds > model.length:
            more = f" and asks for up to {adds} more" if adds else ""
            question = f"{request.task_name}: question {request.doc_id} has {reads} tokens to read{more}"
            longest[request.task_name] = max(longest.get(request.task_name, (0, "")), (reads + adds, question))
    if longest:
        raise UserError(
            f"{model.path.name} was trained for {model.length} tokens at once, and the harness would cut longer "
            "questions silently; leave these tasks out:\n  " + "\n  ".join(question for _, question in longest.values())
        )
