"""The operator norm of an affine map between two close bounds: dense, or Lanczos with a certificate.

A Ritz value of AᵀA is never above the largest eigenvalue; that it is not far *below* it cannot be seen from
residuals, which only say that *an* eigenvalue lies near. But the start is uniform on the sphere, so its
component along the top eigenvector is not tiny, and then the Lanczos polynomial, which is huge above the
spectrum, must be small at the top eigenvalue: this bounds it from above, up to a stated probability.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal
from torch import Tensor, nn

from optscope.devices import device_of, to_floats
from optscope.tasks.unchanged import unchanged

FAILURE = 1e-9
"""The probability, over the random start, that the upper bound of one norm is wrong."""

DENSE = 512
"""Maps with at most this many outputs are written out as a matrix."""

ROUNDING = 1e-12
"""What float64 may have lost of a norm that is known exactly."""


@dataclass(frozen=True)
class NormBounds:
    """A norm, known to lie in `[lower, upper]`."""

    lower: float
    upper: float


def operator_norm(module: nn.Module, shape: Sequence[int], generator: torch.Generator,
                  tolerance: float = 1e-4) -> NormBounds:
    """Bound the l2 operator norm of an affine module on inputs of `shape`, to a relative `tolerance`.

    The module is taken as it stands: a convolution with its true padding, stride, dilation and groups on its
    true input size, with whatever follows it in an `nn.Sequential`. All is computed in float64.

        ‖A‖ = max_{x≠0} ‖A x‖ / ‖x‖,    A x = module(x) - module(0)

    Maps with at most `DENSE` outputs are exact (the bounds are equal up to rounding); others have
    `upper = (1 + tolerance) lower`, where `upper` holds with probability at least `1 - FAILURE` over the
    generator's draw.

    >>> kernel = torch.nn.Conv2d(1, 1, 3, padding=1)
    >>> _ = torch.nn.init.ones_(kernel.weight)
    >>> norm = operator_norm(kernel, (1, 24, 24), torch.Generator().manual_seed(0))
    >>> 8.9 < norm.lower <= norm.upper < 9
    True
    """
    with unchanged(module):  # for the moment it is the module itself that has double precision
        return _bounds(module.double().eval().requires_grad_(False), shape, generator, tolerance)


def _bounds(linear: nn.Module, shape: Sequence[int], generator: torch.Generator, tolerance: float) -> NormBounds:
    origin = torch.zeros(1, *shape, dtype=torch.float64, device=device_of(linear))
    with torch.no_grad():
        offset = linear(origin)
    if offset.numel() <= DENSE:
        return _dense(linear, origin, offset.numel())

    def gram(v: Tensor) -> Tensor:
        with torch.enable_grad():
            x = v.view_as(origin).detach().requires_grad_()
            y = linear(x)
            return torch.autograd.grad(y, x, y.detach() - offset)[0].flatten()

    start = torch.randn(origin.numel(), generator=generator, dtype=torch.float64, device="cpu").to(origin.device)
    value, bound = largest_eigenvalue(gram, start, tolerance=(1 + tolerance) ** 2 - 1)
    return NormBounds(math.sqrt(value), math.sqrt(bound))


def _dense(linear: nn.Module, origin: Tensor, outputs: int) -> NormBounds:
    with torch.enable_grad():
        x = origin.expand(outputs, *origin.shape[1:]).clone().requires_grad_()
        y = linear(x)
        rows = torch.autograd.grad(y, x, torch.eye(outputs, dtype=y.dtype, device=y.device).view_as(y))[0]
    matrix = rows.flatten(1)
    norm = math.sqrt(max(0.0, float(torch.linalg.eigvalsh(matrix @ matrix.T)[-1])))
    return NormBounds(norm * (1 - ROUNDING), norm * (1 + ROUNDING))


def largest_eigenvalue(product: Callable[[Tensor], Tensor], start: Tensor,
                       tolerance: float) -> tuple[float, float]:
    """Bound the largest eigenvalue of a positive semi-definite M by Lanczos from a Gaussian `start` `(n,)`.

    After k steps the next basis vector is q_{k+1} = p_k(M) q_1 with ‖q_{k+1}‖ = 1, where

        p_k(x) = Π_i (x - θ_i) / Π_i β_i,    θ_i the Ritz values, β_i the norms of the residuals,

    so |p_k(λ)| |⟨q_1, u⟩| <= 1 for the top eigenpair (λ, u). As q_1 is uniform on the sphere,
    |⟨q_1, u⟩| >= δ = p √(π / 2n) with probability at least 1 - p (p is `FAILURE`), and p_k grows beyond the
    largest Ritz value θ: any x > θ with p_k(x) >= 1/δ lies above λ. Van Dorsselaer, Hochstenbach and van der
    Vorst, SIAM J. Matrix Anal. Appl. 22 (2001).

    Returns θ and, once it is certified as a bound, θ times `1 + tolerance`.
    """
    n = len(start)
    goal = -math.log(FAILURE * math.sqrt(math.pi / (2 * n)))
    basis = torch.empty((min(n, 32) + 1, n), dtype=start.dtype, device=start.device)
    basis[0] = start / torch.linalg.vector_norm(start)
    diagonal: list[float] = []
    off: list[float] = []
    while True:
        k = len(diagonal)
        if k + 1 == len(basis):
            basis = torch.cat([basis, torch.empty_like(basis)])
        w = product(basis[k])
        along = w @ basis[k]
        for _ in range(2):  # twice is enough: orthogonal to rounding, hence no ghost eigenvalues
            w -= basis[: k + 1].T @ (basis[: k + 1] @ w)
        for numbers, number in zip((diagonal, off), to_floats(along, torch.linalg.vector_norm(w)), strict=True):
            numbers.append(number)
        exhausted = k + 1 == n or off[-1] <= 1e-14 * max(diagonal)
        if exhausted or k % 8 == 7:
            ritz = eigvalsh_tridiagonal(np.array(diagonal), np.array(off[:-1]))
            top = max(0.0, float(ritz[-1]))
            if exhausted:  # the basis spans every eigenvector's part of the start: nothing is hidden
                return top, top * (1 + ROUNDING)
            if np.log(top * (1 + tolerance) - ritz).sum() - np.log(off).sum() >= goal:
                return top, top * (1 + tolerance)
        basis[k + 1] = w / off[-1]
