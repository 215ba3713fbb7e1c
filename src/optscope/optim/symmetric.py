"""Products of matrices that are symmetric, as X Xᵀ and its powers are: half of one is taken, and mirrored."""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 1 << 16
"""Numbers of a matrix from which half a product is faster than one call: 256 kB of float32."""
ROWS = 64
"""Rows that are taken at once: fewer waste less above the diagonal, and are slower each."""


def symmetric(a: Tensor, b: Tensor, out: Tensor, *, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """Return alpha · A B + beta · A of matrices `(m, n, k)`, `(m, k, n)`, of which A B is symmetric, in `out`.

    With beta A is symmetric too. On a CPU large products take about half the multiplications.
    """
    if a.device.type != "cpu" or a.shape[-2] * a.shape[-1] < LARGE or a.shape[-2] < 2 * ROWS:
        return torch.baddbmm(a, a, b, alpha=alpha, beta=beta, out=out) if beta else torch.bmm(a, b, out=out)
    for left, right, found in zip(a, b, out, strict=True):
        for start in range(0, len(found), ROWS):
            rows, upto = slice(start, start + ROWS), min(start + ROWS, len(found))
            part = found[rows, :upto]
            if beta:
                torch.addmm(left[rows, :upto], left[rows], right[:, :upto], alpha=alpha, beta=beta, out=part)
            else:
                torch.mm(left[rows], right[:, :upto], out=part)
            found[:start, rows].copy_(found[rows, :start].mT)
    return out
