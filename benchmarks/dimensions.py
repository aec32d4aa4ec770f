"""Local intrinsic dimension of tokens behind every block, of the float model and of quantized ones.

    python benchmarks/dimensions.py py-64 "w=int4/g32" "w=int3/g32" "w=mxint4 a=mxint4"

Mean over the tokens of the selection windows, 20 neighbours in the same window; beside it what each model loses on
them, nats per token over float. Every projection is in the scheme.
"""

from __future__ import annotations

import argparse

import torch

from qarat.maths.dimension import local_dimensions
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.model.tokens import TokenSet
from qarat.stages.measure.perplexity import measure_perplexity
from qarat.stages.quantize import quantize
from qarat.values.plans import assign
from qarat.values.records.scores import paired_difference


@torch.no_grad()
def dimensions(model: Model, tokens: TokenSet) -> list[float]:
    """Mean dimension behind every block."""
    hidden = [model.embed(batch) for batch in tokens.batches(model.runtime.batch_tokens)]
    means: list[float] = []
    for index, block in model.walk():
        hidden = [model.run_block(index, block, states) for states in hidden]
        means.append(float(torch.cat([local_dimensions(states) for states in hidden]).mean()))
    return means


def main() -> None:
    """A line a model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("schemes", nargs="+")
    parser.add_argument("--windows", type=int, default=16)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model(asked.model)
    _, tokens, _ = load_token_sets(model, samples=asked.windows)
    before = measure_perplexity(model, tokens, label="float")
    print(f"{'float':24s} {'':17s} {_spelled(dimensions(model, tokens))}", flush=True)
    for scheme in asked.schemes:
        plan = assign(model.fingerprint, model.source_bits, model.sites(), scheme)
        small = quantize(model, plan)
        loss = paired_difference(measure_perplexity(small, tokens, label=scheme), before)
        found = _spelled(dimensions(small, tokens))
        print(f"{scheme:24s} {loss.nats:+.4f} ± {loss.standard_error:.4f} {found}", flush=True)


def _spelled(means: list[float]) -> str:
    return " ".join(f"{mean:6.2f}" for mean in means)


if __name__ == "__main__":
    main()
