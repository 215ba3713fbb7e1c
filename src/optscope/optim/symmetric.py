"""Products of matrices that are symmetric, as X Xᵀ and its powers are: half of one is taken, and mirrored."""

from __future__ import annotations

import torch
from torch import Tensor

LARGE = 1 << 16
"""Numbers of a matrix from which half a product is faster than one call: 256 kB of float32."""
ROWS = 64
"""Rows that are taken at once: fewer waste less above the diagonal, and are slower each."""


def symmetric(a: Tensor, b: Tensor, out: Tensor, plus: Tensor | None = None, *, alpha: float = 1.0,
              beta: float = 1.0) -> Tensor:
    """Return A B, or alpha · A B + beta · C, of matrices `(m, n, k)`, `(m, k, n)` and `plus` `(m, n, n)`, in `out`.

    A B and C are symmetric, and C may be `out` itself. On a CPU large products take about half the multiplications.
    """
    if a.device.type != "cpu" or a.shape[-2] * a.shape[-1] < LARGE or a.shape[-2] < 2 * ROWS:
        if plus is None:
            return torch.bmm(a, b, out=out)
        return torch.baddbmm(plus, a, b, alpha=alpha, beta=beta, out=out)
    for i, found in enumerate(out):
        for start in range(0, len(found), ROWS):
            rows, upto = slice(start, start + ROWS), min(start + ROWS, len(found))
            left, right, part = a[i, rows], b[i, :, :upto], found[rows, :upto]
            if plus is None:
                torch.mm(left, right, out=part)
            else:
                torch.addmm(plus[i, rows, :upto], left, right, alpha=alpha, beta=beta, out=part)
            found[:start, rows].copy_(found[rows, :start].mT)
    return out
