"""What clipping weights at so many σ of their group costs, in squared error and in loss, and where `typical` clips.

    python benchmarks/clip_widths.py py-64 --figure docs/clip-widths.svg

Weights alone, every projection, to the nearest, inputs in float. A scale reaches the width or its group's largest
weight, whichever is less. Error: squared, over the weights' own squares. Loss: nats per token over float on the report
tokens, ± one standard error over windows. Below them the choices that schemes have.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from qarat.ground.disk import write_whole
from qarat.maths.clipping import gaussian_width
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import fake_quantize
from qarat.maths.tiles import Scales, as_matrices, to_tiles
from qarat.model.model import Model, Transform
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.surfaces.page.figures.curve import Axis, Dot, Series, curve
from qarat.surfaces.page.rendering import to_svg
from qarat.values.parsing import parse_tensor_scheme
from qarat.values.records.origin import Difference
from qarat.values.records.scores import Evaluation, paired_difference
from qarat.values.schemes import TensorScheme

WIDTHS = (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 3.5, 4.0)
CHOICES = ("absmax", "p99.9", "mse", "typical")


def clipped(width: float) -> Callable[[Tensor, TensorScheme], Scales]:
    """Scales that reach so many σ of their group, where its largest weight lies beyond."""

    def scales(weight: Tensor, scheme: TensorScheme) -> Scales:
        assert weight.shape[1] % (scheme.granularity.cols or 1) == 0, "whole groups only"
        sigma = to_tiles(as_matrices(weight), scheme.granularity).square().mean((2, 4)).sqrt()[0]
        return Scales(torch.minimum(choose_scale(weight, scheme).scale, sigma * width / scheme.number_format.largest))

    return scales


class Subject:
    """A model whose weights are rounded in one way after another."""

    def __init__(self, model: Model, tokens: TokenSet) -> None:
        self.model, self.tokens = model, tokens
        self.names = {site.name for site in model.sites() if site.kind == "projection"}
        self.floating: Evaluation = measure_perplexity(model, tokens, label="float")

    def measure(
        self, scheme: TensorScheme, scales: Callable[[Tensor, TensorScheme], Scales]
    ) -> tuple[float, Difference]:
        """Relative squared error of the weights, and what the model loses."""
        sums = torch.zeros(2, dtype=torch.float64)
        seen = set[str]()

        def fold(index: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
            changed = dict(state)
            for key, weight in state.items():
                name = f"{self.model.family.blocks}.{index}.{key}".removesuffix(".weight")
                if name in self.names:
                    changed[key] = fake_quantize(weight, scheme, scales(weight, scheme)).to(weight.dtype)
                    if name not in seen:
                        error = (changed[key] - weight).double().square().sum()
                        sums.add_(torch.stack([error, weight.double().square().sum()]))
                        seen.add(name)
            return changed

        rounded = self.model.with_transform(Transform("rounded", fold))
        loss = measure_perplexity(rounded, self.tokens, label="rounded")
        return float(sums[0] / sums[1]), paired_difference(loss, self.floating)


def main() -> None:
    """Every width at every number of bits, then the choices."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--granularity", default="channel")
    parser.add_argument("--report-samples", type=int, default=64)
    parser.add_argument("--figure", type=Path, help="draw loss against width here")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model(asked.model)
    subject = Subject(model, load_token_sets(model, report_samples=asked.report_samples)[2])
    series: list[Series] = []
    for bits in asked.bits:
        scheme = parse_tensor_scheme(f"int{bits}/{asked.granularity}", "w")
        typical = gaussian_width(scheme.number_format)
        dots: list[Dot] = []
        for width in sorted({*WIDTHS, typical}):
            error, loss = subject.measure(scheme, clipped(width))
            print(f"int{bits}  {width:5.2f} σ  error {error:.4f}  {_spelled(loss)}", flush=True)
            dots.append(Dot(width, loss.nats, label="typical"))
        named = tuple(dot for dot in dots if dot.x == typical)
        series.append(Series(f"int{bits}", tuple(dots), group=f"int{bits}"))
        series.append(Series(f"int{bits}, typical", named, line=False, group=f"int{bits}", named=True))
        for choice in CHOICES:
            chosen = parse_tensor_scheme(f"int{bits}/{asked.granularity}/{choice}", "w")
            error, loss = subject.measure(chosen, choose_scale)
            print(f"int{bits}  {choice:7s}  error {error:.4f}  {_spelled(loss)}", flush=True)
    if asked.figure:
        axes = Axis("clip width, σ of the group"), Axis("nats per token over float", log=True)
        figure = curve("clip-widths", "Loss against clip width", f"{asked.model}, {asked.granularity}", series, *axes)
        write_whole(asked.figure, to_svg(figure))


def _spelled(loss: Difference) -> str:
    return f"loss {loss.nats:+.4f} ± {loss.standard_error:.4f}"


if __name__ == "__main__":
    main()
