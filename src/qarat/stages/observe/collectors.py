"""Collectors: the streaming statistics of one stream, window by window and piece by piece."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.maths.histograms import CODES, bin_counts, count_magnitudes, median_of
from qarat.model.attention import capped
from qarat.model.model import Model
from qarat.model.tokens import TokenSet
from qarat.values.records.streams import Peak, StreamStats
from qarat.values.roles import Role

PEAKS = 8
# Elements of a piece. On a CPU 1 MB, which its second cache holds; on a GPU few large pieces cost less.
PIECE = {"cpu": 1 << 18, "cuda": 1 << 26}


class Piece(NamedTuple):
    """Part of a window of a stream.

    Attributes:
        x: (heads, tokens, channels); a stream without heads has one.
        token: Index of its first token in the window.
        head: Index of its first head.
    """

    x: Tensor
    token: int
    head: int


def _pieces(x: Tensor, first: int) -> Iterator[Piece]:
    """The pieces of one window (heads, tokens, channels), from its token ``first`` on."""
    # With heads, a range of tokens is scattered over memory, which costs more than the cache saves.
    tokens = max(1, PIECE[x.device.type] // x.shape[2]) if len(x) == 1 else x.shape[1]
    for token in range(first, x.shape[1], tokens):
        yield Piece(x[:, token : token + tokens], token, 0)


def probability_pieces(
    q: Tensor, k: Tensor, mask: Tensor, scaling: float, softcap: float | None, first: int
) -> Iterator[Piece]:
    """Attention probabilities of one window, from ``first`` on, in pieces (some heads, some tokens, keys)."""
    rows = max(1, PIECE[q.device.type] // k.shape[1])
    heads = max(1, rows // q.shape[1])
    for token in range(first, q.shape[1], rows):
        tokens = slice(token, token + rows)
        for head in range(0, q.shape[0], heads):
            some = slice(head, head + heads)
            keys = k[some].transpose(-1, -2)
            if softcap is None:
                scores = torch.baddbmm(mask[:, tokens], q[some, tokens], keys, alpha=scaling)
            else:
                scores = capped(q[some, tokens] @ keys * scaling, softcap) + mask[:, tokens]
            yield Piece(scores.softmax(-1, dtype=torch.float32)[..., first:], token, head)


class _Place(NamedTuple):
    """Where a large value stands, before its token is named."""

    value: float
    window: int
    position: int
    channel: int


def _order(place: _Place) -> tuple[float, ...]:
    """Sort key: the largest first, ties by place, so that the batch size cannot show."""
    return (-abs(place.value), place.window, place.position, place.channel)


class BlockCollectors:
    """The collectors of one block's streams, made as the streams are first seen.

    Attributes:
        first_window: Index of the first window of the batch that goes through the block now.
        first_token: Index of the first token of a window that counts.
        collectors: By role of the stream.
    """

    def __init__(self, home: str, block: int, sampled: int, first_token: int) -> None:
        self._home, self._block, self._sampled = home, block, sampled
        self.first_window, self.first_token = 0, first_token
        self.collectors: dict[Role, Collector] = {}

    def see(self, role: Role, x: Tensor) -> None:
        """Take a batch, (windows, tokens, channels) or (windows, heads, tokens, channels)."""
        self.see_pieces(role, (_pieces(window, self.first_token) for window in (x if x.dim() == 4 else x.unsqueeze(1))))

    def see_pieces(self, role: Role, windows: Iterable[Iterable[Piece]]) -> None:
        """Take a batch of windows, each in pieces."""
        if role not in self.collectors:
            self.collectors[role] = Collector(f"{self._home}.{role}", self._block, role, self.first_token)
        for window, pieces in enumerate(windows, self.first_window):
            self.collectors[role].take(window, pieces, sampled=window < self._sampled)


class Collector:
    """Streaming statistics of one stream, over the windows seen so far."""

    def __init__(self, name: str, block: int, role: Role, first_token: int) -> None:
        self.name, self.block, self.role, self._first_token = name, block, role, first_token
        # Channels of attention probabilities are key positions: their statistics would say nothing.
        self.by_channel = role != Role.PROBABILITIES
        self.width = 0
        # Without axes they go with any width and any device.
        self.channel_min, self.channel_max = torch.tensor(math.inf), torch.tensor(-math.inf)
        self.square_sum = torch.tensor(0.0, dtype=torch.float64)
        self.rows = 0
        self.tokens = 0
        self.histogram = torch.zeros(CODES, dtype=torch.int64)
        self.token_maxima = torch.zeros(CODES, dtype=torch.int64)
        self.token_energies = torch.zeros(CODES, dtype=torch.int64)
        self.position_sum = torch.tensor(0.0, dtype=torch.float64)
        self.ratios: list[Tensor] = []
        self.median_maxima: list[Tensor] = []
        self.median_energies: list[Tensor] = []
        self.peaks: list[_Place] = []

    def take(self, window: int, pieces: Iterable[Piece], *, sampled: bool) -> None:
        """Take one window.

        Args:
            window: Its index in the token set.
            pieces: All of it, tokens in order.
            sampled: Whether its elements go into the histogram of magnitudes.
        """
        maxima: dict[int, Tensor] = {}  # by first token, of the heads so far
        energies: dict[int, Tensor] = {}
        heads = 0
        for piece in pieces:
            x = piece.x.detach().float()
            self.width = x.shape[-1]
            heads = max(heads, piece.head + x.shape[0])
            # Not aminmax: along an axis it takes twenty times as long as both (torch 2.13, CPU).
            largest = torch.maximum(x.amax(-1), -x.amin(-1)).amax(0)
            squares = x.square()
            energy = squares.sum(-1).sum(0)
            if self.by_channel:
                self._take_channels(x, squares)
            if sampled:
                self.histogram += count_magnitudes(x)
            self._keep_peaks(window, piece, largest)
            first = piece.head == 0
            maxima[piece.token] = largest if first else torch.maximum(maxima[piece.token], largest)
            energies[piece.token] = energy if first else energies[piece.token] + energy
        self._take_tokens(window, torch.cat([*maxima.values()]), torch.cat([*energies.values()]) / (heads * self.width))

    def _take_channels(self, x: Tensor, squares: Tensor) -> None:
        self.channel_min = torch.minimum(self.channel_min, x.amin((0, 1)))
        self.channel_max = torch.maximum(self.channel_max, x.amax((0, 1)))
        self.square_sum = self.square_sum + squares.sum((0, 1)).double()
        self.rows += x.shape[0] * x.shape[1]

    def _take_tokens(self, window: int, maxima: Tensor, energies: Tensor) -> None:
        """Take the absolute maximum and the mean square of each token of a window, both (tokens,)."""
        self._check_finite(window, maxima)
        self.position_sum = self.position_sum + maxima.double()
        median = maxima.median()
        # An all-zero stream has no spike: 0 over 0 counts as 1.
        self.ratios.append(torch.where(median > 0, maxima.amax() / median, 1.0))
        self.median_maxima.append(median)
        self.median_energies.append(energies.median())
        self.token_maxima += count_magnitudes(maxima)
        self.token_energies += count_magnitudes(energies)
        self.tokens += len(maxima)

    def _check_finite(self, window: int, maxima: Tensor) -> None:
        bad = (~maxima.isfinite()).nonzero()
        if len(bad):
            raise UserError(
                f"NaN or Inf in the stream {self.name}, window {window}, token {self._first_token + int(bad[0])} "
                f"({len(bad)} tokens in this window); the model overflows here: try `dtype` float32, or check its "
                "weights"
            )

    def _keep_peaks(self, window: int, piece: Piece, maxima: Tensor) -> None:
        if len(self.peaks) == PEAKS and bool(maxima.amax() < abs(self.peaks[-1].value)):
            return
        # Not topk: among equals (the same token in many places) it takes any, a stable sort the first.
        values, places = (sorted_[:PEAKS].tolist() for sorted_ in maxima.sort(descending=True, stable=True))
        last = _order(self.peaks[-1]) if len(self.peaks) == PEAKS else (math.inf,)
        new: list[_Place] = []
        for magnitude, place in zip(values, places, strict=True):
            if (-magnitude, window, piece.token + place) < last:
                token = piece.x[:, place].flatten()
                channel = int(token.abs().argmax())
                at = piece.head * self.width + channel
                new.append(_Place(float(token[channel]), window, piece.token + place, at))
        if new:
            self._take_peaks(new)

    def _take_peaks(self, new: Sequence[_Place]) -> None:
        best: dict[tuple[int, int], _Place] = {}
        for peak in sorted([*self.peaks, *new], key=_order):
            best.setdefault((peak.window, peak.position), peak)  # one a token
        self.peaks = list(best.values())[:PEAKS]

    def add(self, later: Collector) -> None:
        """Take what another has seen of the same stream in windows behind these.

        The same comes of it as of one that has seen them all, save that sums are of sums, in float64.
        """
        self.channel_min = torch.minimum(self.channel_min, later.channel_min)
        self.channel_max = torch.maximum(self.channel_max, later.channel_max)
        self.square_sum = self.square_sum + later.square_sum
        self.position_sum = self.position_sum + later.position_sum
        self.rows += later.rows
        self.tokens += later.tokens
        self.histogram += later.histogram
        self.token_maxima += later.token_maxima
        self.token_energies += later.token_energies
        self.ratios += later.ratios
        self.median_maxima += later.median_maxima
        self.median_energies += later.median_energies
        self._take_peaks(later.peaks)

    def to_cpu(self) -> Collector:
        """The same with every tensor where any process can read it."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.cpu())
        self.ratios, self.median_maxima, self.median_energies = (
            [value.cpu() for value in values] for values in (self.ratios, self.median_maxima, self.median_energies)
        )
        return self

    def finish(self, tokens: TokenSet, model: Model) -> StreamStats:
        """The collected statistics as a value."""
        histogram = bin_counts(self.histogram)
        arrays = {
            "histogram": histogram,
            "token_maxima": bin_counts(self.token_maxima),
            "token_energies": bin_counts(self.token_energies),
            "position_maxima": (self.position_sum / len(self.ratios)).float().cpu(),
        }
        if self.by_channel:
            arrays["channel_min"] = self.channel_min.cpu()
            arrays["channel_max"] = self.channel_max.cpu()
            arrays["channel_square"] = (self.square_sum / self.rows).float().cpu()
        peaks = tuple(_name_token(place, tokens, model) for place in self.peaks)
        return StreamStats(
            name=self.name,
            block=self.block,
            kind=self.role.value,
            width=self.width,
            tokens=self.tokens,
            ratio=float(torch.stack(self.ratios).double().mean()),
            maximum=abs(peaks[0].value),
            typical_maximum=float(torch.stack(self.median_maxima).double().mean()),
            median_energy=float(torch.stack(self.median_energies).double().mean()),
            element_median=median_of(histogram),
            peaks=peaks,
            arrays=arrays,
        )


def _name_token(place: _Place, tokens: TokenSet, model: Model) -> Peak:
    token = int(tokens.windows[place.window, place.position])
    text = cast(str, model.tokenizer.decode([token]))  # a list only for a list of sequences
    return Peak(place.value, place.window, place.position, token, text, place.channel)
