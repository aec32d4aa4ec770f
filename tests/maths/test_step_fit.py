"""The descent: its gradient, what it predicts against what rounding does, and what it is to beat."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from qarat.maths.input_steps import Sensitivity, Steps, finest_steps, tabulate
from qarat.maths.step_fit import StepFit, rows_noise
from qarat.maths.tensors import fake_quantize
from qarat.values.formats import FORMATS
from qarat.values.parsing import parse_scheme, parse_tensor_scheme
from qarat.values.schemes import LinearScheme

LOW = "w=int8/channel a=int8/tensor/static"


class Stream:
    """A stream with a channel that spikes in one token of forty and one that is always large; and its only reader."""

    def __init__(self, spike: float = 300.0, channels: int = 24, rows: int = 16, tokens: int = 2000) -> None:
        generator = torch.Generator().manual_seed(0)
        spread = torch.randn(channels, generator=generator).mul(0.7).exp()
        spread[11] = 20.0
        self.x = torch.randn(tokens, channels, generator=generator) * spread
        self.x[::40, 3] = spike
        self.weight = torch.randn(rows, channels, generator=generator) * 0.1
        self.gradient = torch.randn(tokens, rows, generator=generator)
        self.gradient[::40] /= 100  # what a spiking token puts out matters little, as in language models

    def found(self, **options: int) -> Sensitivity:
        reach, through = self.x.abs().amax(0), self.gradient @ self.weight
        moments = self.gradient.square().T @ self.x.square() / len(self.x)
        tables = {"int8": tabulate(self.x, through, reach, FORMATS["int8"])}
        sample = self.x.abs(), through.square() / len(self.x)
        return Sensitivity(reach, tables, sample, (moments,), (self.weight,), **options)

    def measure(self, steps: Steps, low: LinearScheme) -> float:
        """Half the mean of (g · Δy)², rounding for real."""
        assert low.weight is not None
        scales = steps.steps / steps.copies
        weight = fake_quantize(self.weight * scales, low.weight) / scales
        assert low.input is not None
        if low.input.static:
            x = (self.x / steps.steps).round().clamp(-128, 127) * steps.steps
        else:
            x = fake_quantize(self.x / steps.steps, low.input) * steps.steps
        change = x @ weight.T - self.x @ self.weight.T
        return float((self.gradient * change).sum(-1).square().mean() / 2)


def scheme(spelling: str = LOW) -> LinearScheme:
    parsed = parse_scheme(spelling)
    assert isinstance(parsed, LinearScheme)
    return parsed


def fit(found: Sensitivity, spelling: str = LOW, reach: float = 1.0) -> StepFit:
    low = scheme(spelling)
    return StepFit(found, low.input, low.weight, reach)


@pytest.mark.parametrize("weight", ["int8/channel", "int4/g8", "int4/g5", "int8/tensor"])
def test_the_gradient_of_the_rows_noise_is_that_of_its_formula(weight: str) -> None:
    generator = torch.Generator().manual_seed(1)
    magnitudes, moments = (torch.rand(6, 16, generator=generator, dtype=torch.float64) for _ in range(2))
    scales = (torch.rand(16, generator=generator, dtype=torch.float64) + 0.5).requires_grad_(True)
    tensor = scheme(f"w={weight}").weight
    assert tensor is not None

    def formula(s: Tensor) -> Tensor:
        size = tensor.granularity.cols or 16
        products, noises = (
            torch.nn.functional.pad(matrix, (0, -16 % size)).unflatten(1, (-1, size))
            for matrix in (magnitudes * s, moments / s.square())
        )
        steps, noise = products.amax(-1), noises.sum(-1)
        if tensor.granularity.rows is None:
            steps = steps.amax().expand_as(steps)
        else:  # what sets a step is not rounded
            noise = noise - noises.gather(-1, products.argmax(-1, keepdim=True)).squeeze(-1)
        return ((steps / tensor.number_format.largest).square() * noise).sum()

    ours, theirs = rows_noise(scales, magnitudes, moments, tensor), formula(scales)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(torch.autograd.grad(ours, scales), torch.autograd.grad(theirs, scales))


@pytest.mark.parametrize("low", [LOW, "w=int8/channel a=int8/token", "w=int6/channel a=int6/g8"])
def test_what_is_predicted_is_what_rounding_does(low: str) -> None:
    stream = Stream()
    fitting = fit(stream.found(), low)
    plain = fitting.fit()
    for steps in (plain, fitting.split(8, plain)):
        assert stream.measure(steps, scheme(low)) == pytest.approx(steps.damage, rel=0.25)
    assert plain.damage < fitting.naive().damage


def test_the_fit_beats_doing_nothing_and_every_smoothing_strength() -> None:
    stream = Stream()
    found, fitting = stream.found(), fit(stream.found())
    best, columns = fitting.fit(), stream.weight.abs().amax(0)
    assert best.damage < fitting.naive().damage / 4
    for strength in (0.3, 0.5, 0.7, 0.9, 1.0):
        scales = found.reach.pow(strength) / columns.pow(1 - strength)
        steps = scales * (finest_steps(found.reach, 127) / scales).amax()
        smoothed = Steps(steps, torch.ones(len(steps), dtype=torch.long), 0.0, 0.0)
        assert stream.measure(best, scheme()) < stream.measure(smoothed, scheme())


def test_copies_help_and_keep_to_their_columns() -> None:
    fitting = fit(Stream(spike=3000.0).found())
    plain = fitting.fit()
    damages = [plain.damage]
    for extra in (2, 8, 16):
        split = fitting.split(extra, plain)
        assert int(split.copies.sum()) <= 24 + extra
        assert {int(k) & (int(k) - 1) for k in split.copies} == {0}
        damages.append(split.damage)
    assert damages == sorted(damages, reverse=True)
    assert damages[-1] < 0.5 * damages[0]


def test_no_channel_is_clipped_within_the_reach() -> None:
    stream = Stream()
    best = fit(stream.found(), reach=1.5).fit()
    assert bool((best.steps * 127 >= 1.4999 * stream.x.abs().amax(0)).all())


def test_channels_of_one_source_have_one_scale() -> None:
    found = Stream().found(share=2, head=4)
    best = fit(found).fit()
    assert torch.equal(found.spread(found.gather(best.scales)), best.scales)


def test_weights_alone_have_scales_fitted_too() -> None:
    stream = Stream()
    found = stream.found()
    fitting = fit(replace(found, tables={}), "w=int4/channel")
    best = fitting.fit()
    assert best.inputs == 0
    assert best.damage < fitting.naive().damage


def test_the_same_stream_has_the_same_steps() -> None:
    assert torch.equal(fit(Stream().found()).fit().steps, fit(Stream().found()).fit().steps)


class Source:
    """What makes the stream: a projection, one scale for all its weight, whose rows are divided by the steps."""

    def __init__(self, stream: Stream, inner: int = 12) -> None:
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.randn(stream.x.shape[1], inner, generator=generator)
        self.x = torch.randn(len(stream.x), inner, generator=generator)
        self.gradient = stream.gradient @ stream.weight

    def rows(self) -> tuple[Tensor, Tensor]:
        moments = self.gradient.square().T @ self.x.square() / len(self.x)
        return self.weight.abs().amax(1), moments.sum(1)

    def measure(self, steps: Tensor) -> float:
        """Half the mean of Σ (g · Δy)², over rows whose roundings are independent."""
        rounded = fake_quantize(self.weight / steps[:, None], parse_tensor_scheme("int8/tensor", "w")) * steps[:, None]
        change = self.x @ (rounded - self.weight).T
        return float((self.gradient * change).square().sum(-1).mean() / 2)


def test_a_source_under_one_scale_is_counted_as_it_is_rounded():
    stream = Stream()
    source, found, low = Source(stream), stream.found(), scheme("w=int8/tensor a=int8/tensor/static")
    without, counted = (StepFit(found, low.input, low.weight, 1.0, rows) for rows in (None, source.rows()))
    assert counted.naive().damage == pytest.approx(without.naive().damage)  # equal steps leave its rows as they are
    steps = without.fit().steps
    more = counted.fit(start=None).damage  # of the best steps there are, source and readers together
    excess = float(counted._source_noise(steps) - counted._source_before) / 24
    assert excess == pytest.approx(source.measure(steps) - source.measure(torch.ones_like(steps)), rel=0.25)
    assert more < without.fit().damage + excess
