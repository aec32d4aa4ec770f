"""What a quantized cache of keys and values loses on the same report windows, all else in float.

    python benchmarks/kv_cache.py py-128 int8/token int4/token int4/g32 --prices
    python benchmarks/kv_cache.py smollm2-135m int8/token int4/g64 --report wiki.test.raw --calibration cal.raw \\
        --selection sel.raw --length 512 --report-samples 16

Nats per token over float, ± one standard error over windows, each begun with BOS: plain; past-only; and both again with
the first token's keys and values in float (a prefix of one token, with which everything else is in float anyway).
Beside them the bits of a cached element, dynamic scales included, and with --prices what Fisher damage sums to.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cache

import torch

from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.prefixes import leading_tokens
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.observe import observe
from qarat.stages.prices.pricing import price
from qarat.stages.quantize import quantize
from qarat.values.parsing import parse_scheme
from qarat.values.plans import Plan, assign
from qarat.values.records.scores import Evaluation
from qarat.values.records.streams import ActivationStats
from qarat.values.schemes import is_static

PAST = "/past-only"
WAYS = {"plain": ("", 0), "past": (PAST, 0), "first": ("", 1), "past+first": (PAST, 1)}
"""A word behind the scheme, and how many tokens in front stay in float."""


def nats(evaluation: Evaluation) -> torch.Tensor:
    """Nats per token of each window, (windows,) float64."""
    return torch.tensor(evaluation.nats, dtype=torch.float64) / torch.tensor(evaluation.predicted)


def spelled(losses: torch.Tensor) -> str:
    """Mean and standard error."""
    return f"{float(losses.mean()):+.4f} ± {float(losses.std()) / len(losses) ** 0.5:.4f}"


class Bench:
    """A float model and what it is measured on."""

    def __init__(self, model: Model, calibration: TokenSet, selection: TokenSet, report: TokenSet) -> None:
        self.model, self.calibration, self.selection, self.report = model, calibration, selection, report
        self.floating = nats(measure_perplexity(model, report, label="float"))
        self.stats = cache(self._stats)

    def _stats(self, prefix: int) -> ActivationStats:
        return observe(self.model, self.calibration, prefix=prefix)

    def plan(self, caches: str, prefix: int) -> Plan:
        """All caches in a scheme, all else in float."""
        model, ids = self.model, leading_tokens(self.report, prefix)
        return assign(
            model.fingerprint, model.source_bits, model.sites(), "float", [("*_cache", f"c={caches}")], prefix=ids
        )

    def loss(self, caches: str, prefix: int) -> torch.Tensor:
        """Over float, of each window."""
        stats = self.stats(prefix) if is_static(parse_scheme(f"c={caches}")) else None
        small = quantize(self.model, self.plan(caches, prefix), stats)
        return nats(measure_perplexity(small, self.report, label=caches)) - self.floating

    def priced(self, schemes: Sequence[str]) -> dict[str, float]:
        """What the prices of all caches sum to, by scheme."""
        parsed = [parse_scheme(f"c={scheme}") for scheme in schemes]
        menu = price(self.model, self.selection, parsed, self.stats(0) if any(map(is_static, parsed)) else None)
        sums = dict.fromkeys(schemes, 0.0)
        for entry in menu.entries:
            sums[entry.scheme.removeprefix("c=")] += entry.damage
        return sums


def main() -> None:
    """Every scheme, every way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or the name of a reference model")
    parser.add_argument("schemes", nargs="+", help="of caches, without c=")
    for name in ("calibration", "selection", "report"):
        parser.add_argument(f"--{name}", help="text, where the model is not a reference model")
    parser.add_argument("--length", type=int, help="tokens of a window")
    parser.add_argument("--samples", type=int, default=16, help="calibration and selection windows")
    parser.add_argument("--report-samples", type=int, default=64)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="all of them where none is named")
    parser.add_argument("--prices", action="store_true", help="sum Fisher damage too")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model(asked.model)
    texts = {"calibration": asked.calibration, "selection": asked.selection, "report": asked.report}
    limits = {"samples": asked.samples, "report_samples": asked.report_samples}
    bench = Bench(model, *load_token_sets(model, **texts, **limits, length=asked.length, bos="each"))
    print(f"float {float(bench.floating.mean()):.4f} nats, windows {tuple(bench.report.windows.shape)}", flush=True)
    prices = bench.priced([scheme + past for scheme in asked.schemes for past in ("", PAST)]) if asked.prices else {}
    elements = sum(site.width for site in model.sites() if site.kind == "cache")
    for scheme in asked.schemes:
        bits = bench.plan(scheme, 0).cache_bits() / elements
        for way in asked.ways:
            past, prefix = WAYS[way]
            predicted = f"   priced {prices[scheme + past]:.4f}" if prices and not prefix else ""
            loss = spelled(bench.loss(scheme + past, prefix))
            print(f"{scheme:22s} {bits:5.2f} bits  {way:12s} {loss}{predicted}", flush=True)


if __name__ == "__main__":
    main()
