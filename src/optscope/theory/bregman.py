"""Where gradient flow on a deep diagonal model ends: a Bregman projection, by Newton's method on its dual.

The model is x = Σ_j s_j x_j with positive parts x_j = w_j∘ᴸ: one part with sign +1 (x >= 0), or two with signs ±1.
From the start x0 > 0 the flow on ½‖A x − y‖² ends at the point of {A x = y} that is nearest in the Bregman sense:

    L = 2:  min Σ z log(z/x0) − z                        log x  = log x0 + s Aᵀν
    L > 2:  min Σ −(L/2) z^{2/L} + x0^{−p} z             x^{−p} = x0^{−p} − s Aᵀν,   p = 1 − 2/L

with ν the dual variable, one number a row of A. Both are affine in ζ = −log x or ζ = x^{−p}: ζ = ζ0 − s Aᵀν.
A polar flow from x0 ends where the plain flow from ρ x0 does, with log ρ one more unknown, the root of

    F(log ρ) = log ρ − L log(r/r0) + (κL/2)(r² − r0²),   r² = Σ x^{2/L}.

Newton's method runs on (ζ, ν, log ρ) together, so that it may begin anywhere. When x0 is small it begins at a
larger ρ x0, and comes down once that is nearly solved. The cost is that of H = A diag(−dx/dζ) Aᵀ, so its factor
serves until the diagonal has changed: with changes of a share ε, a step by the old one leaves ε times the error.

Source: arXiv 2305.05448 and, for the plain flow, arXiv 2112.11027; the conditions follow from ζ' ∝ s Aᵀ(A x − y).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.blas import dsyrk
from scipy.linalg.lapack import dpocon, dpotrf, dpotrs

from optscope.errors import UserError

Array = NDArray[np.float64]

TOLERANCE = 1e-13
"""What the next step would move, in units of the largest entry of x."""
SETTLED, STALLED = 1e-12, 1e-6
"""Log ρ is found when its last move (relative where log ρ is large) is below the first; or below the second, if a
fresh factor no longer halves it, as r² then hangs on entries of rounding size."""
SOLVABLE = 1e-7
"""The largest residual of the nearest solution, in units of the largest entry of y."""
LOOSE = 0.3  # the last step, in units of the largest entry of x, after which log ρ moves too
STALE = 0.05  # the relative change of the diagonal that calls for a new factor
SKEWED = 1e-6  # the reciprocal condition of A Aᵀ below which the rows are made orthonormal first
LOST = 1e-13  # the share of the largest singular value at which one is rounding
RIDGE = 1e-15  # of rounding size, in units of the trace, against singular systems ...
MOST_RIDGES = 6  # ... and ten times more whenever that is not enough
MOST_STEPS = 400
RISE = 2.0  # an entry may rise by this factor's logarithm in one step ...
NEGLIGIBLE = np.log(1e-2)  # ... or to this share of the typical entry
FIRST = 3.0  # the logarithm by which the first start lies below the typical entry, at most
FLOOR = np.log(1e-13)
"""For L > 2, smaller starts (in typical entries) give the same x to this precision, small entries apart: they are
proportional to x0."""
SMALL = np.log(1e-4)
DROWNED = 1e-5
"""The largest rounding of the parts, in units of x, with which a limit is given."""
NONE_POSITIVE = ("no solution of A x = y with all entries above 0 was found; give a system that has one, or let x "
                 "have both signs: signed=True")
NOT_FOUND = ("the limit of the flow on A x = y was not found: rows of A may nearly depend on each other, or the "
             "start be too far from the solution's size; drop such rows, or try a start nearer to it")


def project(A: Array, y: Array, log_start: Array, depth: int, signs: Array,
            kappa: Array | None = None) -> tuple[Array, Array]:
    """Return the Bregman projection of ρ exp(log_start) onto {A Σ s_j x_j = y}, `(..., J, N)`, and log ρ, `(...)`.

    `A` is `(..., M, N)`, `y` `(..., M)`, `signs` `(J,)` of ±1; leading axes are independent problems. ρ is 1, or
    the root of F for the ratios `kappa` `(...)`.

    Raises:
        UserError: when the system has no solution, or none with all entries above 0 is found, or log ρ is not, or
            rounding keeps the limit from A x = y.
    """
    problems = [_Newton(A[i], y[i], log_start[i], depth, signs, None if kappa is None else float(kappa[i]))
                for i in np.ndindex(y.shape[:-1])]
    parts = np.stack([problem.solve() for problem in problems]).reshape(log_start.shape)
    return parts, np.array([problem.log_rho for problem in problems]).reshape(y.shape[:-1])


class _Newton:
    """The iteration on one problem, of whose unknowns ζ and log ρ are kept: ν follows from them."""

    def __init__(self, A: Array, y: Array, log_start: Array, depth: int, signs: Array, kappa: float | None) -> None:
        norms = np.linalg.norm(A, axis=1)
        norms = np.where(norms > 0, norms, 1.0)  # rows of any size count alike
        self.rows, self.right = np.ascontiguousarray(A / norms[:, None]), y / norms
        self.A, self.y, self.log_start = self.rows, self.right, log_start
        self.depth, self.power, self.kappa = depth, 1 - 2 / depth, kappa
        self.signs, self.column = signs, signs[:, None]
        self._factor(np.ones(A.shape[1]))
        if dpocon(self.factor, 1.0, uplo="L")[0] < SKEWED:
            self._straighten()
            self._factor(np.ones(A.shape[1]))
        nearest = self._solve(self.y)
        if self._misses(nearest):
            raise UserError("the system A x = y has no solution: y must lie in the range of A; drop rows that "
                            "contradict each other, or measure less than there are unknowns")
        scale = np.abs(nearest).mean()
        self.typical, self.square0 = float(np.log(scale)), float(np.exp(2 / depth * log_start).sum())
        self.fall = self.typical - float(log_start.max())
        self.log_rho = max(0.0, self.fall - FIRST)
        least = np.maximum(0.3 * scale, np.exp(log_start + self.log_rho))
        self._put(self._zeta(np.log(np.maximum(self.column * nearest, 0) + least)))

    def solve(self) -> Array:
        """Return the parts of the limit."""
        gap, before, fresh, near = self.zeta - self._start(), 0.0, True, False  # gap = ζ − ζ0 + s Aᵀν
        for _ in range(MOST_STEPS):
            if fresh:
                weight = self.weight
                self._factor(weight)
            missing = self.y - self.A @ (self.signs @ (self.x + self.slope * gap))
            fall = self.column * self._solve(missing) + gap
            move = lift = 0.0
            if near and (self.kappa is not None or self.log_rho):
                pull = self._pull()
                move = self._move(fall, pull, before)
                lift = self._lift(move)
                fall -= lift * pull
            part = self._share(fall)
            if part < 1 and not fresh:
                fresh = True
                continue
            moved = part * float((self.slope * np.abs(fall)).max() / self.x.max())
            if part < 1:
                move = -part * lift if self.depth == 2 else -float(np.log1p(self.power * part * lift)) / self.power
            self.log_rho += move
            gap = (1 - part) * gap
            self._put(self.zeta - part * fall)
            drift = float((np.abs(self.weight - weight) / (weight + RIDGE * self.weight.max())).max())
            last = (STALLED if fresh and abs(move) > abs(before) / 2 else SETTLED) * max(1, abs(self.log_rho))
            if near and part == 1 and moved * drift < TOLERANCE and abs(move) <= last:
                parts = self._met(self._parts())
                if self._misses(self.signs @ parts) or self._drowned(parts):
                    raise UserError(NOT_FOUND)
                return parts
            fresh = drift > STALE or abs(move) > STALE * abs(before)
            near, before = part == 1 and moved < LOOSE, move
        raise UserError(f"log ρ was not found in {MOST_STEPS} steps; the ratio {self.kappa} or the start may be "
                        "extreme: try others" if near and self.kappa is not None else self._failed())

    def _misses(self, x: Array, by: float = SOLVABLE) -> bool:
        """Return whether x is too far from A x = y."""
        return bool(np.abs(self.rows @ x - self.right).max() > by * np.abs(self.right).max())

    def _straighten(self) -> None:
        """Solve with orthonormal rows in place of these: normal equations square the condition of a system.

        Singular values of rounding size are those of rows that repeat others: `_misses` sees what they ask for.
        """
        left, sizes, across = np.linalg.svd(self.rows, full_matrices=False)
        kept = sizes > LOST * sizes[0]
        self.A = np.ascontiguousarray(across[kept])
        self.y = left.T[kept] @ self.right / sizes[kept]

    def _drowned(self, parts: Array) -> bool:
        """Return whether x, a difference of parts, is of the size of their rounding: A x = y can hold even then."""
        x = np.abs(self.signs @ parts).max()
        return bool(np.finfo(np.float64).eps * parts.max() > DROWNED * x)

    def _failed(self) -> str:
        return NONE_POSITIVE if len(self.signs) == 1 else NOT_FOUND

    def _factor(self, weight: Array) -> None:
        """Keep the Cholesky factor of H = A diag(weight) Aᵀ."""
        gram = dsyrk(1.0, (self.A * np.sqrt(weight)).T, trans=1, lower=1)
        diagonal = np.einsum("ii->i", gram)  # a view
        ridge = RIDGE * diagonal.sum()
        for _ in range(MOST_RIDGES):
            diagonal += ridge
            self.factor, failed = dpotrf(gram, lower=1, clean=0)
            if not failed:
                return
            ridge *= 10
        raise UserError(self._failed())  # entries have grown, or shrunk, out of all bounds

    def _solve(self, right: Array) -> Array:
        """Return AᵀH⁻¹ right."""
        return np.asarray(dpotrs(self.factor, right, lower=1)[0] @ self.A)

    def _zeta(self, log_x: Array) -> Array:
        return np.asarray(-log_x if self.depth == 2 else np.exp(-self.power * log_x))

    def _put(self, zeta: Array) -> None:
        """Set ζ and what goes with it: log x and x, and how both rise as ζ falls."""
        self.zeta = zeta
        self.log_x = -zeta if self.depth == 2 else np.log(zeta) / -self.power
        self.x = np.exp(self.log_x)
        self.grade = 1.0 if self.depth == 2 else 1 / (self.power * zeta)
        self.slope = self.x * self.grade
        self.weight = np.add.reduce(self.slope)

    def _reach(self, log_rho: float) -> float:
        """Return how far log x0 for that ρ lies below the typical entry, at least where it matters."""
        fall = self.fall - log_rho
        return fall if self.depth == 2 else min(fall, -FLOOR)

    def _start(self) -> Array:
        """Return ζ0."""
        return self._zeta(self.log_start + self.fall - self._reach(self.log_rho))

    def _lift(self, move: float) -> float:
        """Return how far a move of log ρ raises ζ0, in units of −dζ0/d log ρ."""
        lift = self._reach(self.log_rho + move) - self._reach(self.log_rho)
        return lift if self.depth == 2 else float(np.expm1(self.power * lift)) / self.power

    def _pull(self) -> Array:
        """Return −dζ/d log ρ."""
        if self._reach(self.log_rho) < self.fall - self.log_rho:
            return np.asarray(self._small() / self.grade)
        pull = 1.0 if self.depth == 2 else self.power * self._start()
        return np.asarray(pull - self.column * self._solve(self.A @ (self.signs @ (self.slope * pull))))

    def _move(self, fall: Array, pull: Array, before: float) -> float:
        """Return the Newton step of log ρ after the fall of ζ; back it goes by half the step before at most."""
        if self.kappa is None:
            return -self.log_rho
        half, weight = self.depth / 2, self._parts() ** (2 / self.depth)
        now, rise = float(weight.sum()), weight * self.grade
        square = max(now + float((rise * fall).sum()) / half, 0.1 * now)
        growth = min(max(float((rise * pull).sum()), 0), square)  # (L/2) dr²/d log ρ lies in between
        error = self.log_rho - half * np.log(square / self.square0) + self.kappa * half * (square - self.square0)
        move = -float(error) / max(1 + growth * (self.kappa - 1 / square), 1e-3)
        return move if move * before >= 0 else float(np.clip(move, -abs(before) / 2, abs(before) / 2))

    def _share(self, fall: Array) -> float:
        """Return the largest share of the step, up to 1, that lets no entry rise too far."""
        room = self.zeta - self._zeta(np.maximum(self.log_x + RISE, NEGLIGIBLE + self.typical))
        return 1 / max(1.0, float((fall / room).max()))

    def _met(self, parts: Array) -> Array:
        """Return parts that solve the system, moved as ζ would move them: scaled small entries leave a gap."""
        if self._misses(self.signs @ parts, TOLERANCE):
            slope = parts * self.grade
            self._factor(np.add.reduce(slope))
            for _ in range(2):
                missing = self.y - self.A @ (self.signs @ parts)
                parts = np.maximum(parts + slope * self.column * self._solve(missing), 0)
        return parts

    def _small(self) -> NDArray[np.bool_]:
        return np.asarray(self.log_x < SMALL + self.typical)

    def _parts(self) -> Array:
        """Return x, with small entries, which go with x0, scaled from the start that was solved for."""
        below = self.fall - self.log_rho - self._reach(self.log_rho)
        return np.asarray(np.exp(self.log_x - below * self._small()) if below > 0 else self.x)
