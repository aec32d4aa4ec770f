"""Claim: on x86 CPUs without AVX-512, vLLM's INT8 in bfloat16 is oneDNN's reference code; in float32 it is not.

    OMP_NUM_THREADS=1 .venv-vllm/bin/python benchmarks/vllm_kernels.py --shapes 5632x2048 --tokens 1 64

The kernels that vLLM's linear layers call, each by itself: processor time of one product with so many tokens, rounding
of the inputs included. `ONEDNN_VERBOSE=1` in front says which code oneDNN chose.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from vllm import _custom_ops as ops  # pyright: ignore[reportMissingImports]

LEAST = 0.3  # processor seconds that each is repeated for


def seconds(product: Callable[[], object]) -> float:
    """Processor seconds of one call, behind one that nobody times."""
    product()
    calls, started = 0, time.process_time()
    while time.process_time() - started < LEAST:
        product()
        calls += 1
    return (time.process_time() - started) / calls


def products(weight: Tensor, x: Tensor) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each kernel by its name: float32 and bfloat16, and INT8 for inputs and outputs of either."""
    rows = weight.shape[0]
    whole = ops.create_onednn_mm(weight.t(), 32)
    yield "float32", lambda: ops.onednn_mm(whole, x, None)
    half, half_x = weight.bfloat16(), x.bfloat16()
    yield "bfloat16, torch", lambda: torch.nn.functional.linear(half_x, half)
    scale = weight.abs().amax(1, keepdim=True) / 127
    codes, step = (weight / scale).round().to(torch.int8), x.abs().amax() / 127
    for name, given in (("INT8, float32", x), ("INT8, bfloat16", half_x)):
        handler = ops.create_onednn_scaled_mm(codes.t(), scale, given.dtype, False, False, 32)

        def integers(given: Tensor = given, handler: object = handler) -> Tensor:
            rounded, scales, _ = ops.onednn_scaled_int8_quant(given, step, None, True)
            out = torch.empty(len(given), rows, dtype=given.dtype)
            return ops.onednn_scaled_mm(handler, rounded, out, scales, None, None, None)

        yield name, integers


def main() -> None:
    """Print a line for each product."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=["5632x2048", "576x576"], help="outputs x inputs")
    parser.add_argument("--tokens", nargs="+", type=int, default=[1, 64])
    asked = parser.parse_args()
    generator = torch.Generator().manual_seed(0)
    for shape in asked.shapes:
        rows, columns = map(int, shape.split("x"))
        weight = torch.randn(rows, columns, generator=generator)
        for tokens in asked.tokens:
            for name, product in products(weight, torch.randn(tokens, columns, generator=generator)):
                taken = seconds(product)
                rate = 2e-9 * tokens * rows * columns / taken
                print(f"{shape}, {tokens} tokens, {name}: {1e3 * taken:.3f} ms, {rate:.2f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
