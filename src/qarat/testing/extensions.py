"""Checks of what somebody adds in one file, for tests of one's own: a rounding, a kernel, a metric, a transform.

Each takes the thing itself, runs it on tiny cases, and asserts what the rest of qarat relies on; what it does beyond
that is its own affair, and its own tests'.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from qarat.ground.errors import UserError
from qarat.jobs.rewriting import fit_rewrites
from qarat.maths.kernels import Kernel, reference
from qarat.maths.scales import choose_scale
from qarat.maths.tensors import QuantizedTensor, quantize_tensor
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.tokens import TokenSet
from qarat.stages.observe import observe
from qarat.stages.prices.changes import Pricing
from qarat.stages.prices.metric import Metric
from qarat.stages.rounding import NoContext, Rounding
from qarat.stages.transforms import MadeFrom, ParsedTransform
from qarat.stages.transforms.rewrite import columns_for
from qarat.testing.drawn import normal
from qarat.testing.models import tiny_checkpoint
from qarat.values.parsing import parse_scheme, parse_tensor_scheme
from qarat.values.schemes import LOW, TensorScheme

TABLES_AND_SPARSE = (
    "kmeans3/channel",
    "kmeans2/g6",
    "kmeans2/channel/sparse-3",
    "int4/g8/sparse-3",
    "mxfp4/g8/sparse-3",
)
"""What a rounding may refuse."""
WEIGHTS = ("int4/g8", "int3/channel/asymmetric", "int8/tensor", "mxfp4/g8", "e4m3/4x8", "int4/channel/mse")
INPUTS = ("int8/token", "int8/tensor/dynamic", "int8/tensor/static", "int4/g8", "e4m3/token")
TOLERANCE = 1e-5  # of the largest output: the reference sums in float32


class KnownInputs:
    """A context of inputs that are at hand (protocol `qarat.stages.rounding.Context`)."""

    def __init__(self, inputs: Tensor, weights: Tensor | None = None, outputs: int = 12) -> None:
        """Keep them.

        Args:
            inputs: (tokens, in) float32.
            weights: Of the tokens in the weighted moments, (tokens,) float32; default 1 for all.
            outputs: Of the projection; their gradients are drawn at random.
        """
        self.inputs = inputs
        self._gradients = normal(len(inputs), outputs, seed=5)
        self._weights = torch.ones(len(inputs)) if weights is None else weights

    @property
    def moments(self) -> Tensor:
        """Mean of x·xᵀ over the tokens."""
        return self.inputs.T @ self.inputs / len(self.inputs)

    @property
    def weighted_moments(self) -> Tensor:
        """Mean of weight·x·xᵀ over the tokens."""
        return (self.inputs * self._weights[:, None]).T @ self.inputs / len(self.inputs)

    @property
    def fisher(self) -> Tensor:
        """Mean of g²·x² over the tokens."""
        return self._gradients.square().T @ self.inputs.square() / len(self.inputs)

    @property
    def gradient(self) -> Tensor:
        """Mean of g·x over the tokens."""
        return self._gradients.T @ self.inputs / len(self.inputs)


def check_rounding(rounding: Rounding) -> None:
    """Check a rounding: codes of the format in the weight's shape, scales of the scheme's, equal if it runs again.

    The weight is not written to, and nothing is asked of a context unless `NEEDS` says so. Of the schemes that it may
    refuse, `why_not` names those that it does; it rounds to one at least.
    """
    why_not: Callable[[TensorScheme], str] = getattr(rounding, "why_not", lambda scheme: "no tables, no sparse part")
    schemes = [parse_tensor_scheme(spelling, "w") for spelling in TABLES_AND_SPARSE]
    schemes = [scheme for scheme in schemes if not why_not(scheme)]
    plain = [parse_tensor_scheme(spelling, "w") for spelling in WEIGHTS]
    schemes += [scheme for scheme in plain if not hasattr(rounding, "why_not") or not why_not(scheme)]
    assert schemes, "it rounds to none of the schemes tried"
    weight, inputs = normal(12, 16, seed=1), normal(64, 16, seed=2)
    context = KnownInputs(inputs) if rounding.NEEDS else NoContext()
    for scheme in schemes:
        before, spelling = weight.clone(), scheme.spell("w")
        rounded, again = (rounding.round_weight(weight, scheme, context) for _ in range(2))
        assert torch.equal(weight, before), f"{spelling}: it writes to its argument"
        assert rounded.codes.shape == weight.shape, spelling
        assert rounded.codes.dtype == torch.uint8, spelling
        assert int(rounded.codes.max()) < len(scheme.number_format.values), f"{spelling}: a code beyond the table"
        expected = QuantizedTensor.empty(scheme, *weight.shape)
        assert rounded.scales.scale.shape == expected.scales.scale.shape, spelling
        assert _shapes(rounded) == _shapes(expected), f"{spelling}: a table or sparse part of another size"
        assert rounded.scheme == scheme, spelling
        assert torch.equal(rounded.codes, again.codes), f"{spelling}: not the same codes again"
    if rounding.NEEDS:
        _check_refusal(rounding, weight, schemes[0])


def _shapes(weight: QuantizedTensor) -> list[torch.Size | None]:
    parts = weight.scales.table, *(weight.sparse or ())
    return [None if part is None else part.shape for part in parts]


def _check_refusal(rounding: Rounding, weight: Tensor, scheme: TensorScheme) -> None:
    """A rounding that needs a context must not do without one in silence."""
    try:
        rounding.round_weight(weight, scheme, NoContext())
    except UserError:
        return
    raise AssertionError(f"it says that it needs {rounding.NEEDS}, and rounds without")


def check_kernel(kernel: Kernel) -> int:
    """Check a kernel on the CPU: what it supports it computes as the reference does, up to float32 rounding.

    Returns:
        How many pairs of schemes it supports of those tried; a kernel for another device supports none here.
    """
    supported = 0
    for weight_spelling in (*WEIGHTS, "int8/channel", "e4m3/channel"):
        weight = quantize_tensor(normal(24, 16, seed=1), parse_tensor_scheme(weight_spelling, "w"))
        for spelling in (None, *INPUTS):
            scheme = None if spelling is None else parse_tensor_scheme(spelling, "a")
            if kernel.why_not(weight.scheme, scheme, (24, 16), torch.device("cpu")):
                continue
            supported += 1
            for shape in ((1, 16), (5, 16), (2, 3, 16)):
                x = normal(*shape, seed=3)
                scales = choose_scale(x, scheme) if scheme is not None and scheme.static else None
                for bias in (None, normal(24, seed=4)):
                    ours = kernel.linear(x, weight, bias, scheme, scales)
                    meant = reference.linear(x, weight, bias, scheme, scales)
                    assert ours.shape == meant.shape
                    assert ours.dtype == meant.dtype
                    worst = float((ours - meant).abs().max()) / float(meant.abs().max())
                    assert worst <= TOLERANCE, f"{weight_spelling} by {spelling}: {worst:g} of the largest output"
    return supported


def check_metric(metric: Metric) -> None:
    """Check a metric on a tiny model: what changes nothing costs nothing, and fewer bits cost more.

    Every projection is priced, in each window; attention products too unless it looks at weights alone.
    """
    spellings = ("float", "w=int8/channel", "w=int2/channel")
    with TemporaryDirectory() as folder:
        model, tokens = _tiny(Path(folder)), _tokens()
        schemes = [parse_scheme(text) for text in spellings]
        if not metric.weights_only:
            schemes.append(parse_scheme("l=int4/token r=int4/token"))
        pricing = Pricing(model, tokens, schemes, None, None, (), 0, lambda *_: None)
        prices = metric.windows(pricing)
        for site in model.sites():
            fitting = [str(scheme) for scheme in schemes if scheme.fits(site.kind)]
            missing = [text for text in fitting if (site.name, text) not in prices]
            assert not missing, f"{site.name}: no price of {missing}"
            if site.kind == "projection":
                free, eight, two = (float(prices[site.name, text].mean()) for text in spellings)
                assert free == 0 < eight < two, f"{site.name}: {free:g}, {eight:g}, {two:g} for {spellings}"
        assert metric.block_forwards(model, tokens, schemes) >= 0
        hooks = [m for i in range(model.blocks) for m in model.block(i).modules() if m._forward_hooks]
        assert not hooks, "it leaves hooks behind"


def check_transform(step: ParsedTransform, tolerance: float = 1e-4) -> None:
    """Check a transform on a tiny model: the outputs stay, up to rounding, and the fingerprint changes.

    Args:
        step: As a file's ``parse`` makes it, or `parse_transform` of a spelling.
        tolerance: Of the largest logit.
    """
    with TemporaryDirectory() as folder:
        model, tokens = _tiny(Path(folder)), _tokens()
        stats = observe(model, tokens) if step.needs else None
        made_from: MadeFrom = stats
        if stats is not None and step.needs == "rewrites":
            made_from = fit_rewrites(model, tokens, stats, LOW, columns=columns_for(model))
        changed = step.apply(model, made_from)
        before, after = _logits(model, tokens), _logits(changed, tokens)
        assert float((after - before).abs().max()) <= tolerance * float(before.abs().max()), "the outputs change"
        assert changed.fingerprint != model.fingerprint, "its fingerprint is that of the model it was made from"
        assert changed.is_float


def _tiny(folder: Path) -> Model:
    return open_model(str(tiny_checkpoint(folder / "tiny", hidden=16, intermediate=32, heads=2, kv_heads=1)))


def _tokens(windows: int = 3, length: int = 12) -> TokenSet:
    ids = torch.randint(2, 98, (windows, length), generator=torch.Generator().manual_seed(5))
    ids[:, 0] = 0
    sources = tuple(f"text {number}" for number in range(windows))
    return TokenSet("calibration", f"windows-{length}-bos", ids, sources, ("0" * 64,), ("text",))


@torch.no_grad()
def _logits(model: Model, tokens: TokenSet) -> Tensor:
    hidden = model.embed(tokens.windows)
    for index, block in model.walk():
        hidden = model.run_block(index, block, hidden)
    return model.logits(hidden)
