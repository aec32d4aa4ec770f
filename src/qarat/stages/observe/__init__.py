"""Observing: one pass that measures every stream of a model.

Everything is streaming: memory grows with channels, not with tokens. Hooks and attention watchers live inside a
context manager, so that no block keeps one whatever happens.

A stream is taken window by window, so that the batch size cannot show in a sum, and a window in pieces, so that what
is looked at ten times over stays in the processor's cache. The attention probabilities, which the fused kernel never
shows, are computed piece by piece beside it. `benchmarks/observing.py` measures what all this costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from qarat.ground.runtime import Progress, no_progress
from qarat.maths.histograms import EDGES
from qarat.model.attention import CACHE, WATCHER
from qarat.model.model import Model
from qarat.model.prefixes import leading_tokens
from qarat.model.tokens import TokenSet
from qarat.stages.observe.collectors import BlockCollectors, Collector, probability_pieces
from qarat.values.records.streams import ActivationStats, StreamStats
from qarat.values.roles import Role

SAMPLED_WINDOWS = 16
STAGE = "observe"  # what progress is told


class Watch(NamedTuple):
    """What is observed.

    Attributes:
        attention: Whether the operands of the attention products are.
        prefix: So many tokens in front of each window are not.
        sampled: Elements of so many windows, from the first on, go into the histograms of magnitudes.
    """

    attention: bool
    prefix: int
    sampled: int


Collect = Callable[[Model, TokenSet, Watch, Progress], Iterator[Sequence[Collector]]]
"""Gives, block by block, the collectors of all streams, which have seen every window of a set."""


def observe(
    model: Model,
    tokens: TokenSet,
    *,
    attention: bool = True,
    prefix: int = 0,
    sampled_windows: int = SAMPLED_WINDOWS,
    collect: Collect | None = None,
    progress: Progress = no_progress,
) -> ActivationStats:
    """Measure every stream of a float model in one pass.

    Args:
        model: In float.
        tokens: The calibration set.
        attention: Whether to observe the operands of the attention products and what goes into the cache too; the
            probabilities are then computed once more, beside the fused kernel.
        prefix: So many tokens in front of each window are left out of every statistic, as queries and as keys.
        sampled_windows: The elements of so many windows, from the first on, go into the histograms of magnitudes; at
            least 1, and all windows where there are fewer.
        collect: Goes through the windows; default `collect_here`.
        progress: Called after every block.

    Raises:
        UserError: NaN or Inf met in a stream (names stream, window and position); windows that do not begin with the
            same ``prefix`` tokens, or are not longer.
        ValueError: No window would be sampled.
    """
    if sampled_windows < 1:
        raise ValueError(f"histograms need a window to sample, not {sampled_windows}")
    model.require_float("profile")
    left_out = leading_tokens(tokens, prefix)
    sampled = min(sampled_windows, tokens.windows.shape[0])
    streams: dict[str, StreamStats] = {}
    for collectors in (collect or collect_here)(model, tokens, Watch(attention, prefix, sampled), progress):
        for collector in collectors:
            streams[collector.name] = collector.finish(tokens, model)
    windows, length = tokens.windows.shape
    provenance = model.provenance(tokens.fingerprint, tokens.convention)
    return ActivationStats(provenance, windows, length, sampled, EDGES.clone(), streams, left_out)


def collect_here(
    model: Model, tokens: TokenSet, watch: Watch, progress: Progress, first: int = 0
) -> Iterator[Sequence[Collector]]:
    """Walk a model and watch it, in this process (a `Collect`).

    Args:
        model: In float.
        tokens: Windows that go through it.
        watch: What is observed.
        progress: Called after every block.
        first: Index of the first window, where these are part of a larger set.

    Raises:
        UserError: NaN or Inf met in a stream.
    """
    hidden = model.enter(tokens.batches(model.runtime.batch_tokens))
    progress(STAGE, 0, model.blocks)
    for index, block in model.walk():
        seen = BlockCollectors(f"{model.family.blocks}.{index}", index, watch.sampled, watch.prefix)
        seen.first_window = first
        with _watched(block, model, seen, watch.attention), torch.no_grad():
            for j, states in enumerate(hidden):
                hidden[j] = model.run_block(index, block, states)
                seen.see(Role.BLOCK_OUTPUT, hidden[j])
                seen.first_window += states.shape[0]
        yield tuple(seen.collectors.values())
        progress(STAGE, index + 1, model.blocks)


class _CacheWatcher(nn.Module):
    """Shows what goes into the cache (protocol `qarat.model.attention.KeyValueCache`), and leaves it as it is."""

    def __init__(self, seen: BlockCollectors) -> None:
        super().__init__()
        self._seen = seen

    def keys(self, k: Tensor) -> tuple[Tensor, Tensor]:
        return self._see(Role.KEY_CACHE, k)

    def values(self, v: Tensor) -> tuple[Tensor, Tensor]:
        return self._see(Role.VALUE_CACHE, v)

    def _see(self, role: Role, x: Tensor) -> tuple[Tensor, Tensor]:
        self._seen.see(role, x.transpose(1, 2).flatten(2))
        return x, x


class _AttentionWatcher(nn.Module):
    """Shows the operands of the attention products (protocol `qarat.model.attention.AttentionWatcher`)."""

    def __init__(self, seen: BlockCollectors) -> None:
        super().__init__()
        self._seen = seen

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, softcap: float | None) -> None:
        self._seen.see(Role.QUERIES, q)
        self._seen.see(Role.KEYS, k)
        first = self._seen.first_token
        windows = zip(q, k, mask, strict=True)
        self._seen.see_pieces(
            Role.PROBABILITIES, (probability_pieces(*operands, scaling, softcap, first) for operands in windows)
        )
        self._seen.see(Role.VALUES, v)


@contextmanager
def _watched(block: nn.Module, model: Model, seen: BlockCollectors, attention: bool) -> Iterator[None]:
    """Show every stream of a block to its collectors while the context lasts."""

    def see_input(role: Role, _: nn.Module, operands: tuple[Tensor, ...]) -> None:
        seen.see(role, operands[0])

    def see_output(_: nn.Module, __: object, output: Tensor) -> None:
        seen.see(Role.DOWN_OUTPUT, output)

    handles: list[RemovableHandle] = []
    for stream in model.family.streams:
        first = block.get_submodule(stream.readers[0])
        handles.append(first.register_forward_pre_hook(partial(see_input, stream.role)))
    down = block.get_submodule(model.family.reader(Role.DOWN_INPUT))
    handles.append(down.register_forward_hook(see_output))
    home = block.get_submodule(model.family.attention)
    if attention:
        home.add_module(WATCHER, _AttentionWatcher(seen))
        home.add_module(CACHE, _CacheWatcher(seen))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if attention:
            delattr(home, WATCHER)
            delattr(home, CACHE)
