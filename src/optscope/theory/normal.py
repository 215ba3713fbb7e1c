"""Normal equations A diag(w) Aᵀ z = b, by a Cholesky factor that is as exact as it need be.

Whoever iterates needs no exact factor: one in single precision takes half of the time, and leaves of an error what
rounding makes, magnified by the condition of the system. Where that may be much it is double.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dpocon, dpotrf, dpotrs, spocon, spotrf, spotrs

Array = NDArray[np.float64]

RIDGE = 1e-15  # of rounding size, in units of the trace, against singular systems ...
MOST_RIDGES = 6  # ... and ten times more whenever that is not enough
SMALL = 1e6  # products of a system up to which a factor costs less than what is around it
STEEP = 1e-3  # the reciprocal condition of A Aᵀ, or the share of pivots, below which single precision will not do


class Normal:
    """The systems A diag(w) Aᵀ of a matrix `(M, N)`, and the factor of the last one, which `single` tells of.

    `coarse` is whether factors may be in single precision; it ends by itself where A Aᵀ, or a later system, is of a
    bad condition, and whoever sees that one does not serve sets it to False.
    """

    def __init__(self, A: Array) -> None:
        self.A, self.coarse, self.single = A, len(A) * A.size > SMALL, False
        if self.coarse:
            self._low = A.astype(np.float32)
        self._factor: NDArray[np.floating] = np.empty((0, 0))
        self._size = 1.0

    def factor(self, weight: Array) -> bool:
        """Keep the factor for a weight `(N,)`; return whether there is one."""
        self.single = self.coarse and self._single(weight)
        return self.single or self._double(weight)

    def condition(self) -> float:
        """Return an estimate of the reciprocal condition of the system whose factor is kept."""
        estimate = spocon if self.single else dpocon
        return float(estimate(self._factor, 1.0, uplo="L")[0])

    def solve(self, right: Array) -> Array:
        """Return Aᵀ z, `(N,)`, for a right-hand side `(M,)`."""
        if not self.single:
            return np.asarray(dpotrs(self._factor, right, lower=1)[0] @ self.A)
        size = max(right.max(), -right.min())
        if not size:
            return np.zeros(self.A.shape[1])
        z = spotrs(self._factor, (right / size).astype(np.float32), lower=1)[0]
        return np.asarray((z * (size / self._size)) @ self.A)

    def _single(self, weight: Array) -> bool:
        self._size = float(weight.max())
        scaled = self._low * np.sqrt(weight / self._size).astype(np.float32)
        self._factor, failed = spotrf((scaled @ scaled.T).T, lower=1, clean=0, overwrite_a=1)
        pivots = np.einsum("ii->i", self._factor)
        return not failed and bool(pivots.min() ** 2 > STEEP * pivots.max() ** 2)

    def _double(self, weight: Array) -> bool:
        gram = dsyrk(1.0, (self.A * np.sqrt(weight)).T, trans=1, lower=1)
        diagonal = np.einsum("ii->i", gram)  # a view
        ridge = RIDGE * diagonal.sum()
        for _ in range(MOST_RIDGES):
            diagonal += ridge
            self._factor, failed = dpotrf(gram, lower=1, clean=0)
            if not failed:
                return True
            ridge *= 10
        return False
