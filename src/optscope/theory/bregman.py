"""Where gradient flow on a deep diagonal model ends: a Bregman projection, by Newton's method on its dual.

The model is x = Σ_j s_j x_j with positive parts x_j = w_j∘ᴸ: one part with sign +1 (x >= 0), or two with signs ±1.
From the start x0 > 0 the flow on ½‖A x − y‖² ends at the point of {A x = y} that is nearest in the Bregman sense:

    L = 2:  min Σ z log(z/x0) − z                        log x  = log x0 + s Aᵀν
    L > 2:  min Σ −(L/2) z^{2/L} + x0^{−p} z             x^{−p} = x0^{−p} − s Aᵀν,   p = 1 − 2/L

with ν the dual variable, one number a row of A. Both are affine in ζ = −log x or ζ = x^{−p}: ζ = ζ0 − s Aᵀν.
Newton's method runs on (ζ, ν) together, so that it may begin anywhere, and on a path of falling starts when x0 is
small.

Source: arXiv 2305.05448 and, for the plain flow, arXiv 2112.11027; the conditions follow from ζ' ∝ s Aᵀ(A x − y).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optscope.errors import UserError

Array = NDArray[np.float64]

TOLERANCE = 1e-12
"""The last Newton step, in units of the largest entry of x."""
SOLVABLE = 1e-7
"""The largest residual of the nearest solution, in units of the largest entry of y."""
LOOSE = 0.1  # the same for starts on the way
MOST_STEPS = 400
RISE = 2.0  # an entry may rise by this factor's logarithm in one step ...
NEGLIGIBLE = 1e-2  # ... or to this share of the typical entry
FIRST, FACTOR, LEAP = 8.0, 4.0, 500.0  # the path of starts: see `_path`
NONE_POSITIVE = ("no solution of A x = y with all entries above 0 was found; give a system that has one, or let x "
                 "have both signs: signed=True")
FLOOR = 1e-13
"""For L > 2, smaller starts (in typical entries) give the same x to this precision, small entries apart: they are
proportional to x0."""


@dataclass(frozen=True)
class Projection:
    """The end of the flow: `parts` x_j, and their `response` d log x_j / d log x0, both `(..., J, N)`."""

    parts: Array
    response: Array
    steps: int


def project(A: Array, y: Array, log_start: Array, depth: int, signs: Array) -> Projection:
    """Return the Bregman projection of exp(log_start) `(..., J, N)` onto {A Σ s_j x_j = y}.

    `A` is `(..., M, N)`, `y` `(..., M)`, `signs` `(J,)` of ±1; leading axes are independent problems.

    Raises:
        UserError: when the system has no solution, or none with all entries above 0 is found.
    """
    shape = log_start.shape
    flat = (A.reshape(-1, *A.shape[-2:]), y.reshape(-1, y.shape[-1]), log_start.reshape(-1, *shape[-2:]))
    newton = _Newton(*flat, depth, signs)
    for steps in range(1, MOST_STEPS + 1):
        newton.step()
        if not len(newton.active):
            return Projection(newton.parts.reshape(shape), newton.response.reshape(shape), steps)
    raise UserError(NONE_POSITIVE)


class _Newton:
    """The iteration on all problems at once; those that have converged leave it."""

    def __init__(self, A: Array, y: Array, log_start: Array, depth: int, signs: Array) -> None:
        self.depth, self.power, self.signs = depth, 1 - 2 / depth, signs[:, None]
        gram = A @ A.swapaxes(-1, -2)
        nearest = (A.swapaxes(-1, -2) @ _solve(gram, y)[..., None])[..., 0]
        gap = np.abs((A @ nearest[..., None])[..., 0] - y).max(-1)
        if (gap > SOLVABLE * np.abs(y).max(-1)).any():
            raise UserError("the system A x = y has no solution: y must lie in the range of A; drop rows that "
                            "contradict each other, or measure less than there are unknowns")
        self.scale = np.abs(nearest).mean(-1)[:, None, None]
        self.A, self.y, self.log_start = A, y, log_start
        self.active = np.arange(len(A))
        self.ends = self._ends()
        self.now = self._path(np.zeros(len(A)))
        self.zeta = self._zeta(np.log(np.maximum(self.signs * nearest[:, None], 0) + 0.3 * self.scale))
        self.nu, self.full = np.zeros_like(y), np.zeros(len(A), bool)
        self.parts, self.response = np.empty_like(log_start), np.empty_like(log_start)

    def _zeta(self, log_x: Array) -> Array:
        return np.asarray(-log_x if self.depth == 2 else np.exp(-self.power * log_x))

    def _log_x(self, zeta: Array) -> Array:
        return np.asarray(-zeta if self.depth == 2 else -np.log(zeta) / self.power)

    def _ends(self) -> Array:
        """Return how far below the typical entry each start lies, log(scale/x0), at least where it matters."""
        fall = (np.log(self.scale) - self.log_start).min((-1, -2))
        return np.asarray(fall if self.depth == 2 else np.minimum(fall, -np.log(FLOOR)))

    def _path(self, now: Array) -> Array:
        """Return the next fall on the way to the end: times FACTOR for L = 2, plus log(LEAP)/p otherwise."""
        further = now * FACTOR if self.depth == 2 else now + np.log(LEAP) / self.power
        return np.minimum(self.ends, np.where(now == 0, FIRST, further))

    def _target(self) -> Array:
        """Return ζ0 of the start that is being solved for."""
        fall = (np.log(self.scale) - self.log_start).min((-1, -2))
        if self.depth == 2:
            share = np.where(fall > 0, self.now / np.where(fall > 0, fall, 1), 1.0)[:, None, None]
            return np.asarray((1 - share) * -np.log(self.scale) - share * self.log_start)
        return np.asarray(np.exp(-self.power * (self.log_start + (fall - self.now)[:, None, None])))

    def step(self) -> None:
        """Make one Newton step on every problem, and let go of those that are solved."""
        log_x = self._log_x(self.zeta)
        x = np.exp(log_x)
        slope = x if self.depth == 2 else x / (self.power * self.zeta)  # −dx/dζ
        At = self.A.swapaxes(-1, -2)
        gap = self.signs * (At @ self.nu[..., None])[:, None, :, 0] - (self._target() - self.zeta)
        missing = self.y - (self.A @ (self.signs * x).sum(1)[..., None])[..., 0]
        scaled = self.A * np.sqrt(slope.sum(1))[:, None]
        hessian = scaled @ scaled.swapaxes(-1, -2)
        change = _solve(hessian, missing - (self.A @ (self.signs * slope * gap).sum(1)[..., None])[..., 0])
        fall = self.signs * (At @ change[..., None])[:, None, :, 0] + gap
        part = self._share(fall)
        moved = np.abs(slope * fall).max((-1, -2)) / x.max((-1, -2))
        self.zeta, self.nu = self.zeta - part[:, None, None] * fall, self.nu + part[:, None] * change
        last = self.now >= self.ends
        full = part == 1
        solved = full & self.full & (moved < TOLERANCE) & last
        onward = full & (moved < LOOSE) & ~last
        self.full = full
        if onward.any():
            self._advance(onward)
        if solved.any():
            self._keep(solved, hessian, slope)

    def _share(self, fall: Array) -> Array:
        """Return the largest share of the step, up to 1, that lets no entry rise too far."""
        rise = np.maximum(self._log_x(self.zeta) + RISE, np.log(NEGLIGIBLE * self.scale))
        room = self.zeta - self._zeta(rise)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(fall > 0, room / fall, np.inf)
        return np.asarray(np.minimum(shares.min((-1, -2)), 1.0))

    def _advance(self, onward: NDArray[np.bool_]) -> None:
        """Go on to the next start; for L > 2 the small entries, which go with it, are taken along."""
        before = self.now.copy()
        self.now = np.where(onward, self._path(self.now), self.now)
        if self.depth > 2:
            ratio = np.exp(self.power * (self.now - before))
            small = self._log_x(self.zeta) < np.log(NEGLIGIBLE * self.scale)
            self.zeta = np.where(small, self.zeta * ratio[:, None, None], self.zeta)
            self.nu = self.nu * ratio[:, None]

    def _keep(self, solved: NDArray[np.bool_], hessian: Array, slope: Array) -> None:
        """Write down what is solved, with its derivative by log x0, and go on with the rest."""
        log_x = self._log_x(self.zeta)
        if self.depth > 2:  # entries that go with x0 are scaled from the start that was solved to the one asked for
            fall = (np.log(self.scale) - self.log_start).min((-1, -2)) - self.now
            small = log_x < np.log(1e-4 * self.scale)
            log_x = np.where(small, log_x - fall[:, None, None], log_x)
        pull = np.ones_like(slope) if self.depth == 2 else self.power * self._target()  # −dζ0/d log x0
        back = _solve(hessian, (self.A @ (self.signs * slope * pull).sum(1)[..., None])[..., 0])
        along = self.signs * (self.A.swapaxes(-1, -2) @ back[..., None])[:, None, :, 0]
        which = self.active[solved]
        self.parts[which] = np.exp(log_x)[solved]
        self.response[which] = ((pull - along) / (1 if self.depth == 2 else self.power * self.zeta))[solved]
        rest = ~solved
        for name in ("A", "y", "log_start", "scale", "active", "ends", "now", "zeta", "nu", "full"):
            setattr(self, name, getattr(self, name)[rest])


def _solve(matrix: Array, right: Array) -> Array:
    """Solve symmetric positive systems `(..., M, M)`, with a ridge of rounding size against singular ones."""
    ridge = 1e-15 * np.trace(matrix, axis1=-2, axis2=-1)[..., None, None]
    try:
        solution: Array = np.linalg.solve(matrix + ridge * np.eye(matrix.shape[-1]), right[..., None])[..., 0]
    except np.linalg.LinAlgError as error:  # entries have grown, or shrunk, out of all bounds
        raise UserError(NONE_POSITIVE) from error
    return solution
