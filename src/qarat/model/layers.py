"""The modules that stand in a model in place of transformers' own.

A projection, the attention products and the cache of keys and values, under their schemes; and an MLP whose
``down_proj`` reads a rotated input.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from qarat.ground.errors import UserError
from qarat.maths.kernels import KERNELS, REFERENCE, choose, reference
from qarat.maths.rotations import rotate, rotation_factors
from qarat.maths.tensors import QuantizedTensor
from qarat.maths.tiles import Scales
from qarat.model.attention import CACHE, PRODUCTS
from qarat.values.roles import CACHES, OPERANDS, Role
from qarat.values.schemes import CacheScheme, LinearScheme, MatmulScheme, Scheme


class QuantLinear(nn.Module):
    """A projection under a scheme; its meaning is `qarat.maths.kernels.reference.linear`.

    Attributes:
        kernel: Name of what computes it.
        why: Where that is the reference though a fast kernel was asked for: what each of those says.
        scheme: Of weight and input.
        quantized: Codes and scales; None where the scheme leaves the weight in float.
        bias: In float, or None.
        input_scales: Of a static input; None otherwise.
    """

    bias: Tensor | None

    def __init__(
        self,
        weight: QuantizedTensor | Tensor,
        bias: Tensor | None,
        scheme: LinearScheme,
        input_scales: Scales | None,
        kernels: str = REFERENCE,
    ) -> None:
        """Take over tensors that exist; nothing is quantized here.

        Args:
            weight: (out, in), quantized, or in float where the scheme leaves it so.
            bias: (out,) in float, or None.
            scheme: Of weight and input.
            input_scales: Of a static input; None otherwise.
            kernels: Which may compute it, as `qarat.maths.kernels.choose` takes it.
        """
        super().__init__()
        self.scheme = scheme
        self.quantized = weight if isinstance(weight, QuantizedTensor) else None
        self._weight = weight
        matrix = weight.codes if isinstance(weight, QuantizedTensor) else weight
        self.out_features, self.in_features = matrix.shape
        self.register_buffer("bias", bias)
        self.input_scales = input_scales
        shape = (self.out_features, self.in_features)
        self.kernel, self.why = choose(scheme.weight, scheme.input, shape, matrix.device, kernels)
        self._linear = KERNELS.load(self.kernel).linear

    @cached_property
    def value(self) -> Tensor:
        """The weight as numbers, (out, in); of a quantized one float32, made at the first call and then kept.

        Who only writes codes to a file never asks, and neither does a kernel that multiplies codes: both do without
        four bytes a weight.
        """
        return self._weight.dequantize() if isinstance(self._weight, QuantizedTensor) else self._weight

    def forward(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out), dtype of ``x``; computed in float32 whatever the walk's dtype."""
        weight = self.value if self.kernel == REFERENCE else self._weight
        return self._linear(x, weight, self.bias, self.scheme.input, self.input_scales).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        how = f", kernel {self.kernel}" if self.why or self.kernel != REFERENCE else ""
        return f"{self.in_features} -> {self.out_features}, {self.scheme}{how}" + (f" ({self.why})" if self.why else "")


class QuantProducts(nn.Module):
    """The two attention products of a block under their schemes (protocol `qarat.model.attention.Products`).

    What is multiplied with keys and values of a prefix (`qarat.model.prefixes`) stays in float, both operands of it: a
    prefix in float takes so much of the probability that a scale shared with it would starve the rest.

    Attributes:
        qk: Scheme of Q·Kᵀ.
        av: Scheme of probabilities·V.
        scales: Static scales by operand: ``q``, ``k``, ``p``, ``v``.
        prefix: So many keys in front are those of the prefix.
    """

    def __init__(self, qk: MatmulScheme, av: MatmulScheme, scales: Mapping[str, Scales], prefix: int = 0) -> None:
        """Keep schemes and scales."""
        super().__init__()
        self.qk, self.av, self.scales, self.prefix = qk, av, dict(scales), prefix

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Q·Kᵀ, shapes as in the protocol; groups of both operands run along the head's channels."""
        front, keys = (part.transpose(-1, -2) for part in self._split(k, -2))
        low = reference.matmul(q, keys, self.qk, self.scales.get("q"), self.scales.get("k"))
        return (torch.cat([q.float() @ front.float(), low], -1) if self.prefix else low).to(q.dtype)

    def mix(self, p: Tensor, v: Tensor) -> Tensor:
        """Probabilities·V, shapes as in the protocol; groups of both operands run along the tokens summed over."""
        (sunk, spread), (front, values) = self._split(p, -1), self._split(v, -2)
        low = reference.matmul(spread, values, self.av, self.scales.get("p"), self.scales.get("v"))
        return (sunk.float() @ front.float() + low if self.prefix else low).to(v.dtype)

    def _split(self, x: Tensor, axis: int) -> tuple[Tensor, Tensor]:
        """What belongs to the prefix, and the rest."""
        return x.narrow(axis, 0, self.prefix), x.narrow(axis, self.prefix, x.shape[axis] - self.prefix)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"qk: {self.qk}, av: {self.av}"


class QuantCache(nn.Module):
    """The cache of a block's keys and values under their schemes (protocol `qarat.model.attention.KeyValueCache`).

    A token is quantized by itself, so to do it whenever the cache is read is to have done it once, when it was written.
    Keys and values of a prefix (`qarat.model.prefixes`) stay in float.

    Attributes:
        schemes: Of ``k_cache`` and ``v_cache``.
        scales: Static scales, by the same names.
        prefix: So many keys in front are those of the prefix.
    """

    def __init__(self, schemes: Mapping[str, CacheScheme], scales: Mapping[str, Scales], prefix: int = 0) -> None:
        """Keep schemes and scales."""
        super().__init__()
        self.schemes, self.scales, self.prefix = dict(schemes), dict(scales), prefix

    def keys(self, k: Tensor) -> tuple[Tensor, Tensor]:
        """What later tokens read, and what a token reads of itself; shapes as in the protocol."""
        return self.read(Role.KEY_CACHE, k)

    def values(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """The same of values."""
        return self.read(Role.VALUE_CACHE, v)

    def read(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same of the keys or values that have that name."""
        scheme = self.schemes[name].kept
        if scheme is None:
            return x, x
        low = reference.kept(x[..., self.prefix :, :], scheme, self.scales.get(name)).to(x.dtype)
        low = torch.cat([x[..., : self.prefix, :], low], -2) if self.prefix else low
        return low, x if scheme.past_only else low

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return ", ".join(f"{name}: {scheme}" for name, scheme in self.schemes.items())


class Rotation(nn.Module):
    """An orthogonal matrix before a projection whose weight has the same one folded in (`qarat.maths.rotations`)."""

    def __init__(self, factors: Sequence[Tensor]) -> None:
        """Keep the factors; they are no part of a state dict, as they follow from the width."""
        super().__init__()
        self.factors = tuple(factors)

    @classmethod
    def of(cls, width: int, device: str) -> Rotation:
        """The Hadamard rotation of that width.

        Raises:
            UserError: If none is known.
        """
        return cls([factor.to(device) for factor in rotation_factors(width)])

    def forward(self, x: Tensor) -> Tensor:
        """(…, width) to the same, dtype of ``x``."""
        return rotate(x, self.factors)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return "Hadamard, " + " x ".join(str(len(factor)) for factor in self.factors)


class RotatedMlp(nn.Module):
    """A gated MLP with a rotation in front of ``down_proj``; names and weights are those of the MLP it stands for.

    The product of gate and up is made inside transformers' own MLP, where nothing can be put behind it but a hook; so
    its one line is said again here. Whoever watches or replaces ``down_proj`` meets the rotated input.
    """

    PARTS = ("gate_proj", "up_proj", "down_proj", "act_fn")

    def __init__(self, mlp: nn.Module, rotation: Rotation) -> None:
        """Take over the parts of an MLP.

        Raises:
            UserError: If it has others.
        """
        super().__init__()
        parts = dict(mlp.named_children())
        if set(parts) != set(self.PARTS):
            raise UserError(
                f"an MLP of {', '.join(parts)} cannot be rotated: known is one of {', '.join(self.PARTS)}; "
                "leave the hadamard transform out"
            )
        self.gate_proj, self.up_proj, self.down_proj, self.act_fn = (parts[name] for name in self.PARTS)
        self.rotation = rotation

    def forward(self, x: Tensor) -> Tensor:
        """(…, hidden) to the same."""
        return self.down_proj(self.rotation(self.act_fn(self.gate_proj(x)) * self.up_proj(x)))


def attention_layers(
    home: str, schemes: Mapping[str, Scheme], scales: Mapping[str, Scales], prefix: int
) -> dict[str, nn.Module]:
    """What stands in a block's attention for its products and its cache; nothing where they stay in float.

    Args:
        home: The attention module's name in the block.
        schemes: By the sites' last names.
        scales: Static scales by the streams' last names.
        prefix: So many keys in front are those of a prefix.
    """
    products = {leaf: scheme for leaf, scheme in schemes.items() if isinstance(scheme, MatmulScheme)}
    caches = {leaf: scheme for leaf, scheme in schemes.items() if isinstance(scheme, CacheScheme)}
    layers: dict[str, nn.Module] = {}
    if not all(scheme.is_float for scheme in products.values()):
        operands = {name: scales[name] for name in OPERANDS if name in scales}
        layers[f"{home}.{PRODUCTS}"] = QuantProducts(products["qk"], products["av"], operands, prefix)
    if not all(scheme.is_float for scheme in caches.values()):
        layers[f"{home}.{CACHE}"] = QuantCache(caches, {n: scales[n] for n in CACHES if n in scales}, prefix)
    return layers


def kernels_of(block: nn.Module) -> Counter[str]:
    """How many quantized projections of a block each kernel computes, and of the reference, why no faster one does."""
    layers = (module for module in block.modules() if isinstance(module, QuantLinear))
    return Counter(f"{m.kernel}, for {m.scheme} ({m.why})" if m.why else m.kernel for m in layers)


def fill_block(block: nn.Module, layers: Mapping[str, nn.Module], floats: Mapping[str, Tensor]) -> nn.Module:
    """An empty block made whole: quantized layers in their places, and the tensors that stay in float.

    Args:
        block: On the meta device, as `qarat.model.model.Model.empty_block` makes it.
        layers: By their names in the block; one takes the place of what had its name, if anything had.
        floats: Tensors by their names in the block; those of replaced modules are left aside.
    """
    for inner, layer in layers.items():
        home, _, leaf = inner.rpartition(".")
        setattr(block.get_submodule(home), leaf, layer)
    block.load_state_dict(floats, assign=True, strict=False)
    return block.eval().requires_grad_(False)
