"""Eigenvalues, spectral density and trace of a symmetric operator, from a few of its products.

Each answer comes with an error that was measured on the way, and says what that error proves.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from optscope.bisection import crossing
from optscope.devices import to_floats
from optscope.errors import UserError
from optscope.probes.hessian import SymmetricOperator

Array = NDArray[np.float64]

NOISE = 0.03
"""Standard deviation, a coordinate, of the noise that is added to a guess of length one. Measured on a trained
ResNet-8: as few products as with a tenth of it, and as low a limit as from noise alone."""
TINY = sys.float_info.min


class Krylov:
    """An orthonormal basis V of span{v, A v, A^2 v, ...}, made orthogonal to all its vectors, twice.

    After m products A V_m = V_m C + beta_m v_(m+1) e_m^T, exact but for the rounding of sums of vectors: C `(m, m)`
    holds all the coefficients that were subtracted, so errors of the products show as C - C^T. When the space is
    exhausted (beta_m = 0) the basis goes on from a random vector, which finds repeated eigenvalues too.
    """

    def __init__(self, operator: SymmetricOperator, start: Tensor, generator: torch.Generator) -> None:
        self._operator, self._generator = operator, generator
        self._basis: Tensor = (start / start.norm()).unsqueeze(0)
        self._coefficients = np.zeros((0, 0))
        self.betas: list[float] = []
        self.exhausted: int | None = None

    def __len__(self) -> int:
        return len(self.betas)

    @property
    def basis(self) -> Tensor:
        """V_m, `(m, P)`."""
        return self._basis[:len(self)]

    @property
    def matrix(self) -> Array:
        """S = (C + C^T) / 2, `(m, m)`: what the operator is on the basis."""
        return np.asarray(self._coefficients + self._coefficients.T) / 2

    def extend(self) -> None:
        """Make one product, and one more vector of the basis unless it spans the whole space.

        Raises:
            UserError: when a product is not finite.
        """
        m = len(self)
        grown = np.zeros((m + 1, m + 1))
        grown[:m, :m] = self._coefficients
        if m and m != self.exhausted:
            grown[m, m - 1] = self.betas[-1]
        rest, coefficients = self._orthogonal(self._operator(self._basis[m]), m + 1)
        *grown[:, m], beta = torch.cat([coefficients, rest.norm().reshape(1)]).tolist()  # one wait for a product
        self._coefficients = grown
        if not math.isfinite(beta):
            raise UserError("a product with this operator is not finite: the loss overflows at these weights; "
                            "measure an earlier step or lower the learning rate")
        self.betas.append(beta)
        if m + 1 == self._operator.size:
            return
        if beta <= 10 * torch.finfo(rest.dtype).eps * np.abs(grown).max():
            self.exhausted = m + 1
            rest, _ = self._orthogonal(noise(self._operator, self._generator), m + 1)
        if len(self._basis) == m + 1:
            self._basis = torch.cat([self._basis, torch.empty_like(self._basis)])
        self._basis[m + 1] = rest / rest.norm()

    def _orthogonal(self, vector: Tensor, count: int) -> tuple[Tensor, Tensor]:
        basis = self._basis[:count]
        first = basis @ vector
        vector = vector - basis.T @ first
        second = basis @ vector
        return vector - basis.T @ second, first + second

    def ritz(self) -> tuple[Array, Array, Array]:
        """Return Ritz values, descending, their vectors in the basis `(m, m)`, one a column, and residual norms.

        The residual of (theta, y) is |A V y - theta V y|^2 = |(C - S) y|^2 + beta_m^2 y_m^2.
        """
        values, vectors = np.linalg.eigh(self.matrix)
        values, vectors = values[::-1], vectors[:, ::-1]
        skew = (self._coefficients - self.matrix) @ vectors
        return values, vectors, np.hypot(np.linalg.norm(skew, axis=0), self.betas[-1] * np.abs(vectors[-1]))


@dataclass(frozen=True)
class Eigenpairs:
    """The largest eigenvalues that were found, what is proved about them, and what is only likely.

    Proved: within `errors[i]` of `values[i]` lies an eigenvalue, and the largest of all is at least
    `values[0] - errors[0]` (products are taken as exact: in float32 their rounding adds about 1e-6 of the largest).
    Likely: the largest of all is at most `limit`; this fails for at most one random start in a hundred.
    Not proved: that no eigenvalue was passed over among the lower ones, and how often each is repeated.

    Shapes: `values`, `errors` `(k,)`, descending; `vectors` `(k, P)`, orthonormal.
    """

    values: Tensor
    errors: Tensor
    vectors: Tensor
    limit: float
    products: int
    converged: bool


def largest(operator: SymmetricOperator, k: int = 1, *, rel: float = 1e-3, margin: float = 0.5,
            start: Tensor | None = None, most: int = 200, generator: torch.Generator | None = None) -> Eigenpairs:
    """Return the `k` largest eigenvalues by Lanczos with a full orthogonalisation.

    It stops when each has a residual of at most `rel` times itself, and the limit of the largest is at most
    `margin` (of the largest magnitude) above it: a residual alone can settle on a lower eigenvalue. After `most`
    products the best so far is returned with `converged=False`. `start` is a guess at the top eigenvector; noise
    is added to it, so that no other eigenvector is invisible. Parlett, "The symmetric eigenvalue problem",
    chapter 13.

    Raises:
        UserError: unless `1 <= k <= P`, `0 < rel < 1` and `margin > 0`.
    """
    if not 1 <= k <= operator.size:
        raise UserError(f"k must be between 1 and the {operator.size} parameters; got {k}")
    if not (0 < rel < 1 and margin > 0):
        raise UserError("rel must be a relative error between 0 and 1, such as 1e-3, and margin positive, such as "
                        f"0.5; got rel={rel!r} and margin={margin!r}")
    generator = generator or torch.Generator().manual_seed(0)
    random = mixed = noise(operator, generator)
    if start is not None and bool(start.any()):
        random = NOISE * math.sqrt(operator.size) * random
        mixed = start / start.norm() + random
    krylov = Krylov(operator, mixed, generator)
    share = float(random.norm() / mixed.norm())
    rounding = 10 * torch.finfo(operator.dtype).eps
    limit, done = math.inf, False
    while not done and len(krylov) < min(max(most, k), operator.size):
        krylov.extend()
        values, vectors, residuals = krylov.ritz()
        scale = float(np.abs(values).max())
        errors = residuals[:k] + rounding * scale
        settled = errors <= np.maximum(rel * np.abs(values[:k]), 2 * rounding * scale)
        limit = max(float(values[0] + errors[0]), _limit(krylov, float(values[0]), share))
        done = len(krylov) == operator.size or (
            len(krylov) >= k and bool(settled.all()) and limit <= values[0] + margin * max(scale, TINY))
    combine = torch.as_tensor(vectors[:, :k].T.copy(), dtype=operator.dtype, device=operator.device)
    return Eigenpairs(torch.from_numpy(values[:k].copy()), torch.from_numpy(errors), combine @ krylov.basis,
                      limit, len(krylov), done)


def noise(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    """Return a Gaussian vector `(P,)` of expected squared length one."""
    drawn = torch.randn(operator.size, generator=generator, dtype=torch.float64, device="cpu")
    drawn /= math.sqrt(operator.size)
    return drawn.to(operator.dtype).to(operator.device)


def _limit(krylov: Krylov, theta: float, share: float, risk: float = 0.01) -> float:
    """Return the number above which no eigenvalue lies, but for a `risk` over the start's random part.

    A unit eigenvector u of the eigenvalue mu has u.v_(j+1) = p_j(mu) u.v_1 with the Lanczos polynomials p_j, and
    sum_j (u.v_j)^2 <= 1: so |u.v_1| <= (sum_(j<=m) p_j(mu)^2)^(-1/2). A start v_1 with Gaussian noise of size
    share / sqrt(P) a coordinate does that with probability at most sqrt(2 P / pi) / share times the right side.
    van Dorsselaer, Hochstenbach and van der Vorst 2000, "Computing probabilistic bounds for extreme eigenvalues
    of symmetric matrices with the Lanczos method".
    """
    matrix: list[list[float]] = krylov.matrix.tolist()
    steps = krylov.exhausted or len(krylov)
    size = krylov.basis.shape[1]
    needed = math.log(math.sqrt(2 * size / math.pi) / (share * risk))

    def excess(mu: float) -> float:
        before, now, total = 0.0, 1.0, 1.0
        for j in range(steps):
            back = matrix[j][j - 1] * before if j else 0.0
            before, now = now, ((mu - matrix[j][j]) * now - back) / max(krylov.betas[j], TINY)
            total = math.hypot(total, now)
            if math.log(total) > needed:
                return math.inf
        return math.log(total) - needed

    if excess(theta) >= 0:
        return theta
    width = max(abs(theta), TINY)
    while excess(theta + width) < 0:
        width *= 2
    return theta + width * crossing(lambda part: min(excess(theta + part * width), 1.0), 0.0, 1.0, 1e-6)


@dataclass(frozen=True)
class Spectrum:
    """A spectral density as point masses: eigenvalues near `nodes`, `(s, m)`, with `weights` that sum to 1."""

    nodes: Array
    weights: Array
    products: int

    def density(self, at: Array, width: float) -> Array:
        """Return the masses smoothed by a Gaussian of standard deviation `width`, at the points `at`."""
        gaps = (np.asarray(at)[:, None] - self.nodes.ravel()) / width
        return np.asarray(np.exp(-gaps**2 / 2) @ self.weights.ravel() / (width * math.sqrt(2 * math.pi)))

    def mean(self, powers: int = 1) -> float:
        """Return the estimate of tr(A^powers) / P."""
        return float((self.weights * self.nodes**powers).sum())


def spectrum(operator: SymmetricOperator, *, samples: int = 4, steps: int = 40,
             generator: torch.Generator | None = None) -> Spectrum:
    """Return the density of eigenvalues by stochastic Lanczos quadrature: `samples` times `steps` products.

    A random start v sees the density weighted by (u_i.v)^2; its Gauss quadrature has the Ritz values as nodes
    and the squared first components as weights, exact for polynomials of degree 2 steps - 1. The nodes at the ends
    are accurate; the weight of a single eigenvalue is random, of a relative spread sqrt(2 / samples). Ubaru, Chen
    and Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature"; Ghorbani et al. 2019,
    arXiv 1901.10159.
    """
    generator = generator or torch.Generator().manual_seed(0)
    steps = min(steps, operator.size)
    nodes, weights = np.zeros((samples, steps)), np.zeros((samples, steps))
    products = 0
    for i in range(samples):
        krylov = Krylov(operator, noise(operator, generator), generator)
        while len(krylov) < steps and krylov.exhausted is None:
            krylov.extend()
        values, vectors, _ = krylov.ritz()
        nodes[i, :len(values)], weights[i, :len(values)] = values, vectors[0]**2 / samples
        products += len(krylov)
    return Spectrum(nodes, weights, products)


@dataclass(frozen=True)
class Trace:
    """An estimate of a trace with its standard error (over the random vectors alone) and the products used."""

    value: float
    error: float
    products: int


def trace(operator: SymmetricOperator, products: int = 30, *, generator: torch.Generator | None = None) -> Trace:
    """Return the trace by Hutch++, tr(Q^T A Q) + mean_i g_i^T (I - QQ^T) A (I - QQ^T) g_i, unbiased.

    Q is an orthonormal basis of A times a third of the random vectors; the rest is Hutchinson's estimate, whose
    spread gives the standard error. It is an estimate of the spread from a third of the products: from few of
    them, it is itself uncertain by 1/sqrt(2 (products/3 - 1)). Meyer, Musco, Musco and Woodruff 2021,
    arXiv 2010.09649, algorithm 1.

    Raises:
        UserError: for fewer than 6 products.
    """
    if products < 6:
        raise UserError(f"Hutch++ needs at least 6 products (2 for each of its three parts); got {products}")
    generator = generator or torch.Generator().manual_seed(0)
    third = min(products // 3, operator.size)
    sketch = torch.stack([operator(_signs(operator, generator)) for _ in range(third)])
    basis = torch.linalg.qr(sketch.T).Q.T
    known = sum(to_floats(*(q @ operator(q) for q in basis)))
    if third == operator.size:
        return Trace(known, 0.0, 2 * third)
    samples = []
    for _ in range(products - 2 * third):
        g = _signs(operator, generator)
        g = g - basis.T @ (basis @ g)
        samples.append(g @ operator(g))
    found = np.array(to_floats(*samples))
    return Trace(known + float(found.mean()), float(found.std(ddof=1)) / math.sqrt(len(found)), products)


def _signs(operator: SymmetricOperator, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(0, 2, (operator.size,), generator=generator, device="cpu") * 2 - 1
    return drawn.to(operator.dtype).to(operator.device)
