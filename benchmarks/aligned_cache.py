"""AlignedKV: how many bits of a float16 cache attention has to read, and what leaving the others costs (simulated).

    python benchmarks/aligned_cache.py py-128 --report-samples 8

A sum in floating point cannot notice bits of an addend below its own last bit (Tan et al. 2024, arXiv 2409.16546). Each
number lies in planes of 8, 4 and 4 bits (sign, exponent and 2 of 10 mantissa bits; 4; 4); of an addend whose exponent
is at least 4 (8) below that of the sum one plane (two) is left in memory and taken as its midpoint: an error of half a
last bit at most.

- Keys: of query q, channel d has exponent e_d = exp(q_d) + E_K[d], E_K[d] the largest of the channel so far; it lies
  max_d e_d − e_d below the sum. Heads that share a key read what the most demanding of them needs.
- Values: token t lies min_d (exp(o_d) − E_V[d]) − exp(p_t) below the output o, which is estimated from 8 bits. The
  paper's own thresholds for values were not to be had; these are its thresholds for keys.

All bits stay in memory: this saves traffic, not storage. Printed: the share of a whole float16 cache's bytes that is
read, of keys and of values, by a query of every position; the loss against that whole cache; the largest change of a
logit, of their largest.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from qarat.model.attention import PRODUCTS
from qarat.model.model import Model
from qarat.model.opening import open_model
from qarat.model.token_sets import load_report_set

BITS = (8, 12, 16)
STEPS = (8, 4)  # exponents below the sum from which on 8, and 12, bits do


def planes(x: Tensor, bits: int) -> Tensor:
    """Float16 numbers of which so many high bits were read, the others at their midpoint; shape of ``x``, float32."""
    if bits == BITS[-1]:
        return x.half().float()
    rest = BITS[-1] - bits
    codes = x.half().view(torch.int16)
    low = (codes & ~((1 << rest) - 1)) | (1 << (rest - 1))
    return torch.where(codes & 0x7FFF == 0, 0.0, low.view(torch.float16).float())  # a zero needs no bits


def exponents(x: Tensor) -> Tensor:
    """⌊log2 |x|⌋, int32; far below all others for 0."""
    return torch.where(x == 0, -1000, torch.frexp(x.float()).exponent - 1)


def levels(below: Tensor) -> Tensor:
    """Index into `BITS` by how many exponents an addend lies below the sum."""
    return torch.stack([below < step for step in STEPS]).sum(0)


class AlignedProducts(nn.Module):
    """Both attention products with planes read by need (protocol `qarat.model.attention.Products`).

    Attributes:
        read: Bits read of ``k`` and of ``v``.
        whole: Bits of a cache that is read whole, the same for both.
    """

    def __init__(self, groups: int, aligned: bool) -> None:
        """Arguments: how many query heads share a key head; whether anything is left in memory."""
        super().__init__()
        self.groups, self.aligned = groups, aligned
        self.read = {"k": 0, "v": 0}
        self.whole = 0

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Q·Kᵀ; a level for every query and channel, which holds for all keys it sees."""
        e = exponents(q) + exponents(k.half().float().abs().cummax(-2).values)
        level = self._shared(levels(e.amax(-1, keepdim=True) - e))
        seen = torch.arange(1, q.shape[-2] + 1)[:, None]
        bits = torch.tensor(BITS)[level[:, :: self.groups]]
        self.read["k"] += int((bits * seen).sum())
        self.whole += int((torch.full_like(bits, BITS[-1]) * seen).sum())
        return torch.stack([(q * (level == i)) @ planes(k, b).transpose(-1, -2) for i, b in enumerate(BITS)]).sum(0)

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        """Probabilities·V; a level for every query and token it sees, which holds for all channels."""
        tops = exponents(v.half().float().abs().cummax(-2).values)
        room = (exponents(p @ planes(v, BITS[0])) - tops).amin(-1, keepdim=True)
        level = self._shared(levels(room - exponents(p)))
        bits = torch.tensor(BITS)[level[:, :: self.groups]]
        self.read["v"] += int(bits.tril().sum()) * v.shape[-1]
        return torch.stack([(p * (level == i)) @ planes(v, b) for i, b in enumerate(BITS)]).sum(0)

    def _shared(self, level: Tensor) -> Tensor:
        """The highest level among the heads that share a key head, for each of them; shape of ``level``."""
        if not self.aligned:
            return torch.full_like(level, len(STEPS))
        apart = level.unflatten(1, (-1, self.groups))
        return apart.amax(2, keepdim=True).expand_as(apart).flatten(1, 2)


def run(model: Model, windows: Tensor, aligned: bool) -> tuple[Tensor, dict[str, float]]:
    """Logits of every token, and the share of a whole float16 cache that was read, of keys and of values."""
    groups = model.config.num_attention_heads // model.config.num_key_value_heads
    read, whole = {"k": 0, "v": 0}, 0
    hidden = model.embed(windows)
    for index, block in model.walk():
        home: Any = block.get_submodule(model.family.attention)
        products = AlignedProducts(groups, aligned)
        home.add_module(PRODUCTS, products)
        hidden = model.run_block(index, block, hidden)
        delattr(home, PRODUCTS)
        read = {name: bits + products.read[name] for name, bits in read.items()}
        whole += products.whole
    return model.logits(hidden), {name: bits / whole for name, bits in read.items()}


@torch.no_grad()
def main() -> None:
    """One model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a folder or the name of a reference model")
    parser.add_argument("--report", help="text, where the model is not a reference model")
    parser.add_argument("--length", type=int, help="tokens of a window")
    parser.add_argument("--report-samples", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    model = open_model(asked.model)
    report = load_report_set(model, report=asked.report, length=asked.length, report_samples=asked.report_samples)
    losses: list[float] = []
    shares: dict[str, float] = defaultdict(float)
    change = 0.0
    for window in report.windows.split(1):
        before, after = run(model, window, False)[0], run(model, window, True)
        for name, share in after[1].items():
            shares[name] += share / len(report)
        change = max(change, float((after[0] - before).abs().max() / before.abs().max()))
        gained = before.log_softmax(-1) - after[0].log_softmax(-1)
        losses.append(float(gained[:, :-1].gather(-1, window[:, 1:, None]).mean()))
    loss = torch.tensor(losses)
    both = sum(shares.values()) / 2
    error = float(loss.std()) / len(loss) ** 0.5
    print(f"windows {tuple(report.windows.shape)}")
    print(f"read of keys {shares['k']:.3f}, of values {shares['v']:.3f}, of both {both:.3f}")
    print(f"loss {float(loss.mean()):+.6f} ± {error:.6f} nats, logits within {change:.1e} of the largest")


if __name__ == "__main__":
    main()
