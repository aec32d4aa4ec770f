"""The descent to the input steps of least damage; what they are and what they cost is in `qarat.maths.input_steps`."""

from __future__ import annotations

from typing import Any, cast

import torch
from msgspec.structs import replace
from torch import Tensor

from qarat.maths.input_steps import POINTS, SMALLEST, Sensitivity, Steps, finest_steps, is_tokenwise
from qarat.values.schemes import Granularity, TensorScheme

STRENGTHS = (0.5, 0.7, 0.9)
"""Descent begins at the best of SmoothQuant's strengths (arXiv 2211.10438, eq. 4)."""
DESCENT, AGAIN = 60, 40
"""Steps of descent from there, and from a solution whose copies have changed."""
RATE = 0.15  # of the logarithms, at first; falls to nothing


class StepFit:
    """Fits the steps of one stream under one scheme."""

    def __init__(
        self,
        sensitivity: Sensitivity,
        inputs: TensorScheme | None,
        weight: TensorScheme | None,
        reach: float,
        source: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Prepare.

        Args:
            sensitivity: Of the stream.
            inputs: Its scheme; None where it stays in float.
            weight: Of the readers; steps as noise are those of an integer format, any other costs what it costs
                whatever s is.
            reach: Every channel reaches at least so many times what calibration saw.
            source: Of a projection that makes the stream and has one scale for all its rows, the largest magnitude of
                each row and the sum of its C, (sources,) both. Its rows are divided by s before they are rounded, so
                that the noise of row i is σ² s_i² Σ_j C_ij / 24, with σ from the largest row.
        """
        self._sensitivity, self._inputs, self._weight = sensitivity, inputs, weight
        largest = 1.0 if inputs is None else inputs.number_format.largest
        self._unit = finest_steps(sensitivity.reach, largest)
        self._least = self._unit * reach
        if inputs is not None and not is_tokenwise(inputs):
            self._table = (sensitivity.tables[inputs.format] + 1e-30).log()
        self._magnitudes = [w.abs() for w in sensitivity.weights]
        self._source = None
        if source is not None and weight is not None and weight.number_format.is_integer:
            self._source = source[0][None], source[1][None], replace(weight, granularity=Granularity())
            self._source_before = self._source_noise(torch.ones_like(source[0]))

    def naive(self) -> Steps:
        """One step for all channels, the least that reaches what calibration saw."""
        return self._steps(self._unit.amax().expand_as(self._unit), torch.ones_like(self._unit))

    def fit(self, copies: Tensor | None = None, start: Steps | None = None) -> Steps:
        """The steps of least damage for given copies.

        Args:
            copies: (channels,), powers of two; default 1 everywhere.
            start: To begin from; default the best smoothing strength.
        """
        k = torch.ones_like(self._unit) if copies is None else copies.float()
        begun = self._strengths(k) if start is None else self._sensitivity.gather(start.steps.log())
        variables, best, least = begun.clone().requires_grad_(True), begun, float("inf")
        mean, square = torch.zeros_like(begun), torch.zeros_like(begun)
        rounds = DESCENT if start is None else AGAIN
        for number in range(1, rounds + 1):
            damage = torch.stack(self._damage(self._bounded(variables), k)).sum()
            if damage.item() < least:
                best, least = variables.detach().clone(), damage.item()
            (gradient,) = torch.autograd.grad(damage, variables)
            # Adam (Kingma & Ba 2015), its rate falling to nothing; torch's own takes seconds to be imported.
            mean = mean.lerp(gradient, 0.1)
            square = square.lerp(gradient.square(), 0.001)
            towards = (mean / (1 - 0.9**number)) / ((square / (1 - 0.999**number)).sqrt() + SMALLEST)
            rate = RATE * (1 - (number - 1) / rounds)
            variables = (variables.detach() - rate * towards).requires_grad_(True)
        return self._steps(self._bounded(best), k)

    def split(self, extra: int, plain: Steps) -> Steps:
        """The steps of least damage with at most so many columns more; those without, where no copy helps.

        Args:
            extra: Columns that copies may take.
            plain: What `fit` finds without.
        """
        best = plain
        for _ in range(2):  # copies change the steps, and those which columns are worth copies
            fitted = self.fit(self._copies(best, extra), best)
            best = min(best, fitted, key=lambda steps: steps.damage)
        return best

    def _bounded(self, variables: Tensor) -> Tensor:
        """(sources,) logarithms to steps, (channels,), of which none is below what the reach asks for."""
        return self._sensitivity.spread(torch.maximum(variables.exp(), self._sensitivity.gather(self._least)))

    def _strengths(self, copies: Tensor) -> Tensor:
        """Logarithms of the steps of the best smoothing strength, (sources,)."""
        sensitivity = self._sensitivity
        reach = sensitivity.gather(sensitivity.reach).clamp(min=1e-6)
        columns = sensitivity.gather(torch.stack([w.amax(0) for w in self._magnitudes]).amax(0)).clamp(min=1e-6)
        tried: list[tuple[float, Tensor]] = []
        for strength in STRENGTHS:
            scales = reach.pow(strength) / columns.pow(1 - strength) * sensitivity.gather(copies)
            logarithms = (scales * (self._least / sensitivity.spread(scales)).amax()).log()
            tried.append((float(torch.stack(self._damage(self._bounded(logarithms), copies)).sum()), logarithms))
        return min(tried, key=lambda pair: pair[0])[1]

    def _steps(self, steps: Tensor, copies: Tensor) -> Steps:
        with torch.no_grad():
            inputs, weights = self._damage(steps, copies)
        return Steps(steps.detach(), copies.long(), float(inputs), float(weights))

    def _damage(self, steps: Tensor, copies: Tensor) -> tuple[Tensor, Tensor]:
        """What inputs and weights cost, nats per token, differentiable in the steps; (channels,) both arguments."""
        weights = steps.new_zeros(())
        if self._weight is not None and self._weight.number_format.is_integer:
            for moments, magnitudes in zip(self._sensitivity.moments, self._magnitudes, strict=True):
                weights = weights + rows_noise(steps / copies, magnitudes, moments, self._weight)
        if self._source is not None:  # what it costs more than with equal steps: that much its own stream counts
            weights = weights + self._source_noise(self._sensitivity.gather(steps)) - self._source_before
        return self._inputs_damage(steps), weights / 24

    def _source_noise(self, scales: Tensor) -> Tensor:
        """Of the source's rows divided by scales, (sources,)."""
        assert self._source is not None
        return rows_noise(1 / scales, *self._source)

    def _inputs_damage(self, steps: Tensor) -> Tensor:
        """Σ D: of steps that all tokens share, logarithmically between the points of the table."""
        if self._inputs is None:
            return steps.new_zeros(())
        if is_tokenwise(self._inputs):
            return rows_noise(1 / steps, *self._sensitivity.sample, self._inputs) / 24
        place = ((steps / self._unit).log2() - POINTS[0]) / (POINTS[1] - POINTS[0])
        index = place.detach().floor().long().clamp(0, len(POINTS) - 2)[None]
        low, high = self._table.gather(0, index)[0], self._table.gather(0, index + 1)[0]
        values = (low + (high - low) * (place - index[0])).exp()
        return values.sum()

    def _copies(self, at: Steps, extra: int) -> Tensor:
        """Copies of the columns that alone set the steps of dear rows, the dearest for its columns first.

        Args:
            at: Steps without copies, or with others.
            extra: Columns that copies may take.
        """
        copies = torch.ones_like(at.steps)
        while extra > 0:
            scales = at.steps / copies
            worth = torch.zeros_like(copies)
            for moments, magnitudes in zip(self._sensitivity.moments, self._magnitudes, strict=True):
                first = (magnitudes * scales).topk(2, dim=1)
                halved = torch.maximum(first.values[:, 1], first.values[:, 0] / 2)
                gain = first.values[:, 0].square() - halved.square()
                worth.index_add_(0, first.indices[:, 0], gain * (moments @ scales.pow(-2)))
            worth = torch.where(copies <= extra, worth / copies, 0.0)
            column = int(worth.argmax())
            if worth[column] <= 0:
                break
            extra -= int(copies[column])
            copies[column] *= 2
        return copies


class _RowsNoise(torch.autograd.Function):
    """Σ σ² · C / s² over a matrix, and its gradient: the largest product of a group is the only one that moves σ."""

    @staticmethod
    def forward(ctx: Any, scales: Tensor, magnitudes: Tensor, moments: Tensor, scheme: TensorScheme) -> Tensor:
        """Scalar; arguments as `rows_noise`."""
        largest, places = _grouped(magnitudes * scales, scheme).max(-1)  # (out, groups)
        if scheme.granularity.rows is None:  # one scale for all rows
            rows = largest.argmax(0, keepdim=True).expand_as(largest)
        else:
            rows = torch.arange(len(largest), device=largest.device)[:, None].expand_as(largest)
        step = largest.gather(0, rows) / scheme.number_format.largest
        size = scheme.granularity.cols or len(scales)
        columns = places.gather(0, rows) + torch.arange(largest.shape[1], device=largest.device) * size
        if largest.shape[1] == 1:
            noise = (moments @ scales.pow(-2))[:, None]
            through = step[:, 0].square() @ moments
        else:
            noise = _grouped(moments / scales.square(), scheme).sum(-1)
            through = (step.square().repeat_interleave(size, 1)[:, : len(scales)] * moments).sum(0)
        if scheme.granularity.rows is not None:  # what sets a step is a whole number of it, and not rounded
            spared = moments[rows, columns]
            noise = noise - spared / scales[columns].square()
            through = through.index_add(0, columns.flatten(), -(step.square() * spared).flatten())
        moved = 2 * step * noise * magnitudes[rows, columns] / scheme.number_format.largest
        gradient = (-2 * through * scales.pow(-3)).index_add(0, columns.flatten(), moved.flatten())
        ctx.save_for_backward(gradient)
        return (step.square() * noise).sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """With respect to the scales alone."""
        return gradients[0] * ctx.saved_tensors[0], None, None, None


def rows_noise(scales: Tensor, magnitudes: Tensor, moments: Tensor, scheme: TensorScheme) -> Tensor:
    """Σ_i Σ_j σ_i² · C_ij / s_j² over all but the largest product of each row, differentiable in the scales.

    Args:
        scales: (channels,) s.
        magnitudes: (rows, channels) of the matrix: a weight, or an input, whose rows are tokens.
        moments: (rows, channels) C.
        scheme: Of the matrix, of integers.
    """
    return cast(Any, _RowsNoise).apply(scales, magnitudes, moments, scheme)


def _grouped(matrix: Tensor, scheme: TensorScheme) -> Tensor:
    """(out, channels) as (out, groups, channels of a group); a last group that is shorter is filled with zeros."""
    size = scheme.granularity.cols or matrix.shape[1]
    missing = -matrix.shape[1] % size
    return torch.nn.functional.pad(matrix, (0, missing)).view(len(matrix), -1, size)
