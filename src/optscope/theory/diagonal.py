"""Deep diagonal models under plain and polar (weight-normalised) gradient flow: limits, invariants, bounds, rates.

The model is x = w∘ᴸ >= 0 or, signed, x = w∘ᴸ − v∘ᴸ, with loss ½‖A x − y‖². All factors start alike, so one vector
z = (w; v) stands for each of them. Plain flow: z' = −G, with G the gradient by one factor. Polar flow writes z as
r u, ‖u‖ = 1, one norm for the whole vector, and gives norm and direction a rate each, η_r = 1 and η_u = κ (ratio):

    r' = −⟨u, G⟩        u' = −κ r (G − ⟨u, G⟩ u)        z' = −D G,  D = u uᵀ + κ r² (I − u uᵀ)

κ = 1/r(t)² at every time is the plain flow; κ = 1/‖z(0)‖² is torch's `weight_norm` with one learning rate.

Source: arXiv 2305.05448, whose claims these formulas make exact; they are derived from the flow itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import linprog

from optscope.errors import UserError
from optscope.theory.bregman import Array, project


@dataclass(frozen=True, eq=False)
class Limit:
    """Where a flow ends: `parts` `(..., J, N)`, x = Σ_j signs_j parts_j, and the start that leads there.

    `log_rho` `(...)` is the logarithm of the magnification ρ: a polar flow from x0 ends where the plain flow from
    ρ x0 does. It is 0 for plain flows.
    """

    parts: Array
    signs: Array
    depth: int
    log_rho: Array

    @property
    def x(self) -> Array:
        """The solution, `(..., N)`."""
        return np.asarray((self.signs[:, None] * self.parts).sum(-2))

    @property
    def l1(self) -> Array:
        """‖x‖₁, `(...)`."""
        return np.asarray(np.abs(self.x).sum(-1))

    @property
    def square_norm(self) -> Array:
        """r² = Σ x_j^{2/L}, the squared norm of one factor, `(...)`."""
        return square_norm(self.parts, self.depth)


def square_norm(parts: Array, depth: int) -> Array:
    """Return r² = Σ x_j^{2/L} over the parts `(..., J, N)` of a model: the squared norm of one factor."""
    return np.asarray((parts ** (2 / depth)).sum((-1, -2)))


def fit(A: ArrayLike, y: ArrayLike, start: ArrayLike = 1e-3, *, depth: int = 2, ratio: ArrayLike | None = None,
        signed: bool = True) -> Limit:
    """Solve A x = y by the exact limit of plain flow from x(0) = `start`, or of polar flow with κ = `ratio`.

    A small `start`, or a large `ratio`, gives nearly the solution with the least ‖x‖₁ (basis pursuit). `A` is
    `(..., M, N)`, `y` `(..., M)`; leading axes are independent problems. `start` is one number,
    one a problem, or one an entry: `(..., 1 or 2, N)`, the parts of the signed model apart. `ratio` is one number,
    or one a problem.

    >>> for ratio in (None, 30.0):
    ...     print(fit([[1.0, 2.0]], [2.0], start=0.1, ratio=ratio).x.round(3).tolist())
    [0.263, 0.869]
    [0.0, 1.0]

    A polar flow ends where F(log ρ) = log ρ − L log(r/r0) + (κL/2)(r² − r0²) vanishes, with r that of the plain
    limit from ρ x0. F is increasing, as (L/2) dr²/d log ρ lies between 0 and r², so the root is unique.

    Raises:
        UserError: for arrays that do not fit, y = 0, start <= 0, depth < 2, ratio <= 0, or a system that has no
            solution; when log ρ is not found, for an extreme ratio or start.
    """
    matrix, target, log_start, signs = _problem(A, y, start, depth, signed)
    kappa = None
    if ratio is not None:
        check_ratio(ratio)
        given = np.asarray(ratio, dtype=np.float64)
        try:
            kappa = np.broadcast_to(given, target.shape[:-1])
        except ValueError as error:
            raise UserError(f"ratio must be one number, or one a problem, {target.shape[:-1]}; got "
                            f"{given.shape}") from error
    parts, log_rho = project(matrix, target, log_start, depth, signs, kappa)
    return Limit(parts, signs, depth, log_rho)


def _problem(A: ArrayLike, y: ArrayLike, start: ArrayLike, depth: int,
             signed: bool) -> tuple[Array, Array, Array, Array]:
    """Return A, y, log x0 `(..., J, N)` and the signs of the parts, once they make sense."""
    matrix, target, first = (np.asarray(v, dtype=np.float64) for v in (A, y, start))
    check_depth(depth)
    if matrix.ndim < 2 or target.shape != matrix.shape[:-1] or not matrix.size:
        raise UserError(f"A must be (..., M, N) and y (..., M); got {matrix.shape} and {target.shape}")
    _check_finite(matrix, target)
    if not target.any(-1).all():
        raise UserError("y must not be 0: the flow then ends at x = 0 whatever the start; got y = 0")
    check_start(start)
    signs = np.array([1.0, -1.0] if signed else [1.0])
    if first.ndim == target.ndim - 1:
        first = first[..., None, None]
    shape = (*target.shape[:-1], len(signs), matrix.shape[-1])
    try:
        log_start = np.broadcast_to(np.log(first), shape)
    except ValueError as error:
        raise UserError(f"start must be one number, one a problem, or {shape}; got {first.shape}") from error
    return matrix, target, log_start, signs


def _check_finite(matrix: Array, target: Array) -> None:
    if not (np.isfinite(matrix).all() and np.isfinite(target).all()):
        raise UserError("A and y must be finite; got nan or inf: clean them first")


def check_depth(depth: object) -> None:
    """Raise UserError unless depth is a whole number >= 2: with one factor there is nothing to normalise."""
    if isinstance(depth, bool) or not isinstance(depth, int) or depth < 2:
        raise UserError(f"the depth L of a diagonal model must be a whole number >= 2; got {depth!r}")


def check_start(start: ArrayLike) -> None:
    """Raise UserError unless a start x(0) is finite and positive: from 0 the weights never move."""
    first = np.asarray(start, dtype=np.float64)
    if not (np.isfinite(first) & (first > 0)).all():
        raise UserError(f"the start of a diagonal model must be finite and > 0; got {start!r}: write for example "
                        "start=1e-3")


def check_ratio(ratio: ArrayLike) -> None:
    """Raise UserError unless the ratio κ of the direction's rate to the norm's is finite and positive."""
    kappa = np.asarray(ratio, dtype=np.float64)
    if not (np.isfinite(kappa) & (kappa > 0)).all():
        raise UserError("the ratio of the direction's rate to the norm's must be a finite number > 0; "
                        f"got {ratio!r}: write ratio=None for plain flow")


def basis_pursuit(A: ArrayLike, y: ArrayLike, *, signed: bool = True) -> Array:
    """Return a solution of A x = y with the least ‖x‖₁ (and x >= 0 unless `signed`), by linear programming (HiGHS).

    >>> basis_pursuit([[1.0, 2.0]], [2.0]).tolist()
    [0.0, 1.0]

    Raises:
        UserError: for arrays that do not fit or are not finite, or when there is no solution.
    """
    matrix, target = np.asarray(A, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if matrix.ndim != 2 or target.shape != matrix.shape[:1] or not matrix.size:
        raise UserError(f"A must be (M, N) and y (M,); got {matrix.shape} and {target.shape}: one system at a time")
    _check_finite(matrix, target)
    stacked = np.hstack([matrix, -matrix]) if signed else matrix
    found = linprog(np.ones(stacked.shape[1]), A_eq=stacked, b_eq=target, bounds=(0, None), method="highs-ds",
                    options={"primal_feasibility_tolerance": 1e-10, "dual_feasibility_tolerance": 1e-10})
    if found.status != 0 or found.x is None:
        where = "" if signed else " with x >= 0; write signed=True to allow both signs"
        raise UserError(f"the system A x = y has no solution{where}")
    size = matrix.shape[1]
    return np.asarray(found.x[:size] - found.x[size:] if signed else found.x, dtype=np.float64)


def threshold(x: ArrayLike, depth: int, signed: bool = True) -> float:
    """Return the start α at which r0² = r²: polar flow towards `x` helps much below it, and hardly above.

    J N α^{2/L} = Σ |x_i|^{2/L}, with J N the number of weights of a factor.
    """
    weights = np.abs(np.asarray(x, dtype=np.float64))
    return float(((weights ** (2 / depth)).sum() / ((1 + signed) * len(weights))) ** (depth / 2))


def invariant(u: ArrayLike, r: ArrayLike, depth: int, ratio: float) -> Array:
    """Return the vector c(t) `(..., J N)` whose product with every n in ker B stays constant under the polar flow.

        L = 2: c = log u + κ r²/2        L > 2: c = u^{−(L−2)} exp(−κ (L−2) r²/2)

    `u` is `(..., J N)`, `r` `(...)`; B = A, or [A, −A] in the signed model. The reason: s = u exp(κ r²/2) follows
    the plain flow, in a time of its own.
    """
    direction = np.asarray(u, dtype=np.float64)
    half = (ratio * np.asarray(r, dtype=np.float64) ** 2 / 2)[..., None]
    if depth == 2:
        return np.asarray(np.log(direction) + half)
    return np.asarray(np.exp(-(depth - 2) * (np.log(direction) + half)))


def excess_bound(start: ArrayLike, size: int, least: float, depth: int) -> Array:
    """Return a bound on the excess (‖x‖₁ − Q)/Q of the plain limit from the uniform `start` α; inf where N α >= Q.

    `size` is the number of weights of a factor, N (2N if signed), `least` is Q. With p = 1 − 2/L,

        L = 2: log N / log(Q/(N α))        L > 2: (L/2) (N^p − 1)/((Q/α)^p − N^p).

    For polar flow insert ρ α.

    >>> excess_bound([1e-6, 1e-2], 100, 1.0, 2).round(3).tolist()
    [0.5, inf]
    """
    alpha, p = np.asarray(start, dtype=np.float64), 1 - 2 / depth
    with np.errstate(divide="ignore"):
        if depth == 2:
            bound = math.log(size) / np.log(least / (size * alpha))
        else:
            bound = depth / 2 * (size**p - 1) / ((least / alpha) ** p - size**p)
    return np.asarray(np.where(size * alpha < least, bound, np.inf))


def robust_bound(start: ArrayLike, size: int, least: float, ratio: float) -> Array:
    """Return the bound log N/(κ (Q − N α)) on the excess of a polar limit, L = 2; inf unless κ Q >= 1 and N α < Q.

    It does not fall apart as α grows, until N α comes near Q.
    """
    left = least - size * np.asarray(start, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(np.where((left > 0) & (ratio * least >= 1), math.log(size) / (ratio * left), np.inf))


def rate(A: ArrayLike, parts: Array, signs: Array, depth: int, ratio: float | None = None) -> float:
    """Return the rate at which the residual decays in the end, exp(−rate t), of plain flow or of polar with κ.

    rate = L λ_min(B W D W Bᵀ), W = diag(z^{L−1}), with z the weights of a factor at the limit `parts` `(J, N)` and
    D = I, or u uᵀ + κ r² (I − u uᵀ). Time is that of one factor's own gradient, with η_r = 1.
    """
    matrix = np.asarray(A, dtype=np.float64)
    z = parts ** (1 / depth)
    half = np.concatenate([s * matrix * w ** (depth - 1) for s, w in zip(signs, z, strict=True)], axis=1)
    if ratio is None:
        return float(depth * np.linalg.eigvalsh(half @ half.T)[0])
    square = float((z**2).sum())
    along = half @ (z.reshape(-1) / math.sqrt(square))
    inner = ratio * square * (half @ half.T) + (1 - ratio * square) * np.outer(along, along)
    return float(depth * np.linalg.eigvalsh(inner)[0])
