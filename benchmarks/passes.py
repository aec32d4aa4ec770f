"""What observing and pricing a model cost in its own plain forwards, on real text; CPU seconds, one after the other.

    python benchmarks/passes.py smollm2-135m --text wiki.txt --windows 32 --length 512

The plain forward is the same walk, block by block, with nothing watched and no head. Half of the windows' elements go
into the histograms, as of 32 windows by default. Prices are of one scheme, on a quarter of the windows.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from observing import plain_forward

from qarat.ground.runtime import Runtime
from qarat.model.opening import open_model
from qarat.model.token_sets import load_token_sets
from qarat.stages.observe import observe
from qarat.stages.prices.pricing import price
from qarat.values.parsing import parse_scheme

LOW = "w=int8/channel a=int8/tensor/static"


def spent(work: Callable[[], object]) -> float:
    """CPU seconds."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def main() -> None:
    """Measure, and print a row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--text", required=True)
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--length", type=int, default=512)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model(chosen.model, Runtime("cpu", threads=1))
    tokens = load_token_sets(model, calibration=chosen.text, samples=chosen.windows, length=chosen.length)[0]
    few = tokens.subset(max(1, chosen.windows // 4))
    stats = observe(model, few)  # blocks are in memory from here on, where they fit
    sampled = max(1, chosen.windows // 2)
    forward = spent(lambda: plain_forward(model, tokens))
    rows = {
        "observing": spent(lambda: observe(model, tokens, sampled_windows=sampled)) / forward,
        "without attention": spent(lambda: observe(model, tokens, attention=False, sampled_windows=sampled)) / forward,
    }
    forward_of_few = spent(lambda: plain_forward(model, few))
    rows["pricing"] = spent(lambda: price(model, few, [parse_scheme(LOW)], stats)) / forward_of_few
    print(f"plain forward {forward:.1f} s, of a quarter {forward_of_few:.1f} s")
    for what, times in rows.items():
        print(f"{what:<18} {times:.2f} plain forwards")


if __name__ == "__main__":
    main()
