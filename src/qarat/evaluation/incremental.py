"""Measuring many plans of one model without running a shared prefix twice.

Two plans that agree on the first k blocks agree on the hidden states there. So the states at block boundaries are kept
under a key that names every scheme in front of them, and a plan is measured from the deepest boundary that is known.
What is kept has a bound in bytes; meeting it changes the cost, never the result. The cost is counted in block × token
forwards, the unit of DESIGN section 7.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from qarat.data import TokenSet
from qarat.evaluation.perplexity import evaluation_of, window_nats
from qarat.models import Model
from qarat.plans import Plan
from qarat.records import Evaluation
from qarat.schemes import Scheme

__all__ = ["Meter"]

Prefix = tuple[str, ...]


class Meter:
    """Measures plans of one model on one token set.

    Attributes:
        forwards: Block × token forwards spent so far.
    """

    def __init__(
        self,
        model: Model,
        tokens: TokenSet,
        build: Callable[[int, Mapping[str, Scheme]], nn.Module],
        *,
        keep_bytes: int | None = None,
    ) -> None:
        """Prepare; nothing is run yet.

        Args:
            model: In float.
            tokens: The selection set.
            build: A block under its schemes, as `qarat.conversion.build_block` makes it.
            keep_bytes: Bound on the hidden states kept; default a quarter of the runtime's memory.
        """
        self.forwards = 0
        self._model = model
        self._tokens = tokens
        self._batches = tokens.batches(model.runtime.batch_tokens)
        self._targets = tokens.target_batches(model.runtime.batch_tokens)
        self._build = build
        self._bound = model.runtime.memory_bytes() // 4 if keep_bytes is None else keep_bytes
        self._kept: OrderedDict[Prefix, list[Tensor]] = OrderedDict()

    @torch.no_grad()
    def measure(self, plan: Plan, label: str) -> Evaluation:
        """Negative log-likelihood of the token set under a plan, whatever was measured before.

        Args:
            plan: For this model; not checked here.
            label: Of the evaluation.

        Raises:
            UserError: If a window's loss is NaN or Inf.
        """
        keys = [_block_key(plan.block(index)) for index in range(self._model.blocks)]
        first = max((k for k in range(len(keys)) if tuple(keys[:k]) in self._kept), default=-1)
        if first < 0:
            first, hidden = 0, [self._model.embed(batch) for batch in self._batches]
            self._keep((), hidden)
        else:
            hidden = self._kept[tuple(keys[:first])]
            self._kept.move_to_end(tuple(keys[:first]))
        for index in range(first, self._model.blocks):
            block = self._build(index, plan.block(index))
            hidden = [self._model.run_block(index, block, states) for states in hidden]
            self.forwards += self._tokens.windows.numel()
            if index + 1 < self._model.blocks:
                self._keep(tuple(keys[: index + 1]), hidden)
        pairs = zip(hidden, self._targets, strict=True)
        nats = torch.cat([window_nats(self._model, states, targets) for states, targets in pairs])
        return evaluation_of(self._model, self._tokens, nats, label=label)

    def _keep(self, key: Prefix, hidden: list[Tensor]) -> None:
        self._kept[key] = hidden
        self._kept.move_to_end(key)
        while self._kept and sum(t.nbytes for states in self._kept.values() for t in states) > self._bound:
            self._kept.popitem(last=False)


def _block_key(schemes: Mapping[str, Scheme]) -> str:
    return ";".join(map(str, schemes.values()))
