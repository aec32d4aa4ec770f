"""Hadamard rotations: orthogonal matrices of ±1 (over √n) that spread one large value over all channels alike.

Such a matrix is wanted for the width of an MLP, which is seldom a power of two: 11008 = 43 · 2^8, 14336 = 7 · 2^11,
352 = 11 · 2^5. It is a Kronecker product of Paley's matrix, of the least order that leaves a power of two, with
Sylvester's. So every channel reaches every other; diagonal blocks of powers of two, which need no construction, would
spread a spike over 32 channels of 352. What is given up: a fast transform. Each factor is a small dense matrix, which
costs the sum of the orders per channel: 50 for 352, 356 for 11008, against the 4096 of its ``down_proj``.

Sources: R. Paley, On Orthogonal Matrices, J. Math. Phys. 12 (1933); J. Sylvester, Phil. Mag. 34 (1867).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from itertools import product

import torch
from torch import Tensor

from qarat.ground.errors import UserError


def hadamard_orders(width: int) -> tuple[int, ...]:
    """Orders of the factors whose Kronecker product is a Hadamard matrix of that width.

    Raises:
        UserError: No construction known here; of widths that 4 does not divide (beyond 1 and 2) no matrix exists.
    """
    odd = width
    while odd % 2 == 0:
        odd //= 2
    first = odd
    while first <= width and odd > 1 and _paley(first) is None:
        first *= 2
    if first > width:
        raise UserError(
            f"no Hadamard matrix of order {width} is known here"
            + (" (there is none: 4 does not divide it)" if width % 4 and width > 2 else "")
            + "; this model cannot be rotated"
        )
    exponent = int(math.log2(width // first))
    # Two factors of a power of two cost less than one.
    halves = (1 << (exponent - exponent // 2), 1 << (exponent // 2))
    return tuple(order for order in (first, *halves) if order > 1) or (1,)


@cache
def hadamard(order: int) -> Tensor:
    """A Hadamard matrix, (order, order) float32 of ±1: H·Hᵀ = order · I.

    Args:
        order: 1, or one that `hadamard_orders` names: a power of two, or of Paley's.

    Raises:
        ValueError: Another order.
    """
    if order & (order - 1) == 0:
        matrix = torch.ones(1, 1)
        while len(matrix) < order:
            matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
        return matrix
    field = _paley(order)
    if field is None:
        raise ValueError(f"no construction of order {order}")
    prime, degree = field
    size = prime**degree
    # A conference matrix from the Jacobsthal matrix Q of the field with `size` elements: bordered by ones, it has
    # C·Cᵀ = size · I, with zeros on the diagonal that the two constructions fill.
    core = torch.zeros(size + 1, size + 1)
    core[0, 1:] = 1
    core[1:, 1:] = _jacobsthal(prime, degree)
    if size % 4 == 3:  # Paley's first: skew, so that adding I leaves its rows orthogonal
        core[1:, 0] = -1
        return core + torch.eye(order)
    core[1:, 0] = 1  # Paley's second: symmetric, doubled
    doubled, corner = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    return torch.kron(core, doubled) + torch.kron(torch.eye(size + 1), corner)


def rotation_factors(width: int) -> tuple[Tensor, ...]:
    """Orthogonal factors, (order, order) float32 each, of the rotation of that width.

    Raises:
        UserError: As `hadamard_orders`.
    """
    return tuple(hadamard(order) / math.sqrt(order) for order in hadamard_orders(width))


def rotate(x: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """Every row times the transposed Kronecker product of the factors.

    A projection whose weight's rows and whose input are both rotated gives what it gave before.

    Args:
        x: (…, width), floating; the width is the product of the factors' orders.
        factors: (order, order) float32 each.

    Returns:
        Shape and dtype of ``x``; computed in float32.
    """
    turned = x.float().reshape(-1, x.shape[-1])
    for factor in factors:
        # (A ⊗ B) x is A X Bᵀ with x as a matrix X. Each factor takes the first axis and puts it last: after all of
        # them the axes stand as they did.
        rows = turned.reshape(len(turned), len(factor), -1)
        turned = (factor @ rows).transpose(1, 2).flatten(1)
    return turned.reshape(x.shape).to(x.dtype)


def _paley(order: int) -> tuple[int, int] | None:
    """Prime and degree of the field that Paley's matrix of that order comes from; None if neither kind has it."""
    if order % 4 == 0 and (field := _prime_power(order - 1)):
        return field
    half = order // 2 - 1
    return _prime_power(half) if order % 4 == 0 and half % 4 == 1 else None


def _prime_power(number: int) -> tuple[int, int] | None:
    """Prime and exponent."""
    if number < 3:
        return None
    prime = next((p for p in range(2, math.isqrt(number) + 1) if number % p == 0), number)
    degree = round(math.log(number, prime))
    # An irreducible polynomial of up to the third degree is one without roots; more is not needed.
    return (prime, degree) if prime**degree == number and degree <= 3 else None


def _jacobsthal(prime: int, degree: int) -> Tensor:
    """χ(a − b) for all a, b of the field: 1 where the difference is a square, −1 where it is not, 0 on the diagonal."""
    elements = torch.tensor(list(product(range(prime), repeat=degree)))  # digits, the highest power first
    place = torch.tensor([prime**power for power in reversed(range(degree))])
    squares = _squares(elements, prime) @ place
    character = torch.full((prime**degree,), -1.0)
    character[squares] = 1.0
    character[0] = 0.0
    differences = (elements.unsqueeze(1) - elements.unsqueeze(0)) % prime
    return character[differences @ place]


def _squares(elements: Tensor, prime: int) -> Tensor:
    """The square of each element of a field, digits like ``elements``, (size, degree)."""
    degree = elements.shape[1]
    # A polynomial times itself, then reduced from the top by the field's modulus, one power after the other.
    products = torch.zeros(len(elements), 2 * degree - 1, dtype=torch.long)  # coefficients, the highest power first
    for i in range(degree):
        for j in range(degree):
            products[:, i + j] += elements[:, i] * elements[:, j]
    modulus = torch.tensor(_irreducible(prime, degree))
    for top in range(degree - 1):  # x^degree is minus the modulus' rest
        products[:, top + 1 : top + 1 + degree] -= products[:, top : top + 1] * modulus
    return products[:, degree - 1 :] % prime


def _irreducible(prime: int, degree: int) -> tuple[int, ...]:
    """Coefficients below the leading 1 of a polynomial without roots, the highest power first."""
    for rest in product(range(prime), repeat=degree):
        values = (x**degree + sum(c * x ** (degree - 1 - i) for i, c in enumerate(rest)) for x in range(prime))
        if degree == 1 or all(value % prime for value in values):
            return rest
    raise AssertionError("every field has one")
