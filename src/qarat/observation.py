"""Observing: one pass that measures every stream of a model (DESIGN section 6).

Everything is streaming: memory grows with channels, not with tokens. Hooks and attention taps live inside a context
manager, so that no block keeps one whatever happens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from qarat.attention import PRODUCTS
from qarat.data import TokenSet
from qarat.errors import UserError
from qarat.models import Model
from qarat.records import ActivationStats, Peak, StreamStats
from qarat.workspace import Progress, no_progress

__all__ = ["EDGES", "observe"]

PEAKS = 8
SAMPLED_WINDOWS = 16
# Eight bins an octave from 2^-24 to 2^16, and one for everything smaller: a bin is 9 % wide, finer than any 8-bit step.
EDGES = torch.cat([torch.zeros(1), torch.exp2(torch.arange(-24 * 8, 16 * 8 + 1, dtype=torch.float64) / 8).float()])


def observe(
    model: Model,
    tokens: TokenSet,
    *,
    attention: bool = True,
    progress: Progress = no_progress,
) -> ActivationStats:
    """Measure every stream of a float model in one pass.

    Args:
        model: In float.
        tokens: The calibration set.
        attention: Whether to observe the operands of the attention products too; this computes attention in two
            products instead of one fused kernel.
        progress: Called after every block.

    Raises:
        UserError: NaN or Inf met in a stream (names stream, window and position).
    """
    batches = tokens.batches(model.runtime.batch_tokens)
    hidden = [model.embed(batch) for batch in batches]
    sampled = min(SAMPLED_WINDOWS, tokens.windows.shape[0])
    streams: dict[str, StreamStats] = {}
    progress("observe", 0, model.blocks)
    for index, block in model.walk():
        collectors: dict[str, _Collector] = {}
        window = 0
        for j, states in enumerate(hidden):
            # Bound now, not when called: the loop moves on.
            def see(kind: str, x: Tensor, first: int = window) -> None:
                if kind not in collectors:
                    collectors[kind] = _Collector(f"{model.family.blocks}.{index}.{kind}", index, kind, x)
                collectors[kind].update(x, first, sampled)

            with _watched(block, model, see, attention), torch.no_grad():
                hidden[j] = model.run_block(index, block, states)
                see("block_out", hidden[j])
            window += states.shape[0]
        for collector in collectors.values():
            streams[collector.name] = collector.finish(tokens, model)
        progress("observe", index + 1, model.blocks)
    windows, length = tokens.windows.shape
    provenance = model.provenance(tokens.fingerprint, tokens.convention)
    return ActivationStats(provenance, windows, length, sampled, EDGES.clone(), streams)


class _ObservingProducts(nn.Module):
    """The attention products in float, each operand shown before it is used."""

    def __init__(self, see: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self._see = see

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        self._see("q", q.transpose(1, 2))
        self._see("k", k.transpose(1, 2))
        return q @ k.transpose(-1, -2)

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        self._see("p", p.transpose(1, 2))
        self._see("v", v.transpose(1, 2))
        return p @ v


@contextmanager
def _watched(block: nn.Module, model: Model, see: Callable[[str, Tensor], None], attention: bool) -> Iterator[None]:
    """Show every stream of a block to ``see(kind, tensor)`` while the context lasts."""
    handles = []
    for stream in model.family.streams:
        first = block.get_submodule(stream.readers[0])
        handles.append(first.register_forward_pre_hook(lambda _, args, kind=stream.name: see(kind, args[0])))
    last = block.get_submodule(model.family.projections[-1])
    handles.append(last.register_forward_hook(lambda _, __, output: see("down_out", output)))
    home = block.get_submodule(model.family.attention)
    if attention:
        home.add_module(PRODUCTS, _ObservingProducts(see))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if attention:
            delattr(home, PRODUCTS)


class _Place(NamedTuple):
    """Where a large value stands, before its token is named."""

    value: float
    window: int
    position: int
    channel: int


class _Collector:
    """Streaming statistics of one stream; tensors are (windows, tokens, channels) or (windows, tokens, heads, channels)."""

    def __init__(self, name: str, block: int, kind: str, like: Tensor) -> None:
        self.name, self.block, self.kind = name, block, kind
        self.width = like.shape[-1]
        # Channels of attention probabilities are key positions: their statistics would say nothing.
        self.by_channel = kind != "p"
        device = like.device
        self.channel_min = torch.full((self.width,), math.inf, device=device)
        self.channel_max = torch.full((self.width,), -math.inf, device=device)
        self.square_sum = torch.zeros(self.width, dtype=torch.float64, device=device)
        self.rows = 0
        self.tokens = 0
        bins = len(EDGES) - 1
        self.histogram = torch.zeros(bins, dtype=torch.int64)
        self.token_maxima = torch.zeros(bins, dtype=torch.int64)
        self.token_energies = torch.zeros(bins, dtype=torch.int64)
        self.ratios: list[Tensor] = []
        self.median_maxima: list[Tensor] = []
        self.median_energies: list[Tensor] = []
        self.peaks: list[_Place] = []

    def update(self, x: Tensor, first_window: int, sampled: int) -> None:
        """Take one batch of windows, of which the first has index ``first_window``."""
        x = x.detach().float()
        windows, tokens = x.shape[:2]
        flat = x.reshape(windows, tokens, -1)
        low, high = flat.aminmax(dim=-1)
        maxima = torch.maximum(high, -low)  # (windows, tokens)
        self._check_finite(maxima, first_window)
        if self.by_channel:
            rows = x.reshape(-1, self.width)
            low, high = rows.aminmax(dim=0)
            torch.minimum(self.channel_min, low, out=self.channel_min)
            torch.maximum(self.channel_max, high, out=self.channel_max)
            squares = rows.square()
            self.square_sum += squares.sum(0).double()
            self.rows += rows.shape[0]
            energies = squares.view(windows, tokens, -1).mean(-1)
        else:
            energies = flat.square().mean(-1)
        self.tokens += windows * tokens
        medians = maxima.median(1).values
        # An all-zero stream has no spike: 0 over 0 counts as 1.
        self.ratios.append(torch.where(medians > 0, maxima.amax(1) / medians, 1.0).cpu())
        self.median_maxima.append(medians.cpu())
        self.median_energies.append(energies.median(1).values.cpu())
        self.token_maxima += _count(maxima)
        self.token_energies += _count(energies)
        if first_window < sampled:
            self.histogram += _count(flat[: sampled - first_window].abs())
        self._keep_peaks(flat, maxima, first_window)

    def _check_finite(self, maxima: Tensor, first_window: int) -> None:
        bad = (~maxima.isfinite()).nonzero()
        if len(bad):
            window, position = bad[0].tolist()
            raise UserError(
                f"NaN or Inf in the stream {self.name}, window {first_window + window}, token {position} "
                f"({len(bad)} tokens in this batch); the model overflows here: try --dtype float32, or check its weights"
            )

    def _keep_peaks(self, flat: Tensor, maxima: Tensor, first_window: int) -> None:
        values, places = maxima.flatten().topk(min(PEAKS, maxima.numel()))
        floor = abs(self.peaks[-1].value) if len(self.peaks) == PEAKS else -1.0
        for magnitude, place in zip(values.tolist(), places.tolist(), strict=True):
            if magnitude > floor:
                window, position = divmod(place, maxima.shape[1])
                token = flat[window, position]
                channel = int(token.abs().argmax())
                self.peaks.append(_Place(float(token[channel]), first_window + window, position, channel))
        # Ties are broken by place, so that the batch size cannot show.
        self.peaks = sorted(self.peaks, key=lambda p: (-abs(p.value), p.window, p.position))[:PEAKS]

    def finish(self, tokens: TokenSet, model: Model) -> StreamStats:
        """The collected statistics as a value."""
        arrays = {"histogram": self.histogram, "token_maxima": self.token_maxima, "token_energies": self.token_energies}
        if self.by_channel:
            arrays["channel_min"] = self.channel_min.cpu()
            arrays["channel_max"] = self.channel_max.cpu()
            arrays["channel_square"] = (self.square_sum / self.rows).float().cpu()
        peaks = tuple(_name_token(place, tokens, model) for place in self.peaks)
        return StreamStats(
            name=self.name,
            block=self.block,
            kind=self.kind,
            width=self.width,
            tokens=self.tokens,
            ratio=float(torch.cat(self.ratios).double().mean()),
            maximum=abs(peaks[0].value),
            typical_maximum=float(torch.cat(self.median_maxima).double().mean()),
            median_energy=float(torch.cat(self.median_energies).double().mean()),
            element_median=_histogram_median(self.histogram),
            peaks=peaks,
            arrays=arrays,
        )


def _name_token(place: _Place, tokens: TokenSet, model: Model) -> Peak:
    token = int(tokens.windows[place.window, place.position])
    text = model.tokenizer.decode([token])
    return Peak(place.value, place.window, place.position, token, text, place.channel)


def _count(values: Tensor) -> Tensor:
    """Counts of non-negative values per bin of `EDGES`, int64 on the CPU; beyond the last edge counts as the last bin."""
    # Bins are exact powers of 2^(1/8), so the logarithm finds them without a search over the edges.
    bins = (values.clamp_min(1e-30).log2() * 8).floor_().add_(24 * 8 + 1).clamp_(0, len(EDGES) - 2)
    return torch.bincount(bins.flatten().long(), minlength=len(EDGES) - 1).cpu()


def _histogram_median(counts: Tensor) -> float:
    """Geometric centre of the bin that holds the median; 0 if that is the first."""
    place = int((counts.cumsum(0) >= (counts.sum() + 1) // 2).nonzero()[0])
    return 0.0 if place == 0 else float((EDGES[place] * EDGES[place + 1]).sqrt())
